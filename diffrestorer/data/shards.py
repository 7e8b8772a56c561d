"""Making prepared pairs: which pairs a group holds, and a shard's pixels from its sources, by seed alone."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from diffrestorer.data.archives import whole_file
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.images import ImageError, read_photo
from diffrestorer.data.inventory import Source
from diffrestorer.data.manifest import address, row_hash
from diffrestorer.data.synthesis import degrade

SHARD_BYTES = 1 << 26
"""A shard is about this large: 42 pairs at 512 x 512."""


@dataclass(frozen=True)
class Settings:
    """What the pixels of a preparation depend on besides its sources.

    Attributes:
        size: side in pixels.
        fit: `resize` squeezes an image into the square (the paper), `crop` cuts one out (in the middle for tests).
        seed: of everything drawn.
    """

    size: int
    fit: str
    seed: int


@dataclass(frozen=True)
class Planned:
    """One pair to be made: of which source, and the how-manieth of that source (0: as it is, others augmented)."""

    source: Source
    copy: int


@dataclass(frozen=True)
class Group:
    """The pairs of one (set, split, degradation); `steps` are synthesised after the resize or crop."""

    set: str
    split: str
    degradation: str
    steps: tuple[str, ...]
    pairs: tuple[Planned, ...]

    @property
    def folder(self) -> str:
        """Where its shards lie, below the prepared folder."""
        return f"pairs/{self.set}/{self.split}/{self.degradation}"

    @property
    def sides(self) -> int:
        """Images a pair: 1 where there is no ground truth."""
        return 1 if self.pairs and self.pairs[0].source.gt is None else 2


def shard_rows(size: int) -> int:
    """Pairs a shard."""
    return max(1, SHARD_BYTES // (2 * size * size * 3))


def plan(sources: Sequence[Source], number: int, seed: int, stream: str) -> tuple[Planned, ...]:
    """`number` pairs of the sources: a sample without repetition if there are more, else every one as often as it takes.

    Args:
        stream: what the draw is for; streams are independent.

    Returns:
        In the order of the sources, copies of one after the other.
    """
    rounds, rest = divmod(number, len(sources))
    drawn = counter_rng(seed, f"sample {stream}").permutation(len(sources))[:rest]
    times = np.full(len(sources), rounds)
    times[drawn] += 1
    return tuple(Planned(source, copy) for source, count in zip(sources, times, strict=True) for copy in range(count))


def make_shard(out: Path, shard: Group, first: int, settings: Settings, skip_unreadable: bool) -> list[str]:
    """Makes one shard of a group, unless it is there: pixels, then rows.

    Args:
        out: the prepared folder.
        shard: the group with the pairs of this shard only.
        first: the place of its first pair in the group.
        settings: of the preparation.
        skip_unreadable: whether images that cannot be read cost their pairs only.

    Returns:
        The images that could not be read, with the reason. Without `skip_unreadable` nothing is written if there are
        any; with it their pairs are left out.

    Raises:
        ValueError: degraded and clean image differ in size.
    """
    name = f"{shard.folder}/{first // shard_rows(settings.size):05d}"
    if (out / f"{name}.json").exists():
        return []
    images, rows, unreadable = [], [], []
    for index, planned in enumerate(shard.pairs, start=first):
        rng = counter_rng(settings.seed, f"prepare {shard.folder}", index)
        try:
            pair, augmentation = _make_pair(shard, planned, settings, rng)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        row = len(rows)
        rows.append(
            {
                "lq": address(f"{name}.npy", row, 0),
                "gt": address(f"{name}.npy", row, 1) if len(pair) == 2 else None,
                "degradation": shard.degradation,
                "split": shard.split,
                "set": shard.set,
                "seed": settings.seed,
                "augmentation": f"{planned.source.key} {augmentation}".strip(),
                "sha256": row_hash(pair),
            }
        )
        images.append(pair)
    if unreadable and not skip_unreadable:
        return unreadable
    shape = (0, shard.sides, settings.size, settings.size, 3)
    with whole_file(out / f"{name}.npy") as file:
        np.save(file, np.stack(images) if images else np.empty(shape, np.uint8))
    with whole_file(out / f"{name}.json") as file:
        file.write(json.dumps(rows).encode())
    return unreadable


def _make_pair(
    group: Group, planned: Planned, settings: Settings, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """Stored pixels (1 or 2, size, size, 3) of a pair, and what its images went through together."""
    source = planned.source
    paths = [path for path in (source.lq, source.gt) if path is not None]
    originals = [_read(path) for path in paths]
    if len({image.shape for image in originals}) > 1:
        shapes = " and ".join(
            f"{path} {image.shape[1]}x{image.shape[0]}" for path, image in zip(paths, originals, strict=True)
        )
        raise ValueError(f"a pair differs in size: {shapes}")
    geometry = _draw_geometry(originals[0].shape[:2], planned.copy, group.split == "train", settings, rng)
    images = [_apply(image, geometry, settings.size) for image in originals]
    lq = images[0]
    for step in group.steps:
        lq = degrade(lq, step, rng)
    pair = np.stack([lq, images[-1]]) if source.gt is not None else lq[None]
    words = {"crop": ",".join(map(str, geometry.window))} | {
        name: value for name, value in asdict(geometry).items() if name != "window" and value
    }
    return pair, " ".join(f"{name}={value}" for name, value in words.items())


def _read(path: Path) -> np.ndarray:
    try:
        pixels = read_photo(path).pixels
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


@dataclass(frozen=True)
class _Geometry:
    """Window (top, left, height, width), quarter turns, mirroring, degrees of rotation and shear of the result."""

    window: tuple[int, int, int, int]
    turns: int = 0
    flip: int = 0
    angle: float = 0.0
    shear: float = 0.0


def _draw_geometry(
    shape: tuple[int, ...], copy: int, training: bool, settings: Settings, rng: np.random.Generator
) -> _Geometry:
    """The plain resize or crop for a source's first copy; random windows, turns, mirroring and affine for the others."""
    height, width = shape
    if settings.fit == "crop":
        high = wide = min(settings.size, height, width)
        if training and copy:
            high = wide = int(rng.integers((high + 1) // 2, min(height, width) + 1))
    else:
        share = rng.uniform(0.6, 1.0) if copy else 1.0
        high, wide = max(1, round(share * height)), max(1, round(share * width))
    if training and (copy or settings.fit == "crop"):
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    else:
        top, left = (height - high) // 2, (width - wide) // 2
    if not copy:
        return _Geometry((top, left, high, wide))
    turns, flip = int(rng.integers(4)), int(rng.integers(2))
    affine = rng.random() < 0.5
    angle, shear = (round(float(rng.uniform(-limit, limit)), 2) if affine else 0.0 for limit in (10.0, 0.1))
    return _Geometry((top, left, high, wide), turns, flip, angle, shear)


def _apply(image: np.ndarray, geometry: _Geometry, size: int) -> np.ndarray:
    """The same for every image of a pair: window, resize, quarter turns, mirror, affine map about the middle."""
    top, left, high, wide = geometry.window
    image = image[top : top + high, left : left + wide]
    if image.shape[:2] != (size, size):
        smaller = high * wide >= size * size
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    image = np.rot90(image, geometry.turns)
    image = np.ascontiguousarray(image[:, ::-1] if geometry.flip else image)
    if geometry.angle or geometry.shear:
        middle = (size - 1) / 2
        matrix = cv2.getRotationMatrix2D((middle, middle), geometry.angle, 1.0)
        matrix[0, 1] += geometry.shear
        matrix[0, 2] -= geometry.shear * middle
        image = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(image, np.uint8)


def group_record(group: Group, settings: Settings) -> dict[str, Any]:
    """What identifies a group's content: settings, steps, and its pairs by key and file size."""
    sizes = {
        path: path.stat().st_size
        for planned in group.pairs
        for path in (planned.source.lq, planned.source.gt)
        if path is not None
    }
    pairs = [
        [planned.source.key, planned.copy, *(sizes[p] for p in (planned.source.lq, planned.source.gt) if p is not None)]
        for planned in group.pairs
    ]
    return {**asdict(settings), "steps": list(group.steps), "pairs": pairs}
