"""Train mini's base from a folder of photos: VAE, image encoder, UNet. See configs/train_base.yaml."""

from diffrestorer.config.composition import run
from diffrestorer.config.schema import BaseConfig


def main(config: BaseConfig) -> None:
    """Train the parts one after the other; finished ones are recognised by their `model/` folder."""
    from diffrestorer.training.mini_base import train_base

    train_base(config)


if __name__ == "__main__":
    run("train_base", BaseConfig, main)
