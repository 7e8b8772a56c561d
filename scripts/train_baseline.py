"""Train one of the compared methods. See configs/train_baseline.yaml, or --help."""

from diffrestorer.cli.commands import run_command

if __name__ == "__main__":
    run_command("train baseline")
