"""The geometry of a prepared pair: the window, turns and slant that both of its images go through."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Geometry:
    """A window (top, left, height, width), quarter turns, mirroring, degrees of rotation and shear of the result."""

    window: tuple[int, int, int, int]
    turns: int = 0
    flip: int = 0
    angle: float = 0.0
    shear: float = 0.0


def draw_geometry(
    shape: tuple[int, ...], copy: int, training: bool, size: int, fit: str, rng: np.random.Generator
) -> Geometry:
    """Draw the geometry of a pair: a plain resize or crop for a source's first copy, a random one for the others.

    Args:
        shape: height and width of the source's images.
        copy: number of the copy; 0 is the unaugmented original.
        training: whether windows may be drawn at random; those of a test are in the middle.
        size: side of the result in pixels.
        fit: `resize` or `crop`, see `Settings`.
        rng: draws everything.
    """
    # The window: all of the image or a square of it, smaller for further copies.
    height, width = shape
    if fit == "crop":
        high = wide = min(size, height, width)
    else:
        share = rng.uniform(0.6, 1.0) if copy else 1.0
        high, wide = max(1, round(share * height)), max(1, round(share * width))
    if training and (copy or fit == "crop"):
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    else:
        top, left = (height - high) // 2, (width - wide) // 2
    if not copy:
        return Geometry((top, left, high, wide))

    # Further copies are also turned, mirrored, and half of them slanted a little.
    turns, flip = int(rng.integers(4)), int(rng.integers(2))
    affine = rng.random() < 0.5
    angle, shear = (
        round(float(rng.uniform(-limit, limit)), 2) if affine else 0.0 for limit in (10.0, 0.1)
    )
    return Geometry((top, left, high, wide), turns, flip, angle, shear)


def apply_geometry(image: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
    """Apply the same to every image of a pair: window, resize, quarter turns, mirror, affine map about the middle."""
    top, left, high, wide = geometry.window
    image = image[top : top + high, left : left + wide]
    if image.shape[:2] != (size, size):
        smaller = high * wide >= size * size
        image = cv2.resize(
            image, (size, size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        )

    # Quarter turns and mirroring are exact; the affine map interpolates, so it comes last.
    image = np.rot90(image, geometry.turns)
    image = np.ascontiguousarray(image[:, ::-1] if geometry.flip else image)
    if geometry.angle or geometry.shear:
        middle = (size - 1) / 2
        matrix = cv2.getRotationMatrix2D((middle, middle), geometry.angle, 1.0)
        matrix[0, 1] += geometry.shear
        matrix[0, 2] -= geometry.shear * middle
        image = cv2.warpAffine(
            image, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )
    return np.asarray(image, np.uint8)
