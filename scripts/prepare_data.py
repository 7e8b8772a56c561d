"""Make training and test pairs of downloaded data sets, or check them. See configs/prepare_data.yaml, or --help."""

from diffrestorer.cli.commands import run_command

if __name__ == "__main__":
    run_command("prepare")
