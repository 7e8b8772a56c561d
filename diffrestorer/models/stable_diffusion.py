"""Stable Diffusion's VAE and UNet as people have them: a folder, a hub id, or one file of the original layout."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from diffusers.utils import logging
from safetensors import SafetensorError, safe_open

from diffrestorer.config.schema import ModelConfig
from diffrestorer.models.hub_files import HubError, find_hub_file
from diffrestorer.models.weight_files import STEM, find_variant, find_weights

SINGLE_FILE = "v1-5-pruned-emaonly.safetensors"
"""The original file's name where it is published."""


_NAMES = (f"{STEM}.safetensors", f"{STEM}.fp16.safetensors")
"""A component's weights in a repository, the best first."""

_KINDS: dict[str, tuple[type[Any], str]] = {
    "vae": (AutoencoderKL, "first_stage_model.encoder.conv_in.weight"),
    "unet": (UNet2DConditionModel, "model.diffusion_model.input_blocks.0.0.weight"),
}
"""Component -> its class, and a tensor by which its part of a single file is recognised."""


class StableDiffusionError(ValueError):
    """Stable Diffusion can't be had or is damaged.

    Attributes:
        reason: a clause that says why.
        wanted: what to fetch: files, and their repository or folder.
    """

    def __init__(self, reason: str, wanted: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wanted = wanted


@dataclass(frozen=True)
class StableDiffusionFiles:
    """Where the VAE and the UNet are.

    Attributes:
        place: the folder above `vae/` and `unet/`, or the single file.
        variants: component -> what stands in its files' names, such as `fp16`; None for nothing.
    """

    place: Path
    variants: dict[str, str | None]


def find_stable_diffusion(source: str) -> StableDiffusionFiles:
    """Find the files of VAE and UNet; reads at most the names of their tensors.

    Args:
        source: a folder with `vae/` and `unet/`, a repository's folder of the hub's cache, a hub id (from the cache, or
            by download), or a single file of the original layout.

    Raises:
        StableDiffusionError: they are not there; names everything that is missing.
    """
    path = Path(source)
    if path.is_file():
        _check_single_file(path)
        return StableDiffusionFiles(path, dict.fromkeys(_KINDS))
    if path.is_dir():
        snapshots = sorted(path.glob("snapshots/*"), key=lambda entry: entry.stat().st_mtime)
        return _in_folder(snapshots[-1] if snapshots else path)
    return _on_hub(source)


def load_stable_diffusion(
    files: StableDiffusionFiles, config: ModelConfig
) -> tuple[AutoencoderKL, UNet2DConditionModel]:
    """Load VAE and UNet in float32, whatever type the files have.

    Args:
        files: where they are.
        config: describes the networks of a single file, which does not describe itself.

    Raises:
        StableDiffusionError: a file is damaged, or of other networks.
    """
    loaded = {name: _load(name, files, getattr(config, name)) for name in _KINDS}
    return loaded["vae"], loaded["unet"]


def _on_hub(repository: str) -> StableDiffusionFiles:
    """Find the files of a repository."""
    variants: dict[str, str | None] = {}
    place = Path()
    try:
        for name in _KINDS:
            place = find_hub_file(repository, [f"{name}/config.json"]).parents[1]
            weights = find_hub_file(repository, [f"{name}/{file}" for file in _NAMES])
            variants[name] = "fp16" if weights.name == _NAMES[1] else None
    except HubError as error:
        wanted = f"vae/ and unet/ (config.json and {_NAMES[0]} or {_NAMES[1]} each) of {repository}"
        raise StableDiffusionError(str(error), wanted) from None
    return StableDiffusionFiles(place, variants)


def _in_folder(folder: Path) -> StableDiffusionFiles:
    """Find the files below a folder, of any variant; the plain ones come first."""
    variants: dict[str, str | None] = {}
    missing: list[str] = []
    for name in _KINDS:
        if not (folder / name / "config.json").is_file():
            missing.append(f"{name}/config.json")
        if not find_weights(folder / name):
            missing.append(f"{name}/{_NAMES[0]}")
        variants[name] = find_variant(folder / name)

    if missing:
        raise StableDiffusionError(_why_missing(folder), f"{', '.join(missing)} in {folder}")
    return StableDiffusionFiles(folder, variants)


def _why_missing(folder: Path) -> str:
    """Return what a folder has in place of the weights that are read."""
    pickles = [file for name in _KINDS for file in (folder / name).glob(f"{STEM}*.bin")]
    if pickles:
        return f"{pickles[0]} is a pickle, and none is read"
    singles = sorted(folder.glob("*.safetensors"))
    if singles:
        return f"the folder has {singles[0].name}, to be given as base={singles[0]}"
    return "the folder lacks them"


def _check_single_file(path: Path) -> None:
    """Refuse a file that is not Stable Diffusion in its original layout."""
    wanted = f"{SINGLE_FILE} of stable-diffusion-v1-5/stable-diffusion-v1-5"
    if path.suffix != ".safetensors":
        raise StableDiffusionError(f"{path} is no safetensors file, and pickles are not read", wanted)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except (OSError, SafetensorError) as error:
        raise StableDiffusionError(f"{path} is damaged or truncated ({error})", wanted) from None
    for name, (_, key) in _KINDS.items():
        if key not in names:
            raise StableDiffusionError(f"{path} holds no {name} of Stable Diffusion ({key})", wanted)


def _load(name: str, files: StableDiffusionFiles, arguments: dict[str, Any]) -> ModelMixin:
    """Load one component and refuse one of which a tensor is missing, where diffusers would only warn."""
    cls, _ = _KINDS[name]
    shown = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        if files.place.is_file():
            network = _from_single_file(cls, files.place, arguments)
            missing = [key for key, value in network.state_dict().items() if value.is_meta]
        else:
            network, report = cls.from_pretrained(
                files.place,
                subfolder=name,
                variant=files.variants[name],
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            missing = report["missing_keys"]
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StableDiffusionError(
            f"{name} cannot be loaded ({reason})", f"{name} of {files.place}"
        ) from None
    finally:
        logging.set_verbosity(shown)
    if missing:
        raise StableDiffusionError(
            f"{name} lacks {len(missing)} tensors ({missing[0]})", f"{name} of {files.place}"
        )
    return network.eval()


def _from_single_file(cls: type[Any], path: Path, arguments: dict[str, Any]) -> ModelMixin:
    """Load a component of a single file by diffusers, which reads the network's description from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        description = {"_class_name": cls.__name__, **arguments}
        Path(folder, "config.json").write_text(json.dumps(description))
        return cls.from_single_file(
            str(path), config=folder, local_files_only=True, dtype=torch.float32
        )
