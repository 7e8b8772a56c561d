"""Lossless codecs of a stored pair: `zstd`, whose decoding training hardly notices, and `webp`, which is smallest.

Measured on scikit-image's photos under the eight degradations, 512 x 512, one core, decoding per pair of images:

| codec | size beside raw pixels | encoding | decoding |
|---|---|---|---|
| zstd of differences | 0.44 | 6 ms | 2.2 ms |
| WebP, method 4 | 0.37 | 360 ms | 11 ms |
| PNG, level 6 (imagecodecs' decoder, the fastest of three) | 0.47 | 156 ms | 12 ms |

PNG is larger than zstd and slower than both, so that it is no choice here. Pillow and OpenCV decode the same WebP in
13 and 12 ms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import imagecodecs
import numpy as np
from jaxtyping import UInt8

Pixels = UInt8[np.ndarray, "sides 3 h w"]


@dataclass(frozen=True)
class Codec:
    """A lossless codec of a pair's images.

    Attributes:
        encode: pixels to a frame.
        decode: a frame and the shape of its pixels to the pixels; raises an error of the codec's own.
    """

    encode: Callable[[Pixels], bytes]
    decode: Callable[[bytes, tuple[int, ...]], Pixels]


def _encode_zstd(pixels: Pixels) -> bytes:
    """Compress the differences of neighbouring rows, and of red and blue from green."""
    # Rows come first, so that decoding adds a row of all images and channels in one call.
    rows = pixels.transpose(2, 0, 1, 3).copy()
    rows[:, :, 0] -= rows[:, :, 1]
    rows[:, :, 2] -= rows[:, :, 1]
    rows[1:] -= rows[:-1].copy()
    return bytes(imagecodecs.zstd_encode(rows.tobytes(), level=1))


def _decode_zstd(frame: bytes, shape: tuple[int, ...]) -> Pixels:
    """Undo `_encode_zstd`. The sums wrap around at 256 as the differences did."""
    sides, channels, height, width = shape
    flat = np.empty(height * sides * channels * width, np.uint8)
    if len(imagecodecs.zstd_decode(frame, out=flat.data)) != len(flat):
        raise ValueError("the frame has other pixels than its shard")

    # A loop over rows is ten times as fast as numpy's accumulate over them.
    for above, below in pairwise(flat.reshape(height, -1)):
        np.add(below, above, out=below)
    rows = flat.reshape(height, sides, channels, width)
    rows[:, :, 0] += rows[:, :, 1]
    rows[:, :, 2] += rows[:, :, 1]
    return rows.transpose(1, 2, 0, 3)


def _encode_webp(pixels: Pixels) -> bytes:
    """Encode the images as one, the degraded one above the clean one."""
    image = pixels.transpose(0, 2, 3, 1).reshape(-1, pixels.shape[-1], 3)
    return bytes(imagecodecs.webp_encode(np.ascontiguousarray(image), lossless=True, method=4))


def _decode_webp(frame: bytes, shape: tuple[int, ...]) -> Pixels:
    """Undo `_encode_webp`."""
    sides, channels, height, width = shape
    image = imagecodecs.webp_decode(frame)
    if image.shape != (sides * height, width, channels):
        raise ValueError("the frame has other pixels than its shard")
    return image.reshape(sides, height, width, channels).transpose(0, 3, 1, 2)


CODECS = {"zstd": Codec(_encode_zstd, _decode_zstd), "webp": Codec(_encode_webp, _decode_webp)}
"""Codecs by the name that `diffrestorer prepare compress=NAME` and the header of a shard give them."""
