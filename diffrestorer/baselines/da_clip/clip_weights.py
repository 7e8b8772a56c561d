"""CLIP's weights for DA-CLIP, refused where they were trained with another activation than the network has."""

from pathlib import Path

import torch
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from torch import Tensor

from diffrestorer.models.backbones import ImageEncoder
from diffrestorer.models.pretrained import load_clip_weights

ARCHITECTURE = "ViT-B-32"


def load_clip(encoder: ImageEncoder, weights: str, architecture: str = ARCHITECTURE) -> None:
    """Load CLIP's image tower into an image encoder.

    Args:
        encoder: the image encoder, whose `quick_gelu` says which activation it has.
        weights: a tag of open_clip (`laion2b_s34b_b79k`, `openai`), a file, a folder, or `mini` (bundled).
        architecture: open_clip's name of the tower with GELU.

    Raises:
        ValueError: the weights can't be had, do not fit, or were trained with the other activation.
    """
    if weights == "mini":
        load_clip_weights(encoder, architecture, weights, "clip")
        return

    # Tags are in open_clip's catalogue.
    is_file = Path(weights).exists()
    if not is_file:
        _check_activation(encoder, _activation_of(weights, architecture), f"clip={weights}")
    full_name = f"{architecture}-quickgelu" if encoder.config.quick_gelu else architecture
    try:
        load_clip_weights(encoder, full_name, weights, "clip")
    except ValueError as error:
        reason = str(error).partition(" (")[2].partition("):")[0]
        raise ValueError(
            f"clip={weights} can't be loaded ({reason}): give clip=FILE or FOLDER with a {architecture}"
        ) from None

    # A file does not say its activation, but OpenAI's numbers do: they are half-precision ones, and LAION's are not.
    if is_file:
        is_half = _is_half_precision(encoder.state_dict())
        kind = "of half precision as OpenAI's" if is_half else "of full precision as LAION's"
        _check_activation(encoder, is_half, f"clip={weights}, {kind},")


def _activation_of(tag: str, architecture: str) -> bool:
    """Return whether a tag's weights were trained with QuickGELU, by open_clip's catalogue."""
    tags = list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise ValueError(
            f"clip={tag} is neither a file nor a tag of open_clip's {architecture}: {', '.join(tags)}"
        )
    return bool(get_pretrained_cfg(architecture, tag).get("quick_gelu", False))


def _check_activation(encoder: ImageEncoder, wants_quick_gelu: bool, weights: str) -> None:
    """Refuse weights, which the message calls `weights`, where the encoder has the other activation."""
    if wants_quick_gelu == bool(encoder.config.quick_gelu):
        return
    wanted, found = ("QuickGELU", "GELU") if wants_quick_gelu else ("GELU", "QuickGELU")
    vision = "vision_cfg:{image_size:224,layers:12,width:768,patch_size:32},embed_dim:512"
    raise ValueError(
        f"{weights} was trained with {wanted}, and the network has {found}: take other weights, or give "
        f"network.image_encoder={{{vision},quick_gelu:{str(wants_quick_gelu).lower()}}}"
    )


def _is_half_precision(state: dict[str, Tensor]) -> bool:
    """Return whether every matrix holds half-precision numbers."""
    matrices = [value for value in state.values() if value.ndim > 1]
    return all(torch.equal(value.half().float(), value.float()) for value in matrices)
