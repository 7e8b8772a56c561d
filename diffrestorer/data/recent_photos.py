"""Photos that training crops come from. The most recent ones stay in memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path

import cv2
import numpy as np

from diffrestorer.data.images import ImageError, read_photo

_MOST_BYTES = 512 << 20  # per process; a decoded photo of 24 megapixels takes 72 MB


class RecentArrays:
    """Cache of arrays, bounded by their bytes. The least recently used ones are dropped first.

    Threads may share it. Two threads that miss the same key at the same time both make its array.

    Args:
        max_bytes: limit on the sum of all arrays. A single array above it is never kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._arrays: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the array of a key, from the cache or else from `make`, whose exceptions pass through."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = make()
        with self._lock:
            self._keep(key, array)
        return array

    def _keep(self, key: Hashable, array: np.ndarray) -> None:
        """Add an array, after dropping as many of the least recently used as it needs room for."""
        if array.nbytes > self._max_bytes or key in self._arrays:
            return
        while self._bytes + array.nbytes > self._max_bytes:
            _, oldest = self._arrays.popitem(last=False)
            self._bytes -= oldest.nbytes
        self._arrays[key] = array
        self._bytes += array.nbytes


_recent = RecentArrays(_MOST_BYTES)


def read_pixels(path: Path, min_side: int) -> np.ndarray:
    """Read a photo's 8-bit pixels (h, w, 3), enlarged if a side is shorter than `min_side`.

    The most recent photos stay in memory, up to 512 MiB per process. A change to such a file goes unnoticed.

    Raises:
        ImageError: it cannot be read; the message begins with its path.
    """
    return _recent.get((path, min_side), lambda: _decode(path, min_side))


def _decode(path: Path, min_side: int) -> np.ndarray:
    """Decode a photo as `read_pixels` returns it."""
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
