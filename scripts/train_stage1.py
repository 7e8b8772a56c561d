"""Train the first stage: prompts and control. See configs/train_stage1.yaml, or --help."""

from pathlib import Path

from diffrestorer.config.composition import run
from diffrestorer.config.schema import Stage1Config


def main(config: Stage1Config) -> None:
    """Hand the task to the training loop."""
    from diffrestorer.training.loop import train
    from diffrestorer.training.stage1 import Stage1Task

    train(Stage1Task, config, Path(config.output_dir))


if __name__ == "__main__":
    run("train_stage1", Stage1Config, main)
