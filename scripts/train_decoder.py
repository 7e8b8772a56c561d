"""Trains the decoder. See configs/train_decoder.yaml, or --help."""

from diffrestorer.config import DecoderConfig, run


def main(config: DecoderConfig) -> None:
    """Builds the task and hands it to the training loop."""
    from pathlib import Path

    import torch

    from diffrestorer.training.decoder import DecoderTask
    from diffrestorer.training.loop import train

    torch.manual_seed(config.seed)
    train(DecoderTask(config), config, Path(config.output_dir))


if __name__ == "__main__":
    run("train_decoder", DecoderConfig, main)
