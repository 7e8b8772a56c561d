"""Photos that training crops come from; the newest ones stay in memory."""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from diffrestorer.data.images import ImageError, read_photo


@lru_cache(maxsize=256)
def read_pixels(path: Path, min_side: int) -> np.ndarray:
    """Read a photo's 8-bit pixels (h, w, 3), enlarged if a side is shorter than `min_side`; the newest stay in memory.

    Raises:
        ImageError: it cannot be read; the message begins with its path.
    """
    try:
        pixels = read_photo(path).pixels
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    scale = min_side / min(pixels.shape[:2])
    if scale > 1:
        size = tuple(max(min_side, round(side * scale)) for side in pixels.shape[1::-1])
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)
    return pixels
