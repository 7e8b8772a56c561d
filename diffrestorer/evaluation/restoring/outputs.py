"""Files of an evaluation: outputs that appear whole and record what made them, digests, pixels."""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from diffrestorer.data.counter import counter_rng
from diffrestorer.data.images import ImageError, read_photo
from diffrestorer.data.storage import write_bytes

NOISE = "by image"
"""How noise is drawn, kept with every output: those made when all images shared one noise are made again."""

MADE_BY = "diffrestorer"
"""Keyword of the PNG text in which an output records what made it."""


PIXELS = "pixels"
"""Key of the digest that an output records of its own pixels."""


@dataclass(frozen=True)
class Restored:
    """Images in [0, 1], and the seconds per image, sampling included."""

    images: Float[Tensor, "b 3 h w"]
    seconds: float


def write_output(
    path: Path,
    pixels: np.ndarray,
    made_by: dict[str, Any],
) -> None:
    """Write uint8 pixels (h, w, 3) as a PNG that records what made it, and the digest of its pixels."""
    text = PngInfo()
    text.add_text(MADE_BY, json.dumps({**made_by, PIXELS: digest(pixels)}, sort_keys=True))
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="PNG", pnginfo=text)
    write_bytes(path, data.getvalue())


def made_by(path: Path) -> dict[str, Any] | None:
    """Return what `write_output` recorded in a file; None without the file, or where something else wrote it."""
    try:
        with Image.open(path) as image:
            return dict(json.loads(image.info.get(MADE_BY, "null")) or {}) or None
    except (OSError, ValueError):
        return None


def made_whole_by(path: Path) -> dict[str, Any] | None:
    """Return what made an output; None where `made_by` does, or where the pixels are damaged or not those it wrote.

    Outputs of older versions recorded no digest of their pixels. They count if they can be decoded.
    """
    made = made_by(path)
    if made is None:
        return None
    try:
        found = digest(read_pixels(path))
    except ValueError:
        return None
    return made if made.pop(PIXELS, found) == found else None


def digest(pixels: np.ndarray) -> str:
    """Return the digest of an image's pixels and size, 16 hexadecimal digits."""
    head = f"{pixels.shape}{pixels.dtype}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def joint_digest(digests: Iterable[str]) -> str:
    """Return the digest of several digests, in order."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]


def read_pixels(path: Path) -> np.ndarray:
    """Read an image file as uint8 RGB (h, w, 3).

    Raises:
        ValueError: it can't be read or is not 8-bit; the message names the file.
    """
    try:
        pixels = read_photo(path).pixels
    except ImageError as error:
        raise ValueError(f"{path}: {error}") from None
    if pixels.dtype != np.uint8:
        raise ValueError(f"{path}: it has 16 bits a channel; scores are defined on 8-bit files")
    return pixels


def image_size(path: Path) -> tuple[int, int]:
    """Return the height and width of an image file without decoding it.

    Raises:
        ValueError: it can't be read; the message names the file.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: it cannot be read ({error})") from None


def as_batch(images: Sequence[np.ndarray]) -> Float[Tensor, "b 3 h w"]:
    """Convert uint8 images (h, w, 3) of one size to RGB in [0, 1]."""
    levels = torch.from_numpy(np.stack(images))
    return levels.permute(0, 3, 1, 2).float() / 255


def noise_seed(seed: int, image: str) -> int:
    """Return the seed of an image's noise: every image starts from its own, whatever batch or process it is in.

    Args:
        seed: of the run.
        image: the image's name, `DEGRADATION/IMAGE.png`.
    """
    return int(counter_rng(seed, f"evaluation/{image}").integers(1 << 63))


def as_pixels(image: Float[Tensor, "3 h w"]) -> np.ndarray | None:
    """Convert RGB in [0, 1] to uint8 (h, w, 3), rounded to the nearest level; None where a number is not finite."""
    if not image.isfinite().all():
        return None
    levels = (image * 255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy())
