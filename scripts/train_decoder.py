"""Train the Degradation-aware Decoder. See configs/train_decoder.yaml, or --help."""

from diffrestorer.cli.commands import run_command

if __name__ == "__main__":
    run_command("train decoder")
