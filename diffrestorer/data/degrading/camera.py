"""The camera's own processing after a degradation: mild resampling, JPEG of high quality, a gentle tone curve."""

import cv2
import numpy as np

from diffrestorer.data.degrading.jpeg import through_opencv
from diffrestorer.data.degrading.pixels import Image

_CURVE = 0.04  # largest change of a tone: no more than anybody would call a degradation of its own
_RESAMPLING = (1.05, 1.4)


def process(image: Image, rng: np.random.Generator) -> Image:
    """Apply one or more of the three steps to a uint8 image (h, w, 3), each half of the time."""
    height, width = image.shape[:2]

    # Larger and back: the grid of pixels loses a little contrast and the noise becomes correlated.
    if rng.random() < 0.5:
        factor = rng.uniform(*_RESAMPLING)
        larger = (max(round(width * factor), 1), max(round(height * factor), 1))
        method = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)]
        image = cv2.resize(
            cv2.resize(image, larger, interpolation=method),
            (width, height),
            interpolation=cv2.INTER_AREA,
        )

    # A curve that keeps black and white and bends the middle either way.
    if rng.random() < 0.5:
        tones = np.linspace(0.0, 1.0, 256)
        bent = tones + rng.uniform(-_CURVE, _CURVE) * 4.0 * tones * (1.0 - tones)
        image = cv2.LUT(image, np.rint(np.clip(bent, 0.0, 1.0) * 255.0).astype(np.uint8))

    if rng.random() < 0.5:
        image = through_opencv(image, int(rng.integers(85, 98)), "420")
    return np.ascontiguousarray(image)
