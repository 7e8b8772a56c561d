"""Train mini for a given number of minutes. See configs/train_mini.yaml, or --help."""

from diffrestorer.config.composition import run
from diffrestorer.config.schema import MiniConfig


def main(config: MiniConfig) -> None:
    """Hand the stages to the recipe."""
    from diffrestorer.training.recipe import train_mini

    train_mini(config)


if __name__ == "__main__":
    run("train_mini", MiniConfig, main)
