"""Train a one-step student of a finished model. See configs/train_student.yaml, or --help."""

from diffrestorer.cli.commands import run_command

if __name__ == "__main__":
    run_command("train student")
