"""Train one of the compared methods. See configs/train_baseline.yaml, or --help."""

from diffrestorer.config.composition import run
from diffrestorer.config.schema import BaselineConfig


def main(config: BaselineConfig) -> None:
    """Train the method's phases one after the other."""
    from diffrestorer.training.baseline import train_baseline

    train_baseline(config)


if __name__ == "__main__":
    run("train_baseline", BaselineConfig, main)
