"""CLIP as people have it: OpenAI's, open_clip's and transformers' files, none of them executed."""

import copy
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from stable_diffusion_files import (
    assert_equal_weights,
    write_archive,
    write_hub_cache,
    write_transformers_clip,
)
from torch import Tensor

from diffrestorer.config.schema import ModelConfig
from diffrestorer.models.backbones import ImageEncoder
from diffrestorer.models.clip_files import ClipError, load_into, read_clip
from diffrestorer.models.components import build_image_encoder
from diffrestorer.models.normalisation import normalise
from diffrestorer.models.pretrained import load_clip_weights
from diffrestorer.models.weight_files import WeightFileError, read_tensors

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
    state = {
        f"module.{name}": value for name, value in whole_clip(networks["clip"]).state_dict().items()
    }
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
    assert_equal_weights(encoder, networks["clip"])


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
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as source,
        zipfile.ZipFile(tmp_path / "y.pt", "w") as target,
    ):
        for name in source.namelist():
            data = bytearray(source.read(name))
            if name.endswith("/data.pkl"):
                place = int(torch.randint(len(data), (), generator=generator))
                data[place] = int(torch.randint(256, (), generator=generator))
            target.writestr(name, bytes(data))
    found: dict[str, Tensor] = {}
    with suppress(WeightFileError):
        found = read_tensors(tmp_path / "y.pt")
    assert all(isinstance(value, Tensor) for value in found.values())


def test_another_clip_is_refused(config: ModelConfig, networks: dict[str, Any], tmp_path: Path) -> None:
    other = copy.deepcopy(networks["clip"].visual.state_dict())
    other["proj"] = other["proj"][:, :5].contiguous()
    save_file({f"visual.{name}": value for name, value in other.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"another network: proj is \(64, 5\), not \(64, 12\)"):
        load_clip_weights(
            build_image_encoder(config), "ViT-L-14", str(tmp_path / "x.safetensors"), "model.clip"
        )
    save_file({"x": torch.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(ClipError, match="no image tower"):
        read_clip(tmp_path / "y.safetensors", "visual.")
