"""Stable Diffusion and CLIP as people have them: every published form is read, without pickles, or named as missing."""

import copy
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from stable_diffusion_files import (
    single_file_tensors,
    write_archive,
    write_components,
    write_hub_cache,
    write_transformers_clip,
)
from torch import Tensor

from diffrestorer.config.composition import load
from diffrestorer.config.schema import ModelConfig, Stage1Config
from diffrestorer.models import hub_files
from diffrestorer.models.backbones import ImageEncoder
from diffrestorer.models.clip_files import ClipError, load_into, read_clip
from diffrestorer.models.components import build_image_encoder, build_unet, build_vae
from diffrestorer.models.normalisation import normalise
from diffrestorer.models.pretrained import load_base, load_clip_weights
from diffrestorer.models.weight_files import WeightFileError, read_tensors

BASE, CLIP = "stable-diffusion-v1-5/stable-diffusion-v1-5", "timm/vit_large_patch14_clip_224.openai"
VISION = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 1,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 12,
}
TEXT = {"context_length": 77, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1}


@pytest.fixture(scope="module")
def config(tiny_sd15_overrides: list[str]) -> ModelConfig:
    """Stable Diffusion's architecture at tiny widths, with two layers a block as the real one."""
    more = ["model.vae.layers_per_block=2", "model.unet.layers_per_block=2", "model.clip=openai"]
    return load("train_stage1", Stage1Config, [*tiny_sd15_overrides, *more]).model


@pytest.fixture(scope="module")
def networks(config: ModelConfig) -> dict[str, Any]:
    """VAE, UNet and image encoder whose numbers are those of half precision."""
    torch.manual_seed(1)
    found = {"vae": build_vae(config), "unet": build_unet(config), "clip": build_image_encoder(config)}
    for network in found.values():
        network.load_state_dict({name: value.half() for name, value in network.state_dict().items()})
    return found


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face's hub, offline."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def clip_file(networks: dict[str, Any], tmp_path: Path) -> Path:
    """The image tower as open_clip stores it."""
    path = tmp_path / "open_clip_model.safetensors"
    save_file(
        {f"visual.{name}": value for name, value in networks["clip"].visual.state_dict().items()}, path
    )
    return path


def check(found: Any, expected: Any) -> None:
    """Equal weights, in float32."""
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    wanted = expected.state_dict()
    assert set(found.state_dict()) == set(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())


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
        check(found, networks[name])
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
    check(vae, networks["vae"])
    check(unet, networks["unet"])


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
        check(found, networks[name])


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
    check(vae, networks["vae"])
    check(unet, networks["unet"])
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


def openai_archive(networks: dict[str, Any], folder: Path) -> Path:
    state = whole_clip(networks["clip"]).half().state_dict()
    numbers = {"input_resolution": 28, "context_length": 77, "vocab_size": 100}
    tensors = {name: torch.tensor(float(value)) for name, value in numbers.items()}
    write_archive({**state, **tensors}, folder / "ViT-L-14.pt")
    return folder / "ViT-L-14.pt"


def whole_clip(encoder: ImageEncoder) -> open_clip.CLIP:
    """CLIP with the image tower of `encoder`."""
    vision = dict(encoder.config.vision_cfg)
    clip = open_clip.CLIP(12, vision, TEXT, quick_gelu=True)
    clip.visual.load_state_dict(encoder.visual.state_dict())
    return clip


def open_clip_checkpoint(networks: dict[str, Any], folder: Path) -> Path:
    state = {f"module.{name}": value for name, value in whole_clip(networks["clip"]).state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, folder / "epoch_3.pt")
    return folder / "epoch_3.pt"


def open_clip_folder(networks: dict[str, Any], folder: Path) -> Path:
    state = whole_clip(networks["clip"]).state_dict()
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def state_dict(networks: dict[str, Any], folder: Path) -> Path:
    torch.save(whole_clip(networks["clip"]).state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


FORMS = [openai_archive, open_clip_checkpoint, open_clip_folder, state_dict]


@pytest.mark.parametrize("form", FORMS)
def test_clip_in_open_clips_names(
    form: Callable[[dict[str, Any], Path], Path],
    config: ModelConfig,
    networks: dict[str, Any],
    tmp_path: Path,
) -> None:
    path = form(networks, tmp_path)
    encoder = build_image_encoder(config)
    load_clip_weights(encoder, "ViT-L-14-quickgelu", str(path), "model.clip")
    check(encoder, networks["clip"])


@pytest.fixture(scope="module")
def transformers_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny CLIP of transformers, and its folder."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("clip-vit-large-patch14")
    return write_transformers_clip(folder, VISION), folder


@torch.no_grad()
@pytest.mark.parametrize("form", ["folder", "file", "pickle", "hub id", "image tower alone"])
def test_clip_of_transformers_computes_the_same(
    form: str,
    config: ModelConfig,
    transformers_clip: tuple[Any, Path],
    hub: Path,
    tmp_path: Path,
) -> None:
    network, folder = transformers_clip
    source = str(folder)
    if form == "file":
        source = str(folder / "model.safetensors")
    elif form == "pickle":
        torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
        source = str(tmp_path)
    elif form == "hub id":
        name = "model.safetensors"
        write_hub_cache(hub, "openai/clip-vit-large-patch14", {name: folder / name})
        source = "openai/clip-vit-large-patch14"
    elif form == "image tower alone":
        tensors = load_file(folder / "model.safetensors")
        kept = {name: value for name, value in tensors.items() if name.startswith(("vision", "visual"))}
        save_file(kept, tmp_path / "model.safetensors")
        source = str(tmp_path)

    encoder = build_image_encoder(config).eval()
    load_clip_weights(encoder, "ViT-L-14-quickgelu", source, "model.clip")

    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    pixels = normalise(images, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    expected = network.visual_projection(network.vision_model(pixels).pooler_output)
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_text_tower_of_transformers_computes_the_same(transformers_clip: tuple[Any, Path]) -> None:
    """Figure 3 compares with texts."""
    network, folder = transformers_clip
    vision = {"image_size": 28, "layers": 4, "width": 64, "patch_size": 14}
    text = {**TEXT, "vocab_size": 49408, "layers": 2}
    clip = open_clip.CLIP(12, vision, text, quick_gelu=True).eval()
    load_into(clip, read_clip(folder / "model.safetensors"), folder)
    tokens = open_clip.get_tokenizer("ViT-L-14")(["hazy photo", "a photo of rain"])
    outputs = network.text_model(tokens).last_hidden_state
    ends = outputs[torch.arange(2), tokens.argmax(dim=1)]
    torch.testing.assert_close(
        clip.encode_text(tokens), network.text_projection(ends), rtol=1e-4, atol=1e-4
    )


class Attack:
    """An object whose pickle creates a folder when it is executed."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_clips_files_are_not_executed(config: ModelConfig, tmp_path: Path) -> None:
    for number, content in enumerate(({"visual.proj": 1}, {"state_dict": {}}, [1])):
        attacked = [content, Attack(tmp_path / "executed")]
        file = tmp_path / f"{number}.pt"
        torch.save(attacked, file)
        with pytest.raises(ValueError, match=r"no CLIP weights for model.clip.*more than tensors"):
            load_clip_weights(build_image_encoder(config), "ViT-L-14", str(file), "model.clip")
    assert not (tmp_path / "executed").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path: Path) -> None:
    path.write_bytes(b"<html>not found</html>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, garbage, empty])
@pytest.mark.parametrize("form", [openai_archive, open_clip_checkpoint, open_clip_folder])
def test_damaged_clip_files_are_named(
    form: Callable[[dict[str, Any], Path], Path],
    damage: Callable[[Path], None],
    config: ModelConfig,
    networks: dict[str, Any],
    tmp_path: Path,
) -> None:
    path = form(networks, tmp_path)
    path = path / "open_clip_model.safetensors" if path.is_dir() else path
    damage(path)
    with pytest.raises(ValueError, match=f"no CLIP weights for model.clip=.*{path.name}") as caught:
        load_clip_weights(build_image_encoder(config), "ViT-L-14", str(path), "model.clip")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(60))
def test_damaged_archives_are_read_or_refused(seed: int, tmp_path: Path) -> None:
    """A byte of the description changed: never anything but tensors or a sentence."""
    import zipfile

    torch.manual_seed(0)
    write_archive({"a.b.weight": torch.rand(3, 4), "a.c": torch.rand(2)}, tmp_path / "x.pt")
    generator = torch.Generator().manual_seed(seed)
    with zipfile.ZipFile(tmp_path / "x.pt") as source, zipfile.ZipFile(tmp_path / "y.pt", "w") as target:
        for name in source.namelist():
            data = bytearray(source.read(name))
            if name.endswith("/data.pkl"):
                place = int(torch.randint(len(data), (), generator=generator))
                data[place] = int(torch.randint(256, (), generator=generator))
            target.writestr(name, bytes(data))
    try:
        found = read_tensors(tmp_path / "y.pt")
    except WeightFileError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(value, Tensor) for value in found.values())


def test_another_clip_is_refused(
    config: ModelConfig, networks: dict[str, Any], tmp_path: Path
) -> None:
    other = copy.deepcopy(networks["clip"].visual.state_dict())
    other["proj"] = other["proj"][:, :5].contiguous()
    save_file({f"visual.{name}": value for name, value in other.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"another network: proj is \(64, 5\), not \(64, 12\)"):
        load_clip_weights(
            build_image_encoder(config), "ViT-L-14", str(tmp_path / "x.safetensors"), "model.clip"
        )
    with pytest.raises(ClipError, match="no image tower"):
        save_file({"x": torch.zeros(1)}, tmp_path / "y.safetensors")
        read_clip(tmp_path / "y.safetensors", "visual.")


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
        for part in (*wanted, f"open_clip_model.safetensors of {CLIP}", "HF_HUB_OFFLINE", "base=FOLDER"):
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
    check(load_base(config, BASE)[2], networks["unet"])
    assert not no_network
