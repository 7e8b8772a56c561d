"""Make a picture of the documentation. See configs/make_figures.yaml, or --help."""

from diffrestorer.cli.commands import run_command

if __name__ == "__main__":
    run_command("figures")
