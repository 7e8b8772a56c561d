"""`init=`: a run begins with the weights of another one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffrestorer.config.composition import load
from diffrestorer.config.schema import BaseConfig, DecoderConfig, Stage1Config
from diffrestorer.models.pretrained import load_base
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.mini_base import PARTS, ImageEncoderTask, VAETask
from diffrestorer.training.stage1 import Stage1Task


def config(*overrides: str) -> BaseConfig:
    return load("train_base", BaseConfig, overrides)


def test_a_part_begins_with_the_weights_of_another_run(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    first = ImageEncoderTask(config(*tiny_overrides, "part=image_encoder"))
    first.save_model(tmp_path, torch.float32)
    larger = [*tiny_overrides, "model.image_encoder.vision_cfg.image_size=64", f"init={tmp_path}"]
    second = ImageEncoderTask(config(*larger, "part=image_encoder"))
    assert second.image_encoder.image_size == 64
    for name, weight in first.image_encoder.state_dict().items():
        assert torch.equal(second.image_encoder.state_dict()[name], weight), name


def test_a_part_begins_with_the_bundled_base() -> None:
    vae, bundled = VAETask(config("init=mini")).vae, load_base(config().model, "mini")[0]
    for name, weight in bundled.state_dict().items():
        assert torch.equal(vae.state_dict()[name], weight), name


def test_weights_that_are_missing_or_do_not_fit_are_refused(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    assert list(PARTS) == ["vae", "image_encoder", "unet"]
    with pytest.raises(ValueError, match=f"{tmp_path} holds no vae to begin with"):
        VAETask(config(*tiny_overrides, f"init={tmp_path}"))
    other = VAETask(config(*tiny_overrides, "model.vae.latent_channels=3"))
    other.vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="vae is of other sizes than this run's vae"):
        VAETask(config(*tiny_overrides, f"init={tmp_path}"))


def test_both_stages_go_on_from_a_model(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path, randomised: Any
) -> None:
    """What trains has the model's weights, prototypes or not; what the base gives is the base's."""
    data = ["data=photos", f"data.root={photos_dir}", "data.size=32", "model.train_unet=all"]
    first = randomised(Stage1Task(load("train_stage1", Stage1Config, [*tiny_overrides, *data])))
    first.save_model(tmp_path / "model", torch.float32)
    init = f"init={tmp_path}"
    second = Stage1Task(load("train_stage1", Stage1Config, [*tiny_overrides, *data, init])).restorer
    for name in ("prompt_processor", "control_encoder", "control_network", "unet"):
        expected = getattr(first.restorer, name).state_dict()
        for key, weight in getattr(second, name).state_dict().items():
            assert torch.equal(weight, expected[key]), (name, key)
    assert not torch.equal(second.vae.encoder.conv_in.weight, first.restorer.vae.encoder.conv_in.weight)
    decoder = DecoderTask(
        load("train_decoder", DecoderConfig, [*tiny_overrides, *data, f"stage1={tmp_path}", init])
    )
    for key, weight in decoder.restorer.decoder.state_dict().items():
        assert torch.equal(weight, first.restorer.decoder.state_dict()[key]), key
    other = [*tiny_overrides, *data, init, "model.control_encoder.block_out_channels=[4,4,8,8]"]
    with pytest.raises(ValueError, match="is of other sizes than this run's control_encoder"):
        Stage1Task(load("train_stage1", Stage1Config, other))
