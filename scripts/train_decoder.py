"""Train the Degradation-aware Decoder. See configs/train_decoder.yaml, or --help."""

from pathlib import Path

from diffrestorer.config.composition import run
from diffrestorer.config.schema import DecoderConfig


def main(config: DecoderConfig) -> None:
    """Hand the task, with the classes of the model at `stage1`, to the training loop."""
    from diffrestorer.training.decoder_stage import DecoderTask
    from diffrestorer.training.loop import train
    from diffrestorer.training.model_classes import follow_stage1

    train(DecoderTask, follow_stage1(config), Path(config.output_dir))


if __name__ == "__main__":
    run("train_decoder", DecoderConfig, main)
