"""Compression: JPEG of two encoders, once or twice, on the grid of another size; held out: other quantisers."""

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import JpegPresets

from diffrestorer.data.degrading.pixels import Image, mix, ratio

_SAMPLING = {
    "444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "422": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
}
_NAMES = tuple(_SAMPLING)
_SOFTWARE = (
    "low",
    "medium",
    "web_low",
    "web_medium",
    "web_high",
)  # presets whose tables differ in shape
_WEAK, _STRONG = 92.0, 5.0  # quality


def opencv(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Compress once with OpenCV's encoder and one of three chroma samplings."""
    return through_opencv(image, round(ratio(strength, _WEAK, _STRONG)), _NAMES[rng.integers(3)])


def pillow(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Compress once with Pillow's encoder and quantisation tables as photo software brings its own."""
    shape: Any = JpegPresets.presets[_SOFTWARE[rng.integers(len(_SOFTWARE))]]["quantization"]
    luma, chroma = (np.array(table, np.float64) for table in shape)
    factor = ratio(strength, 9.0, 200.0) / luma.mean()
    tables = [np.clip(np.rint(table * factor), 1, 255).astype(int).tolist() for table in (luma, chroma)]
    return _through_pillow(image, "JPEG", {"qtables": tables, "subsampling": int(rng.integers(3))})


def double(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Compress twice, the second time on a grid of blocks that is shifted against the first, as after a crop."""
    height, width = image.shape[:2]
    down, right = (int(shift) for shift in rng.integers(1, 8, 2))
    padded = cv2.copyMakeBorder(image, down, 0, right, 0, cv2.BORDER_REFLECT)

    # One of the two is stronger, and either may come first.
    strong = ratio(strength, 94.0, _STRONG)
    qualities = [round(strong), round(rng.uniform(strong, 95.0))]
    rng.shuffle(qualities)
    first = through_opencv(padded, qualities[0], _NAMES[rng.integers(3)])
    second = np.ascontiguousarray(first[down : down + height, right : right + width])
    return through_opencv(second, qualities[1], _NAMES[rng.integers(3)])


def rescaled(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Compress at another size and return to this one: blocks of 8 px become smaller or larger."""
    height, width = image.shape[:2]

    # Enlarging loses nothing; a photo that was shrunk loses detail, so that belongs to the strong ones.
    factor = rng.uniform(1.1, 1.8)
    if rng.random() < 0.6 * strength:
        factor = 1.0 / rng.uniform(1.05, mix(strength, 1.1, 1.8))
    other = (max(round(width * factor), 1), max(round(height * factor), 1))
    shrunk = cv2.resize(image, other, interpolation=cv2.INTER_CUBIC if factor > 1.0 else cv2.INTER_AREA)
    compressed = through_opencv(shrunk, round(ratio(strength, _WEAK, _STRONG)), _NAMES[rng.integers(3)])
    back = (cv2.INTER_AREA,) if factor > 1.0 else (cv2.INTER_LINEAR, cv2.INTER_CUBIC)
    return cv2.resize(compressed, (width, height), interpolation=back[rng.integers(len(back))])


def reencoded(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Held out: JPEG with quantisation tables of other shapes, then WebP or a second JPEG, both by Pillow."""
    height, width = image.shape[:2]

    # Flat to steep tables, none of them the standard's, whose entries grow by another rule.
    frequency = np.add.outer(np.arange(8), np.arange(8)).ravel()
    slope = rng.uniform(0.5, 5.0)
    coarseness = mix(strength**1.5, 1.5, 75.0)
    luma = np.clip(np.rint(coarseness * (0.6 + slope * frequency / 14.0) / (0.6 + slope / 2.0)), 1, 255)
    chroma = np.clip(np.rint(luma * rng.uniform(1.0, 2.0)), 1, 255)
    tables = [[int(entry) for entry in table] for table in (luma, chroma)]
    first = _through_pillow(image, "JPEG", {"qtables": tables, "subsampling": int(rng.integers(3))})

    # A messenger crops and compresses again.
    shift = int(rng.integers(1, 8))
    padded = cv2.copyMakeBorder(first, shift, 0, shift, 0, cv2.BORDER_REFLECT)
    quality = round(ratio(strength, 96.0, 8.0))
    kind = ("JPEG", "WEBP")[rng.integers(2)]
    second = _through_pillow(padded, kind, {"quality": quality})
    return np.ascontiguousarray(second[shift : shift + height, shift : shift + width])


def through_opencv(image: Image, quality: int, sampling: str) -> Image:
    """Encode as JPEG and decode again.

    Args:
        image: uint8 (h, w, 3).
        quality: 1 to 100.
        sampling: of chroma: `444`, `422` or `420`.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SAMPLING[sampling]]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return np.asarray(
        cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), np.uint8
    )


def _through_pillow(image: Image, kind: str, options: dict[str, object]) -> Image:
    file = io.BytesIO()
    PillowImage.fromarray(image).save(file, kind, **options)
    return np.array(PillowImage.open(file).convert("RGB"))
