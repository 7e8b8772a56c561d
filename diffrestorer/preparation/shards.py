"""Making prepared pairs: which pairs a group holds, and a shard's images from its sources, by seed alone."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffrestorer.config.synthesis_ranges import Synthesis
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.images import ImageError, read_photo
from diffrestorer.data.manifest import SCHEMA, CleanImage, address, pair_hash
from diffrestorer.data.storage import fit_name, whole_file
from diffrestorer.data.synthesis import degrade
from diffrestorer.preparation.geometry import apply_geometry, draw_geometry
from diffrestorer.preparation.inventory import Source, file_hash
from diffrestorer.preparation.shard_files import RAW, shard_name, write_shard

SHARD_BYTES = 1 << 28
"""A shard is about this large: 170 pairs at 512 x 512."""

_SIDES = ("lq", "gt")


@dataclass(frozen=True)
class Settings:
    """The settings, besides its sources, that the pixels of a preparation depend on.

    Attributes:
        size: side in pixels.
        fit: `resize` squeezes an image into the square (the paper), `crop` cuts one out (in the middle for tests).
        seed: of everything drawn.
        synthesis: strength of what is synthesised.
        compress: codec of training shards; their pixels do not depend on it.
    """

    size: int
    fit: str
    seed: int
    synthesis: Synthesis
    compress: str = RAW


@dataclass(frozen=True)
class Planned:
    """A pair to be made: its source and the copy number (0 is the unaugmented original)."""

    source: Source
    copy: int


@dataclass(frozen=True)
class Group:
    """The pairs of one (set, split, degradation), or a run of them: a shard.

    Attributes:
        steps: degradations synthesised after the resize or crop.
        names: of the test images, one per pair and unique; unused in training.
        first: place of the first pair in its whole group.
    """

    set: str
    split: str
    degradation: str
    steps: tuple[str, ...]
    pairs: tuple[Planned, ...]
    names: tuple[str, ...]
    first: int = 0

    @property
    def folder(self) -> str:
        """Folder of its files, below the prepared folder."""
        return f"pairs/{self.set}/{self.split}/{self.degradation}"

    @property
    def num_images(self) -> int:
        """Number of images: two per pair, one if there is no ground truth."""
        return sum(1 if planned.source.gt is None else 2 for planned in self.pairs)

    def shards(self, size: int) -> list["Group"]:
        """Return the group in runs of about `SHARD_BYTES`."""
        step = max(1, SHARD_BYTES // (2 * 3 * size * size))
        return [
            Group(
                self.set,
                self.split,
                self.degradation,
                self.steps,
                self.pairs[i : i + step],
                self.names[i : i + step],
                i,
            )
            for i in range(0, len(self.pairs), step)
        ]


@dataclass
class Problems:
    """Pairs that could not be made, a sentence each: a file is unreadable, or its two images differ in size."""

    unreadable: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)


def plan(sources: Sequence[Source], number: int, seed: int, stream: str) -> tuple[Planned, ...]:
    """Draw `number` pairs of the sources: a sample without repetition if there are more, else each equally often.

    Args:
        stream: what the draw is for; streams are independent.

    Returns:
        In the order of the sources, copies of one after the other.
    """
    rounds, rest = divmod(number, len(sources))
    times = np.full(len(sources), rounds)
    times[counter_rng(seed, f"sample {stream}").permutation(len(sources))[:rest]] += 1
    return tuple(
        Planned(source, copy)
        for source, count in zip(sources, times, strict=True)
        for copy in range(count)
    )


def file_names(pairs: Sequence[Planned]) -> tuple[str, ...]:
    """Return a file name for each pair: its source's name, numbered if several have the same."""
    return test_names([planned.source.name for planned in pairs])


def test_names(sources: Sequence[str]) -> tuple[str, ...]:
    """Return file names of pairs whose sources have these names: unique on any file system, without suffix."""
    seen: Counter[str] = Counter()
    names = []
    for source in sources:
        # Numbered until the name is free: a source may be called what another's number makes.
        name = numbered = source.replace("/", "_")
        while seen[numbered.lower()]:
            seen[name.lower()] += 1
            numbered = f"{name}__{seen[name.lower()]}"
        seen[numbered.lower()] += 1
        names.append(fit_name(numbered, ".png").removesuffix(".png"))
    return tuple(names)


def pair_stream(folder: str, source: str) -> str:
    """Return the random stream of a source's pairs in a group's folder; a pair's index in it is its copy."""
    return f"{folder} {source}"


def group_record(group: Group, settings: Settings) -> dict[str, Any]:
    """Return what identifies a group's content: settings, steps, and its pairs by name and file sizes."""
    paths = {
        path
        for planned in group.pairs
        for path in (planned.source.lq, planned.source.gt)
        if path is not None
    }
    sizes: dict[Path | None, int | None] = {None: None} | {path: path.stat().st_size for path in paths}
    pairs = [[p.source.name, p.copy, sizes[p.source.lq], sizes[p.source.gt]] for p in group.pairs]
    settled = asdict(settings)
    if group.split != "train" or settings.compress == RAW:
        del settled["compress"]
    return {**settled, "steps": list(group.steps), "pairs": pairs}


def make_shard(out: Path, shard: Group, settings: Settings, skip_unreadable: bool) -> Problems:
    """Make one shard, unless it is there: first its images, then its record.

    Args:
        out: the prepared folder.
        shard: of `Group.shards`.
        settings: of the preparation.
        skip_unreadable: whether images that cannot be read cost their pairs only.

    Returns:
        What went wrong; the shard counts as made if nothing did, or if only unreadable images did and they may be
        skipped.
    """
    folder = out / shard.folder
    record_file = folder / f"{shard.first:05d}.json"
    if record_file.exists():
        return Problems(unreadable=json.loads(record_file.read_text())["left_out"])

    # Training pairs go into one file, test images into files of their own.
    problems = Problems()
    if shard.split == "train":
        name = shard_name(shard.first, settings.compress)
        shape = (len(shard.pairs), 2, 3, settings.size, settings.size)
        with write_shard(folder / name, shape, settings.compress) as write:
            write_pair = partial(_write_pair, write, f"{shard.folder}/{name}")
            rows, clean = _make_rows(shard, settings, problems, write_pair)
    else:
        for side in _SIDES:
            (folder / side).mkdir(exist_ok=True)
        rows, clean = _make_rows(shard, settings, problems, partial(_write_png, out, shard))

    # The record makes the shard count, so it comes last.
    if problems.mismatched or (problems.unreadable and not skip_unreadable):
        return problems
    record = {
        "rows": rows,
        "clean": [[*asdict(image).values()] for image in clean],
        "left_out": problems.unreadable,
    }
    with whole_file(record_file) as file:
        file.write(json.dumps(record).encode())
    return problems


def _write_pair(
    write: Callable[[int, np.ndarray], None], name: str, place: int, images: Sequence[np.ndarray]
) -> tuple[list[str], str]:
    """Write a training pair to its place; a pair that could not be made leaves a gap there that no row names."""
    pixels = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
    write(place, pixels)
    return [address(name, place, side) for side in range(2)], pair_hash(pixels)


def _write_png(
    out: Path, shard: Group, place: int, images: Sequence[np.ndarray]
) -> tuple[list[str], str]:
    """Write test images, uncompressed, so that a file's length does not tell its class."""
    names = [f"{shard.folder}/{side}/{shard.names[place]}.png" for side in _SIDES[: len(images)]]
    for name, image in zip(names, images, strict=True):
        with whole_file(out / name) as file:
            Image.fromarray(image).save(file, "PNG", compress_level=0)
    return names, pair_hash(*images)


def _make_rows(
    shard: Group,
    settings: Settings,
    problems: Problems,
    write: Callable[[int, Sequence[np.ndarray]], tuple[list[str], str]],
) -> tuple[list[dict[str, Any]], list[CleanImage]]:
    """Make and write the pairs one after the other; return their rows of the manifest, and the clean images."""
    rows, clean = [], []
    for place, planned in enumerate(shard.pairs):
        source = planned.source
        rng = counter_rng(settings.seed, pair_stream(shard.folder, source.name), planned.copy)
        try:
            images, augmentation = _make_pair(shard, planned, settings, rng)
        except ImageError as error:
            problems.unreadable.append(str(error))
            continue
        except SizeError as error:
            problems.mismatched.append(str(error))
            continue

        # The row of the manifest; a source's clean image is recorded once, with its first copy.
        names, sha256 = write(place, images)
        lq, gt = (*names, None)[:2]
        values = (
            lq,
            gt,
            shard.degradation,
            shard.split,
            shard.set,
            settings.seed,
            augmentation,
            sha256,
        )
        rows.append(dict(zip(SCHEMA.names, values, strict=True)))
        if planned.copy == 0:
            path = source.reference
            clean.append(
                CleanImage(
                    f"{shard.set} {source.name}", shard.split, path.stat().st_size, file_hash(path)
                )
            )
    return rows, clean


class SizeError(ValueError):
    """Degraded and clean image differ in size."""


def _make_pair(
    group: Group, planned: Planned, settings: Settings, rng: np.random.Generator
) -> tuple[list[np.ndarray], str]:
    """Make a degraded and (if there is one) clean image, uint8 (size, size, 3); return their augmentation too."""
    source = planned.source
    originals = read_pair(source)
    shape = originals[0].shape
    geometry = draw_geometry(
        shape[:2], planned.copy, group.split == "train", settings.size, settings.fit, rng
    )

    # Both images go through one geometry, then the degraded one through the synthesis.
    images = [apply_geometry(image, geometry, settings.size) for image in originals]
    lq = images[0]
    for step in group.steps:
        lq = degrade(lq, step, rng, settings.synthesis)

    # The augmentation in words, for the manifest.
    words = {name: value for name, value in asdict(geometry).items() if name != "window" and value}
    if geometry.window != (0, 0, *shape[:2]):
        words = {"crop": ",".join(map(str, geometry.window)), **words}
    return [lq, images[-1]] if source.gt else [lq], " ".join(
        f"{name}={value}" for name, value in words.items()
    )


def inspect(sources: Sequence[Source]) -> Problems:
    """Read every image of some pairs, and return what is wrong with them."""
    problems = Problems()
    for source in sources:
        try:
            read_pair(source)
        except ImageError as error:
            problems.unreadable.append(str(error))
        except SizeError as error:
            problems.mismatched.append(str(error))
    return problems


def read_pair(source: Source) -> list[np.ndarray]:
    """Read the images of a source, degraded first: uint8 (h, w, 3).

    Raises:
        ImageError: a file cannot be read; the message names it.
        SizeError: the two differ in size.
    """
    paths = [path for path in (source.lq, source.gt) if path is not None]
    images = [_read(path) for path in paths]
    if len({image.shape for image in images}) > 1:
        shapes = " and ".join(
            f"{path} {image.shape[1]}x{image.shape[0]}"
            for path, image in zip(paths, images, strict=True)
        )
        raise SizeError(f"a pair differs in size: {shapes}")
    return images


@lru_cache(
    maxsize=4
)  # copies of a source, and the versions of one clean image, come one after the other
def _read(path: Path) -> np.ndarray:
    """Read an image's 8-bit pixels; a failure names the file."""
    try:
        pixels = read_photo(path).pixels
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
