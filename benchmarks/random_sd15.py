"""Write the files that sd15 starts from, with random weights: for machines without them, and for rehearsals.

    python benchmarks/random_sd15.py FOLDER            # 6.1 GB, about 4 GiB of memory
    python benchmarks/random_sd15.py FOLDER --tiny     # small networks; VGG-19 keeps its size (0.6 GB)

Names, shapes, types and configurations are those of the published files, so whatever reads the real ones reads these:

    vae/, unet/, scheduler/         Stable Diffusion 1.5 as its repository holds it   base=FOLDER
    open_clip_model.safetensors     OpenAI's CLIP ViT-L/14 as open_clip stores it     model.clip=FILE
    vgg19-dcbb9e9d.pth              VGG-19 as torchvision stores it                   model.perceptual_weights=FILE

Every tensor is drawn by a generator seeded with its own name: two machines get the same files. A file that is already
there is kept. Images made with such weights mean nothing.
"""

import argparse
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float
from safetensors.torch import save_file
from sd15_layout import CLIP_FILE, CONFIGS, OLD_ATTENTION_NAMES, TINY_WIDTHS, VGG_FILE, WEIGHTS
from torch import Tensor, nn
from torchvision.models import vgg19

from diffrestorer.config.composition import load
from diffrestorer.config.schema import ModelConfig, Stage1Config
from diffrestorer.models.components import build_image_encoder, build_unet, build_vae

Shapes = dict[str, tuple[int, ...]]
"""Shape of every tensor of a file, by name."""


def sd15_model(overrides: tuple[str, ...] = ()) -> ModelConfig:
    """Return the networks of `model=sd15`, with overrides such as `TINY_WIDTHS`."""
    return load("train_stage1", Stage1Config, ["model=sd15", *overrides]).model


def published_config(name: str, model: ModelConfig) -> dict[str, Any]:
    """Return the published configuration of `unet` or `vae`, with the widths of `model`."""
    arguments = getattr(model, name)
    return {key: arguments.get(key, value) for key, value in CONFIGS[name].items()}


def file_shapes(model: ModelConfig) -> dict[str, Shapes]:
    """Return names and shapes of every tensor in the files `unet`, `vae`, `clip` and `vgg19`; allocates nothing."""
    architecture = open_clip.get_model_config("ViT-L-14-quickgelu")
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel.from_config(published_config("unet", model)),
            "vae": AutoencoderKL.from_config(published_config("vae", model)),
            "clip": open_clip.CLIP(**architecture),
            "vgg19": vgg19(),
        }
    shapes = {name: shapes_of(network) for name, network in networks.items()}
    shapes["vae"] = {_old_attention_name(key): shape for key, shape in shapes["vae"].items()}
    return shapes


def shapes_of(network: nn.Module) -> Shapes:
    """Return names and shapes of a network's tensors."""
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def _old_attention_name(key: str) -> str:
    for new, old in OLD_ATTENTION_NAMES.items():
        key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return key


def random_tensors(file: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Draw every tensor of a file in float32, in a scale that keeps activations finite and away from zero.

    Args:
        file: `unet`, `vae`, `clip` or `vgg19`; part of the seeds, and VGG's scale is another.
    """
    return {key: _draw(f"{file}/{key}", shape, he=file == "vgg19") for key, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], he: bool) -> Float[Tensor, "..."]:
    """Draw one tensor; `he` is the scale for layers that only a ReLU follows, else it is PyTorch's own default."""
    # Normalisations pass everything on; CLIP's temperature is the one it was trained to.
    if name.endswith("logit_scale"):
        return torch.tensor(math.log(100))
    if len(shape) == 1 and name.endswith((".weight", ".bias")):
        return torch.ones(shape) if name.endswith(".weight") else torch.zeros(shape)

    # All others are uniform, by the number of inputs that meet in an output.
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    generator = torch.Generator().manual_seed(seed)
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
    bound = math.sqrt((6 if he else 1) / fan_in)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def write_files(folder: Path) -> None:
    """Write every file that is missing, one network in memory at a time; each appears when it is whole."""
    model = sd15_model()
    shapes = file_shapes(model)
    for name in ("unet", "vae"):
        _write_component(folder / name, published_config(name, model), shapes[name])
    _write_json(folder / "scheduler" / "scheduler_config.json", CONFIGS["scheduler"])
    _write_tensors(folder / CLIP_FILE, "clip", shapes["clip"])
    _write_tensors(folder / VGG_FILE, "vgg19", shapes["vgg19"])


def write_tiny_files(folder: Path) -> None:
    """Write the same for networks of `TINY_WIDTHS`: a base with an image encoder of its own, and VGG-19."""
    model = sd15_model(TINY_WIDTHS)
    with torch.device("meta"):
        networks = {
            "unet": build_unet(model),
            "vae": build_vae(model),
            "image_encoder": build_image_encoder(model),
        }
    for name, network in networks.items():
        config = {"_class_name": type(network).__name__, **getattr(model, name)}
        _write_component(folder / name, config, shapes_of(network))
    _write_tensors(folder / VGG_FILE, "vgg19", file_shapes(model)["vgg19"])


def _write_component(folder: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    _write_json(folder / "config.json", config)
    _write_tensors(folder / WEIGHTS, folder.name, shapes)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_tensors(path: Path, name: str, shapes: Shapes) -> None:
    if path.exists():
        print(f"{path}: kept")
        return
    partial = path.with_name(f".{path.name}.partial")
    if path.suffix == ".safetensors":
        save_file(random_tensors(name, shapes), partial, metadata={"format": "pt"})
    else:
        torch.save(random_tensors(name, shapes), partial)
    os.replace(partial, path)
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB", flush=True)


def main() -> None:
    """Write the files into the folder that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="made if missing")
    parser.add_argument("--tiny", action="store_true", help="small networks")
    arguments = parser.parse_args()
    (write_tiny_files if arguments.tiny else write_files)(arguments.folder)


if __name__ == "__main__":
    main()
