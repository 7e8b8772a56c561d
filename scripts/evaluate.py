"""Restore a suite with several methods and compare them. See configs/evaluate.yaml."""

from diffrestorer.cli.commands import run_command

if __name__ == "__main__":
    run_command("evaluate")
