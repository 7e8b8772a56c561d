"""CLIP's weights for DA-CLIP, refused where they were trained with another activation than the network has."""

from pathlib import Path

import torch
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from torch import Tensor

from diffrestorer.models.backbones import ImageEncoder
from diffrestorer.models.pretrained import load_clip_weights

ARCHITECTURE = "ViT-B-32"


def load_clip(encoder: ImageEncoder, weights: str) -> None:
    """Load CLIP's ViT-B/32 into an image encoder.

    Args:
        encoder: the image encoder, whose `quick_gelu` says which activation it has.
        weights: a tag of open_clip (`laion2b_s34b_b79k`, `openai`), a file, or `mini` for the bundled image encoder.

    Raises:
        ValueError: the weights can't be had, do not fit, or were trained with the other activation.
    """
    has_quick_gelu = bool(encoder.config.quick_gelu)
    if weights != "mini":
        known = None if Path(weights).is_file() else _activation_of(weights)
        _check_activation(weights, has_quick_gelu, known)
    architecture = f"{ARCHITECTURE}-quickgelu" if has_quick_gelu else ARCHITECTURE
    load_clip_weights(encoder, architecture, weights, "clip")

    # A file does not say its activation, but OpenAI's numbers betray themselves.
    if Path(weights).is_file():
        _check_activation(weights, has_quick_gelu, True if _is_half_precision(encoder.state_dict()) else None)


def _activation_of(tag: str) -> bool:
    """Return whether a tag's weights were trained with QuickGELU, as open_clip's catalogue says."""
    tags = list_pretrained_tags_by_model(ARCHITECTURE)
    if tag not in tags:
        raise ValueError(f"clip={tag} is neither a file nor a tag of open_clip's {ARCHITECTURE}: {', '.join(tags)}")
    return bool(get_pretrained_cfg(ARCHITECTURE, tag).get("quick_gelu", False))


def _check_activation(weights: str, has_quick_gelu: bool, wants_quick_gelu: bool | None) -> None:
    if wants_quick_gelu is None or wants_quick_gelu == has_quick_gelu:
        return
    wanted, found = ("QuickGELU", "GELU") if wants_quick_gelu else ("GELU", "QuickGELU")
    vision = "vision_cfg:{image_size:224,layers:12,width:768,patch_size:32},embed_dim:512"
    raise ValueError(
        f"clip={weights} was trained with {wanted}, the network has {found}: take other weights, or give "
        f"network.image_encoder={{{vision},quick_gelu:{str(wants_quick_gelu).lower()}}}"
    )


def _is_half_precision(state: dict[str, Tensor]) -> bool:
    """Return whether every matrix holds half-precision numbers: OpenAI published its CLIP, and no other, as such."""
    matrices = [value for value in state.values() if value.ndim > 1]
    return all(torch.equal(value.half().float(), value.float()) for value in matrices)
