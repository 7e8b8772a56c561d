"""The suites that methods are compared on: pairs of PNG files, made once, the same for every method.

A suite is a function from the configuration to a `Suite`; a new one joins `SUITES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from diffrestorer.config.schema import EvaluateConfig
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.images import ImageError, Photo, read_photo, write_photo
from diffrestorer.data.synthesis import degrade
from diffrestorer.degradations import DEGRADATIONS, MIXTURES

DEMO_PHOTOS: tuple[str, ...] = ("astronaut", "coffee", "chelsea", "rocket", "motorcycle")
"""Photos in scikit-image's wheel (CC0 or public domain), in the order of their index in the random streams."""

DEMO_SHORTER_SIDE = 288
"""Photos are shrunk to this shorter side before the crop (the smallest is 300), so that a crop of 256 shows a scene."""


@dataclass(frozen=True)
class Item:
    """A pair of a suite.

    Attributes:
        degradation: a class or a mixture.
        image: the photo's name, unique within a degradation.
        gt, lq: PNG files of the clean and the degraded photo, of one size.
    """

    degradation: str
    image: str
    gt: Path
    lq: Path

    @property
    def file(self) -> str:
        """Where a method's output for this item lies in that method's folder: `DEGRADATION/NAME.png`."""
        return f"{self.degradation}/{self.image}.png"


@dataclass(frozen=True)
class Suite:
    """Pairs of one size, ordered by degradation, then by image."""

    name: str
    items: tuple[Item, ...]

    @property
    def degradations(self) -> list[str]:
        """Names of the degradations, in order."""
        return list(dict.fromkeys(item.degradation for item in self.items))

    @property
    def images(self) -> list[str]:
        """Names of the photos, in order."""
        return list(dict.fromkeys(item.image for item in self.items))


def build_suite(config: EvaluateConfig) -> Suite:
    """The suite `config.suite`; its files lie under `config.output_dir`/suite and are written where they are missing.

    Raises:
        ValueError: an unknown suite, or a size or number of images that it can't give.
    """
    if config.suite not in SUITES:
        raise ValueError(f"suite={config.suite} is not there: this version has {', '.join(SUITES)} only")
    return SUITES[config.suite](config)


def _demo(config: EvaluateConfig) -> Suite:
    """Photos of scikit-image under all eight degradations and the four mixtures, `config.size` pixels a side."""
    if not 64 <= config.size <= DEMO_SHORTER_SIDE:
        raise ValueError(f"size={config.size}: the demo's photos are 64 to {DEMO_SHORTER_SIDE} pixels a side")
    count = len(DEMO_PHOTOS) if config.images is None else config.images
    if not 1 <= count <= len(DEMO_PHOTOS):
        raise ValueError(f"images={count}: the demo has 1 to {len(DEMO_PHOTOS)} photos")
    names = DEMO_PHOTOS[:count]
    folder = Path(config.output_dir) / "suite"
    clean = [_demo_photo(name, config.size) for name in names]
    for name, gt in zip(names, clean, strict=True):
        _write(folder / "gt" / f"{name}.png", gt)
    items = []
    for degradation in (*DEGRADATIONS, *MIXTURES):
        for index, (name, gt) in enumerate(zip(names, clean, strict=True)):
            rng = counter_rng(config.seed, f"suite/{degradation}", index)
            item = Item(degradation, name, folder / "gt" / f"{name}.png", folder / "lq" / degradation / f"{name}.png")
            _write(item.lq, degrade(gt, degradation, rng))
            items.append(item)
    return Suite("demo", tuple(items))


SUITES: dict[str, Callable[[EvaluateConfig], Suite]] = {"demo": _demo}


def _demo_photo(name: str, size: int) -> np.ndarray:
    """A photo as uint8 (size, size, 3): shrunk by area to the shorter side, then its centre."""
    try:
        import skimage.data
    except ImportError:
        raise ValueError("the demo's photos need scikit-image: pip install 'diffrestorer[eval]'") from None
    photo = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
    scale = DEMO_SHORTER_SIDE / min(photo.shape[:2])
    height, width = (round(side * scale) for side in photo.shape[:2])
    photo = cv2.resize(photo[..., :3], (width, height), interpolation=cv2.INTER_AREA)
    top, left = (height - size) // 2, (width - size) // 2
    return np.ascontiguousarray(photo[top : top + size, left : left + size])


def _write(path: Path, pixels: np.ndarray) -> None:
    """Writes a PNG unless the file already holds these pixels."""
    try:
        if np.array_equal(read_photo(path).pixels, pixels):
            return
    except ImageError:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_photo(path, Photo(pixels))
