"""mini's base may begin with the weights of a run on smaller images."""

from pathlib import Path

import pytest
import torch

from diffrestorer.config.composition import load
from diffrestorer.config.schema import BaseConfig
from diffrestorer.training.base import PARTS, ImageEncoderTask, VAETask


def config(*overrides: str) -> BaseConfig:
    return load("train_base", BaseConfig, overrides)


def test_a_part_begins_with_the_weights_of_another_run(tiny_overrides: list[str], tmp_path: Path) -> None:
    first = ImageEncoderTask(config(*tiny_overrides, "part=image_encoder"))
    first.save_model(tmp_path, torch.float32)
    larger = [*tiny_overrides, "model.image_encoder.vision_cfg.image_size=64", f"init={tmp_path}"]
    second = ImageEncoderTask(config(*larger, "part=image_encoder"))
    assert second.image_encoder.image_size == 64
    for name, weight in first.image_encoder.state_dict().items():
        assert torch.equal(second.image_encoder.state_dict()[name], weight), name


def test_weights_that_are_missing_or_do_not_fit_are_refused(tiny_overrides: list[str], tmp_path: Path) -> None:
    assert list(PARTS) == ["vae", "image_encoder", "unet"]
    with pytest.raises(ValueError, match=f"init={tmp_path} holds no vae: give the model/ folder"):
        VAETask(config(*tiny_overrides, f"init={tmp_path}"))
    other = VAETask(config(*tiny_overrides, "model.vae.latent_channels=3"))
    other.vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="holds vae of other sizes"):
        VAETask(config(*tiny_overrides, f"init={tmp_path}"))
