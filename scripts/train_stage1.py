"""Train the first stage: prompts and control. See configs/train_stage1.yaml, or --help."""

from diffrestorer.cli.commands import run_command

if __name__ == "__main__":
    run_command("train stage1")
