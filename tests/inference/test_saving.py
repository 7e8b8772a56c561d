"""Model folders as diffusers' users write and read them: what is saved loads again, or is refused when it is saved."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel, UniPCMultistepScheduler
from soaking import some_now

from diffrestorer.config.composition import load
from diffrestorer.config.schema import Stage1Config
from diffrestorer.inference.model_folder import save_model_folder
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.components import COMPONENTS, WEIGHTS_NAME, ModelFolderError, load_component
from diffrestorer.models.pretrained import load_base
from diffrestorer.models.restorer import build_restorer

STEPS = 2


def restore(pipe: Any, count: int = 1, side: int = 40, **options: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, side, side + 9, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return torch.stack(
        pipe(images, STEPS, torch.Generator().manual_seed(0), output_type="pt", **options).images
    )


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Images of equal weights, to rounding: some processors add up in another order where weights lie elsewhere."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.fixture(params=["mini", "sd15"])
def either(
    request: pytest.FixtureRequest,
    tiny_overrides: list[str],
    tiny_sd15_overrides: list[str],
    randomised: Callable,
) -> DiffRestorerPipeline:
    """A tiny pipeline of each kind."""
    overrides = tiny_overrides if request.param == "mini" else tiny_sd15_overrides
    config = load("train_stage1", Stage1Config, list(overrides)).model
    torch.manual_seed(0)
    restorer = randomised(build_restorer(config, *load_base(config)).eval())
    scheduler = UniPCMultistepScheduler(**config.scheduler)
    relative = config.relative_prediction
    return DiffRestorerPipeline(
        **restorer.components(), scheduler=scheduler, relative_prediction=relative
    )


@pytest.mark.parametrize(
    "options",
    [
        {"safe_serialization": False},
        {"use_flashpack": True},
        {"variant": "ema", "safe_serialization": False},
    ],
    ids=str,
)
def test_files_that_would_not_be_read_are_not_written(
    options: dict[str, Any], pipe: DiffRestorerPipeline, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"leave {next(iter(options))}=.* out|leave safe") as caught:
        pipe.save_pretrained(tmp_path / "model", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"safe_serialization": True, "variant": None}, marks=pytest.mark.soak),
        pytest.param({"variant": "fp16"}, marks=pytest.mark.soak),
        pytest.param({"max_shard_size": "20KB"}, marks=pytest.mark.soak),
        {"variant": "own", "max_shard_size": "20KB"},
    ],
    ids=str,
)
def test_other_options_are_written_and_read(
    options: dict[str, Any], pipe: DiffRestorerPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the pipeline, with the variant or without; by diffusers alone; and as a training's model."""
    cache = str(tmp_path / "cache")
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", cache)
    folder, variant = tmp_path / "model", options.get("variant")
    pipe.save_pretrained(folder, **options)
    assert (len(list((folder / "unet").glob("*.safetensors"))) > 1) == ("max_shard_size" in options)
    expected = restore(pipe)
    for found in (
        DiffRestorerPipeline.from_pretrained(folder, variant=variant),
        DiffRestorerPipeline.from_pretrained(folder),
        DiffusionPipeline.from_pretrained(folder, variant=variant, trust_remote_code=True),
    ):
        assert_same(restore(found), expected)
        for name, component in pipe.restorer.components().items():
            weights = found.components[name].state_dict()
            assert all(
                torch.equal(weights[key], value) for key, value in component.state_dict().items()
            )
    weights = load_component(folder / "unet").state_dict()
    assert all(torch.equal(weights[name], value) for name, value in pipe.unet.state_dict().items())

    # The plain weights are read where both are, and a variant is named that is not there or is damaged.
    (shard, *_) = sorted((folder / "vae").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ModelFolderError, match=f"{shard.name} is damaged or truncated"):
        DiffRestorerPipeline.from_pretrained(folder)
    with pytest.raises(
        ModelFolderError, match=r"diffusion_pytorch_model\.absent\.safetensors is missing"
    ):
        DiffRestorerPipeline.from_pretrained(folder, variant="absent")
    for again in ({}, {"max_shard_size": "20KB"}, {}):
        pipe.save_pretrained(folder, **again)
        assert_same(restore(DiffRestorerPipeline.from_pretrained(folder)), expected)


@pytest.mark.parametrize(
    "content",
    some_now(
        [
            '{"weight_map": {"a": "../x.safetensors"}}',
            '{"weight_map": {"a": 1}}',
            '{"weight_map": {}}',
            "{}",
            "[]",
            "",
        ],
        2,
    ),
)
def test_an_index_that_leads_astray_is_refused(
    content: str, pipe: DiffRestorerPipeline, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "unet" / f"{WEIGHTS_NAME}.index.json"
    index.write_text(content)
    with pytest.raises(ModelFolderError, match=rf"{index.name} is damaged") as refused:
        DiffRestorerPipeline.from_pretrained(tmp_path)
    assert "\n" not in str(refused.value)


def test_pickles_are_not_read(pipe: DiffRestorerPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ModelFolderError, match="leave use_safetensors out"):
        DiffRestorerPipeline.from_pretrained(tmp_path, use_safetensors=False)


def test_from_pipe_takes_over_every_component(either: DiffRestorerPipeline) -> None:
    """The networks are shared, and what the UNet predicts is still read as it was trained."""
    taken = DiffRestorerPipeline.from_pipe(either)
    assert all(getattr(taken, name) is getattr(either, name) for name in COMPONENTS)
    assert taken.config.relative_prediction == either.config.relative_prediction
    assert_same(restore(taken), restore(either))


@pytest.mark.parametrize("by", some_now(["pipeline", "training"], 1))
def test_diffusers_alone_finds_class_and_parts(
    by: str, either: DiffRestorerPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own parts load by themselves; the whole one loads by DiffusionPipeline, once its file is trusted."""
    monkeypatch.setattr(
        "diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "cache")
    )
    folder = tmp_path / "model"
    if by == "pipeline":
        either.save_pretrained(folder)
    else:
        save_model_folder(either.restorer, either.scheduler, folder)

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    expected = either.unet.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in unet.state_dict().items())
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder)
    loaded = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded) is DiffRestorerPipeline
    assert_same(restore(loaded), restore(either))


def test_a_folder_is_diffusers_custom_pipeline(
    pipe: DiffRestorerPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As diffusers documents `custom_pipeline`: a folder with pipeline.py, also for a model whose index names none."""
    monkeypatch.setattr(
        "diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "cache")
    )
    folder, plain = tmp_path / "model", tmp_path / "plain"
    pipe.save_pretrained(folder)
    shutil.copytree(folder, plain)
    (plain / "pipeline.py").unlink()
    index = json.loads((plain / "model_index.json").read_text())
    index["_class_name"] = "DiffRestorerPipeline"
    (plain / "model_index.json").write_text(json.dumps(index))

    for model in (folder, plain):
        with pytest.raises(ValueError, match="trust_remote_code"):
            DiffusionPipeline.from_pretrained(model, custom_pipeline=str(folder))
        loaded = DiffusionPipeline.from_pretrained(
            model, custom_pipeline=str(folder), trust_remote_code=True
        )
        assert type(loaded) is DiffRestorerPipeline
        assert_same(restore(loaded), restore(pipe))


def test_our_own_loader_executes_nothing_of_a_folder(
    pipe: DiffRestorerPipeline, tmp_path: Path
) -> None:
    """Neither the file for diffusers, nor one that stands where a component's class is looked for."""
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    attack = f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n"
    for file in (folder / "pipeline.py", folder / "None.py", folder / "vae" / "evil.py"):
        file.write_text(attack)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffRestorerPipeline.from_pretrained(folder)  # diffusers takes None.py for a custom pipeline
    (folder / "None.py").unlink()
    DiffRestorerPipeline.from_pretrained(folder)

    index = json.loads((folder / "model_index.json").read_text())
    for entry in (
        ["evil", "AutoencoderKL"],
        ["os", "system"],
        ["diffusers", "UNet2DModel"],
        "vae",
        None,
    ):
        (folder / "model_index.json").write_text(json.dumps({**index, "vae": entry}))
        with pytest.raises(ModelFolderError, match=r"model_index\.json gives vae as"):
            DiffRestorerPipeline.from_pretrained(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", COMPONENTS)
def test_mixed_types_are_refused(name: str, pipe: DiffRestorerPipeline) -> None:
    getattr(pipe, name).to(torch.bfloat16)
    for call in (lambda: restore(pipe), lambda: pipe.detect(torch.rand(3, 40, 40))):
        with pytest.raises(ValueError, match=rf"different types.*bfloat16: {name}[;)]") as caught:
            call()
        assert "\n" not in str(caught.value)
    pipe.to(torch.float32)
    assert restore(pipe).isfinite().all()


def test_autocast_brings_types_together(pipe: DiffRestorerPipeline) -> None:
    pipe.unet.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert restore(pipe).isfinite().all()


@pytest.mark.parametrize("decoder", some_now(["refined", "sd"], 1))
def test_the_vaes_own_tiles_and_slices(decoder: str, either: DiffRestorerPipeline) -> None:
    """Slices change nothing; with tiles the encoder stays whole, and the VAE's decoder blends them."""
    expected = restore(either, 2, 80, decoder=decoder)
    either.vae.enable_slicing()
    torch.testing.assert_close(restore(either, 2, 80, decoder=decoder), expected, rtol=0, atol=5e-5)
    either.vae.enable_tiling()
    either.vae.tile_sample_min_size, either.vae.tile_latent_min_size = 32, 4
    found = restore(either, 2, 80, decoder=decoder)
    assert either.vae.use_tiling
    if decoder == "refined":
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)
    else:
        assert found.shape == expected.shape
        assert found.isfinite().all()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002], ids=oct)
def test_weights_are_as_readable_as_the_files_beside_them(
    mask: int, pipe: DiffRestorerPipeline, tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        pipe.save_pretrained(tmp_path / "pipeline")
        save_model_folder(pipe.restorer, pipe.scheduler, tmp_path / "training")
    finally:
        os.umask(before)
    for folder in ("pipeline", "training"):
        files = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}
        assert sum(path.suffix == ".safetensors" for path in files) == len(COMPONENTS)
    shutil.rmtree(tmp_path / "pipeline")
