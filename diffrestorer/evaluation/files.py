"""Files of an evaluation: text and copies that appear whole or not at all, digests, pixels with a clear refusal."""

import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffrestorer.data.images import ImageError, read_photo


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, and its folder, so that it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file so that it appears whole or not at all."""
    write_bytes(path, text.encode())


def sha256(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_pixels(path: Path) -> np.ndarray:
    """An image file as uint8 RGB (h, w, 3).

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


def read_batch(paths: Sequence[Path]) -> Float[Tensor, "b 3 h w"]:
    """Image files of one size as RGB in [0, 1]."""
    pixels = np.stack([read_pixels(path) for path in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
