"""Trains the first stage. See configs/train_stage1.yaml, or --help."""

from diffrestorer.config import Stage1Config, run


def main(config: Stage1Config) -> None:
    """Builds the task and hands it to the training loop."""
    from pathlib import Path

    import torch

    from diffrestorer.training.stage1 import Stage1Task
    from diffrestorer.training.loop import train

    torch.manual_seed(config.seed)
    train(Stage1Task(config), config, Path(config.output_dir))


if __name__ == "__main__":
    run("train_stage1", Stage1Config, main)
