"""`init=`: a run begins with the weights of another one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffrestorer.config.composition import load
from diffrestorer.config.schema import BaseConfig, DecoderConfig, Stage1Config
from diffrestorer.data.pairs import collate_pairs
from diffrestorer.data.prepared import open_pairs
from diffrestorer.models.components import load_component
from diffrestorer.models.pretrained import load_base
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.mini_base import TASKS, VAETask, fit_image_encoder
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.task import to_unit


def config(*overrides: str) -> BaseConfig:
    return load("train_base", BaseConfig, overrides)


def test_the_image_encoder_is_fitted_or_begins_with_another(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fitted: 9 components of unit variance and no correlation, over the crops it was fitted to. `init=`: a copy."""
    data = [f"data.root={photos_dir}", "data.size=64", "part=image_encoder", "image_encoder_batches=2"]
    sizes = ["model.image_encoder.embed_dim=9", "model.image_encoder.vision_cfg.image_size=64"]
    first = config(*tiny_overrides, *data, *sizes)
    fit_image_encoder(first, tmp_path / "first")
    fitted = load_component(tmp_path / "first" / "model" / "image_encoder").eval()

    pairs = open_pairs(first.data, first.seed, 16)
    crops = [pairs[step, position] for step in range(2) for position in range(16)]
    with torch.no_grad():
        embeddings = torch.cat([fitted(to_unit(collate_pairs([crop]).lq)) for crop in crops])
    torch.testing.assert_close(embeddings.mean(0), torch.zeros(9), atol=1e-3, rtol=0)
    torch.testing.assert_close(embeddings.T @ embeddings / 32, torch.eye(9), atol=0.05, rtol=0)

    # A finished one stays; another run may begin with it.
    written = tmp_path / "first" / "model" / "image_encoder" / "config.json"
    before = written.stat().st_mtime_ns
    fit_image_encoder(first, tmp_path / "first")
    assert written.stat().st_mtime_ns == before
    for key, other in (("seed", "seed=1"), ("data.degradations", "data.degradations=[rain]")):
        with pytest.raises(
            ValueError, match=f"holds an image encoder fitted with another {key}: give another"
        ):
            fit_image_encoder(config(*tiny_overrides, *data, *sizes, other), tmp_path / "first")
    moved = [*data, *sizes, f"data.root={tmp_path}"]
    fit_image_encoder(config(*tiny_overrides, *moved), tmp_path / "first")
    assert f"it was fitted to the photos of {photos_dir}" in caplog.text
    init = f"init={tmp_path / 'first' / 'model'}"
    fit_image_encoder(config(*tiny_overrides, *data, *sizes, init), tmp_path / "second")
    copy = load_component(tmp_path / "second" / "model" / "image_encoder")
    for name, weight in fitted.state_dict().items():
        assert torch.equal(copy.state_dict()[name], weight), name


def test_an_image_encoder_of_too_few_crops_is_refused(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    data = [f"data.root={photos_dir}", "data.size=64", "part=image_encoder", "image_encoder_batches=1"]
    wide = config(*tiny_overrides, *data, "model.image_encoder.embed_dim=17")
    with pytest.raises(ValueError, match="17 numbers can't be fitted to 16 images"):
        fit_image_encoder(wide, tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_part_begins_with_the_bundled_base() -> None:
    vae, bundled = VAETask(config("init=mini")).vae, load_base(config().model, "mini")[0]
    for name, weight in bundled.state_dict().items():
        assert torch.equal(vae.state_dict()[name], weight), name


def test_weights_that_are_missing_or_do_not_fit_are_refused(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    assert list(TASKS) == ["vae", "image_encoder", "unet"]
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
