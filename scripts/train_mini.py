"""Train mini for a given number of minutes. See configs/train_mini.yaml, or --help."""

from diffrestorer.cli.commands import run_command

if __name__ == "__main__":
    run_command("train mini")
