"""Stable Diffusion as people have it: every published form is read, without pickles, or named as missing."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from stable_diffusion_files import (
    assert_equal_weights,
    single_file_tensors,
    write_components,
    write_hub_cache,
)

from diffrestorer.config.schema import ModelConfig
from diffrestorer.evaluation.scoring.metrics import EXTRA_METRICS
from diffrestorer.evaluation.scoring.pyiqa_networks import WeightsError, create
from diffrestorer.inference.model_folder import find_model
from diffrestorer.models import hub_files
from diffrestorer.models.components import ModelFolderError
from diffrestorer.models.pretrained import load_base

BASE, CLIP = "stable-diffusion-v1-5/stable-diffusion-v1-5", "timm/vit_large_patch14_clip_224.openai"


@pytest.fixture
def clip_file(networks: dict[str, Any], tmp_path: Path) -> Path:
    """The image tower as open_clip stores it."""
    path = tmp_path / "open_clip_model.safetensors"
    save_file(
        {f"visual.{name}": value for name, value in networks["clip"].visual.state_dict().items()}, path
    )
    return path


def parts(networks: dict[str, Any]) -> dict[str, Any]:
    return {name: networks[name] for name in ("vae", "unet")}


@pytest.mark.parametrize("variant", [None, "fp16", "non_ema", "bf16"])
def test_folders_of_any_variant(
    variant: str | None,
    config: ModelConfig,
    networks: dict[str, Any],
    clip_file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:
    write_components(tmp_path / "sd", parts(networks), variant)
    loaded = load_base(replace(config, clip=str(clip_file)), str(tmp_path / "sd"))
    for found, name in zip(loaded, ("vae", "clip", "unet"), strict=True):
        assert_equal_weights(found, networks[name])
    assert capfd.readouterr().err == "", "libraries say nothing of their own"


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_weights(
    variant: str | None,
    config: ModelConfig,
    networks: dict[str, Any],
    clip_file: Path,
    tmp_path: Path,
) -> None:
    for name, network in parts(networks).items():
        size = sum(value.numel() * 4 for value in network.state_dict().values())
        network.save_pretrained(tmp_path / name, variant=variant, max_shard_size=size // 2)
        assert len(list((tmp_path / name).glob("*-of-*"))) > 1
    vae, _, unet = load_base(replace(config, clip=str(clip_file)), str(tmp_path))
    assert_equal_weights(vae, networks["vae"])
    assert_equal_weights(unet, networks["unet"])


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("by", ["id", "folder of the cache"])
def test_the_hubs_cache_without_network(
    variant: str | None,
    by: str,
    config: ModelConfig,
    networks: dict[str, Any],
    clip_file: Path,
    hub: Path,
    tmp_path: Path,
) -> None:
    write_components(tmp_path / "sd", parts(networks), variant)
    files = {str(file.relative_to(tmp_path / "sd")): file for file in (tmp_path / "sd").glob("*/*")}
    write_hub_cache(hub, BASE, files)
    write_hub_cache(hub, CLIP, {clip_file.name: clip_file})
    source = BASE if by == "id" else str(hub / f"models--{BASE.replace('/', '--')}")
    for found, name in zip(load_base(config, source), ("vae", "clip", "unet"), strict=True):
        assert_equal_weights(found, networks[name])


@pytest.mark.parametrize("half", [True, False])
def test_the_single_file(
    half: bool,
    config: ModelConfig,
    networks: dict[str, Any],
    clip_file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:
    tensors = single_file_tensors(networks["vae"], networks["unet"])
    file = tmp_path / "v1-5-pruned-emaonly.safetensors"
    save_file({name: value.half() if half else value for name, value in tensors.items()}, file)
    vae, _, unet = load_base(replace(config, clip=str(clip_file)), str(file))
    assert_equal_weights(vae, networks["vae"])
    assert_equal_weights(unet, networks["unet"])
    assert capfd.readouterr().err == ""


def damaged_single(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def without_vae(file: Path) -> None:
    tensors = {name: value for name, value in load_file(file).items() if "first_stage" not in name}
    save_file(tensors, file)


def without_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    del tensors["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save_file(tensors, file)


def of_other_widths(file: Path) -> None:
    tensors = load_file(file)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[name] = torch.cat([tensors[name]] * 2)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged_single, "is damaged or truncated"),
        (without_vae, "holds no vae of Stable Diffusion"),
        (without_a_tensor, "unet"),
        (of_other_widths, "unet cannot be loaded"),
    ],
)
def test_a_single_file_that_does_not_do_is_refused(
    damage: Callable[[Path], None],
    message: str,
    config: ModelConfig,
    networks: dict[str, Any],
    clip_file: Path,
    tmp_path: Path,
) -> None:
    file = tmp_path / "v1-5-pruned-emaonly.safetensors"
    save_file(single_file_tensors(networks["vae"], networks["unet"]), file)
    damage(file)
    with pytest.raises(ValueError, match=message) as caught:
        load_base(replace(config, clip=str(clip_file)), str(file))
    assert "\n" not in str(caught.value)


def test_pickles_of_stable_diffusion_are_not_read(
    config: ModelConfig, networks: dict[str, Any], clip_file: Path, tmp_path: Path
) -> None:
    for name, network in parts(networks).items():
        network.save_pretrained(tmp_path / "sd" / name, safe_serialization=False)
    torch.save({}, tmp_path / "v1-5-pruned.ckpt")
    for source in ("sd", "v1-5-pruned.ckpt"):
        with pytest.raises(ValueError, match=r"pickle.*give base=FOLDER with vae/") as caught:
            load_base(replace(config, clip=str(clip_file)), str(tmp_path / source))
        assert "\n" not in str(caught.value)


def test_a_component_without_a_tensor_is_refused(
    config: ModelConfig, networks: dict[str, Any], clip_file: Path, tmp_path: Path
) -> None:
    """Diffusers would draw it at random and say so in a warning."""
    write_components(tmp_path, parts(networks))
    file = tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    tensors = load_file(file)
    del tensors["mid_block.resnets.0.conv1.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"unet lacks 1 tensors \(mid_block.resnets.0.conv1.weight\)"):
        load_base(replace(config, clip=str(clip_file)), str(tmp_path))


def test_all_that_is_missing_is_named_at_once(
    config: ModelConfig, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, before anything is read: both repositories with their files, and HF_HUB_OFFLINE."""
    for source in (BASE, str(tmp_path)):
        with pytest.raises(ValueError, match="weights are missing") as caught:
            load_base(config, source)
        text = str(caught.value)
        assert "\n" not in text
        wanted = ["unet", "vae", "config.json", "diffusion_pytorch_model.safetensors", source]
        for part in (
            *wanted,
            f"open_clip_model.safetensors of {CLIP}",
            "HF_HUB_OFFLINE",
            "base=FOLDER",
        ):
            assert part in text, (part, text)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, hub: Path) -> Iterator[list[str]]:
    """A machine whose names cannot be resolved, and which does not know it: the names that were asked for."""
    asked: list[str] = []

    def refuse(host: Any, *_: Any, **__: Any) -> Any:
        asked.append(str(host))
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_files._why_unreachable.cache_clear()
    yield asked
    hub_files._why_unreachable.cache_clear()


def test_without_network_nothing_is_tried_again(
    config: ModelConfig, no_network: list[str], capfd: pytest.CaptureFixture
) -> None:
    """One attempt for all files; one sentence that names HF_HUB_OFFLINE."""
    with pytest.raises(ValueError, match=r"cannot be reached.*HF_HUB_OFFLINE=1") as caught:
        load_base(config, BASE)
    assert len(no_network) <= 1
    assert "\n" not in str(caught.value)
    assert f"of {BASE}" in str(caught.value)
    assert f"of {CLIP}" in str(caught.value)
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


def test_models_on_the_hub_are_not_tried_again(no_network: list[str]) -> None:
    """A model and a path that is none: one attempt for the first, none for the second."""
    for name, reason in (("someone/model", "HF_HUB_OFFLINE=1"), ("./nowhere/x", "OWNER/NAME")):
        with pytest.raises(ModelFolderError, match=f"no model at .*{reason}"):
            find_model(name)
    assert len(no_network) == 1


def test_a_model_of_the_hubs_cache_is_found(hub: Path, no_network: list[str], tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    folder = write_hub_cache(hub, "someone/model", {"model_index.json": tmp_path / "model_index.json"})
    assert find_model("someone/model") == folder


def test_metrics_from_the_hub_are_not_tried_again(
    no_network: list[str], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "pyiqa").mkdir()
    for metric in (metric for metric in EXTRA_METRICS if metric.hub):
        for name in metric.files:
            torch.save({}, tmp_path / name)
        with pytest.raises(WeightsError, match="into Hugging Face's cache"):
            create(metric, torch.device("cpu"), tmp_path)
    assert "Retrying" not in capfd.readouterr().err
    assert not constants.HF_HUB_OFFLINE


def test_without_network_the_cache_is_enough(
    config: ModelConfig,
    networks: dict[str, Any],
    clip_file: Path,
    hub: Path,
    no_network: list[str],
    tmp_path: Path,
) -> None:
    write_components(tmp_path / "sd", parts(networks))
    files = {str(file.relative_to(tmp_path / "sd")): file for file in (tmp_path / "sd").glob("*/*")}
    write_hub_cache(hub, BASE, files)
    write_hub_cache(hub, CLIP, {clip_file.name: clip_file})
    assert_equal_weights(load_base(config, BASE)[2], networks["unet"])
    assert not no_network
