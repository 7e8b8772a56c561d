"""Tools that the models of all classes share: drawing numbers, pixel types, linear light, blending, smooth fields.

Images are uint8 sRGB arrays (h, w, 3) at the boundary of a model, float32 in [0, 1] inside.
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from diffrestorer.config.synthesis_ranges import REFERENCE_SIDE, IntRange, Range

Image = NDArray[np.uint8]
Field = NDArray[np.floating[Any]]

_SRGB = np.linspace(0.0, 1.0, 256)
TO_LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4).astype(
    np.float32
)
"""Table from 8-bit sRGB to linear light in [0, 1]."""
_LINEAR = np.linspace(0.0, 1.0, 1 << 16)
_TO_SRGB = np.where(_LINEAR <= 0.0031308, _LINEAR * 12.92, 1.055 * _LINEAR ** (1 / 2.4) - 0.055)
_TO_SRGB_8BIT = np.rint(_TO_SRGB * 255.0).astype(np.uint8)


def capsule(length: float, radius: float, angle: float, softness: float) -> Field:
    """Return a soft-edged disc of `radius` px, moved over `length` px at `angle` rad from the vertical.

    It is an odd square in [0, 1]. Its edge is `softness` px wide, so that a disc thinner than a pixel loses opacity
    instead of area.
    """
    half = math.ceil(length / 2 + radius + softness)
    offset = np.arange(-half, half + 1, dtype=np.float32)
    along = offset[:, None] * np.float32(math.cos(angle)) + offset[None, :] * np.float32(
        math.sin(angle)
    )
    across = offset[None, :] * np.float32(math.cos(angle)) - offset[:, None] * np.float32(
        math.sin(angle)
    )
    distance = np.hypot(np.maximum(np.abs(along) - np.float32(length / 2), 0.0), across)
    return np.asarray(np.clip((radius - distance) / softness + 0.5, 0.0, 1.0), np.float32)


def scatter(height: int, width: int, kernel: Field, density: float, rng: np.random.Generator) -> Field:
    """Return copies of `kernel` at random places, `density` per 1000 px, each of its own opacity: (h, w) in [0, 1]."""
    margin = kernel.shape[0] // 2
    tall, wide = height + 2 * margin, width + 2 * margin
    count = max(rng.poisson(density * tall * wide / 1000.0), 1)
    seeds = np.zeros((tall, wide), np.float32)
    seeds[rng.integers(tall, size=count), rng.integers(wide, size=count)] = rng.uniform(0.3, 1.0, count)
    spread = cv2.filter2D(seeds, -1, kernel, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(
        np.clip(spread[margin : margin + height, margin : margin + width], 0.0, 1.0), np.float32
    )


def blend(image: Field, over: Field | np.float32, opacity: Field) -> Field:
    """Lay `over` on `image` (h, w, 3) with an opacity (h, w) in [0, 1]."""
    return image + (over - image) * opacity[..., None]


def scale_of(image: Image) -> float:
    """Return the size of a structure in this image relative to its size in the reference image."""
    return float(min(image.shape[:2]) / REFERENCE_SIDE)


def draw(rng: np.random.Generator, values: Range) -> float:
    """Draw a number of a range; a range of one number uses no randomness."""
    low, high = values
    return float(low) if low == high else float(rng.uniform(low, high))


def draw_count(rng: np.random.Generator, values: IntRange) -> int:
    """Draw an integer of a range that includes both ends; a range of one number uses no randomness."""
    low, high = values
    return low if low == high else int(rng.integers(low, high + 1))


def to_float(image: Image) -> Field:
    """Convert 8-bit pixels to [0, 1]."""
    return image.astype(np.float32) / np.float32(255.0)


def to_bytes(image: Field) -> Image:
    """Clip to [0, 1] and round to 8 bits."""
    return np.asarray(np.rint(np.clip(image, 0.0, 1.0) * 255.0), np.uint8)


def linear_to_bytes(light: Field) -> Image:
    """Convert linear light in [0, 1] (clipped) to 8-bit sRGB, by table: exact to one grey level."""
    return np.asarray(
        _TO_SRGB_8BIT[np.rint(np.clip(light, 0.0, 1.0) * 65535.0).astype(np.uint16)], np.uint8
    )


def mix(strength: float, weak: float, strong: float) -> float:
    """Interpolate between the value at strength 0 and the value at strength 1."""
    return weak + (strong - weak) * strength


def ratio(strength: float, weak: float, strong: float) -> float:
    """Interpolate geometrically between two positive values."""
    return float(weak * (strong / weak) ** strength)


def soften(image: Field, sigma: float) -> Field:
    """Blur by a Gaussian of `sigma` px; borders reflect, and next to nothing is left alone."""
    if sigma < 0.2:
        return image
    side = 2 * math.ceil(3.0 * sigma) + 1
    return np.asarray(
        cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REFLECT), np.float32
    )


def gaussian_noise(shape: Sequence[int], rng: np.random.Generator) -> Field:
    """Draw standard normal numbers in float32."""
    return rng.standard_normal(tuple(shape), dtype=np.float32)


def smooth_field(height: int, width: int, cells: int, rng: np.random.Generator) -> Field:
    """Draw a smooth random field (h, w) in [0, 1] with about `cells` bumps along each side."""
    coarse = rng.random((cells + 1, cells + 1), dtype=np.float32)
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(field, 0.0, 1.0), np.float32)


def normalised(field: Field) -> Field:
    """Stretch a field to [0, 1]; a constant one becomes zero."""
    low, high = float(field.min()), float(field.max())
    return (field - np.float32(low)) / np.float32(max(high - low, 1e-6))


def overlay(image: Field, mask: Field, colour: Field, mode: str) -> Field:
    """Put something of a colour (3,) or (h, w, 3) on an image.

    Args:
        image: (h, w, 3) in [0, 1].
        mask: (h, w) in [0, 1].
        colour: of what is laid on, in [0, 1].
        mode: `alpha` covers, `screen` brightens without clipping, `add` adds light.
    """
    light = colour * mask[..., None]
    if mode == "alpha":
        return image * (1.0 - mask[..., None]) + light
    if mode == "screen":
        return np.asarray(1.0 - (1.0 - image) * (1.0 - light), np.float32)
    return image + light


def pale_colour(rng: np.random.Generator, low: float, high: float, tint: float = 0.03) -> Field:
    """Draw a grey of [low, high] whose channels differ from it by at most `tint`: (3,)."""
    colour = rng.uniform(low, high) + rng.uniform(-tint, tint, 3)
    return np.clip(colour, 0.0, 1.0).astype(np.float32)
