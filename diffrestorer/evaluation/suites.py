"""The suites that methods are compared on: pairs of images, the same for every method.

`single`, `real` and `mixed` are the paper's 14 tasks (Table I); `all` is the three of them, `ablation` the five tasks
that Tables II-V average over. They take their pairs from a prepared folder (`data.root`). Without one they stand on
open photos that are degraded here, and say so. `demo` is always on open photos, `pairs` on a user's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.config.synthesis_presets import named_synthesis
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.images import ImageError, Photo, read_photo, write_photo
from diffrestorer.data.synthesis import degrade

DEMO_PHOTOS: tuple[str, ...] = ("astronaut", "coffee", "chelsea", "rocket", "motorcycle")
"""Photos in scikit-image's wheel (CC0 or public domain), in the order of their index in the random streams."""

DEMO_SHORTER_SIDE = 288
"""Photos are shrunk to this shorter side before the crop (the smallest is 300), so that a crop of 256 shows a scene."""

REAL: dict[str, str] = {"real_snow": "realsnow", "real_haze": "rtts"}
"""Task -> its data set, of real photos that nobody degraded."""

TASKS: dict[str, tuple[str, ...]] = {
    "single": DEGRADATIONS,
    "real": tuple(REAL),
    "mixed": tuple(MIXTURES),
}
"""Suite -> its tasks. Table I, in its order."""

AVERAGED: tuple[str, ...] = ("low_light", "haze", "real_snow", "snow+noise", "raindrop+blur+noise")
"""The tasks that Tables II-V average over (their captions)."""

SETS: dict[str, str] = {
    "noise": "div2k",
    "low_light": "lol",
    "haze": "reside",
    "rain": "rain1400",
    "raindrop": "raindrop",
    "snow": "snow100k",
    "blur": "gopro",
    "jpeg": "div2k",
    **REAL,
    "blur+noise": "div2k",
    "snow+noise": "snow100k",
    "raindrop+blur+noise": "raindrop",
    "jpeg+blur+noise": "div2k",
}
"""Task -> the data set that its test pairs come from (`scripts/prepare_data.py set=NAME`)."""

PAIRS = "pairs"
"""The suite of a user's own pairs, whose tasks are the classes of these."""

SUITES: dict[str, tuple[str, ...]] = {
    "demo": (*DEGRADATIONS, *MIXTURES),
    **TASKS,
    "all": tuple(task for tasks in TASKS.values() for task in tasks),
    "ablation": AVERAGED,
}
"""Suite -> its tasks, in order."""


@dataclass(frozen=True)
class Draw:
    """The synthesis that degraded an image, and its random numbers: `counter_rng(seed, stream, index)`."""

    seed: int
    stream: str
    index: int
    synthesis: str = "ours"


@dataclass(frozen=True)
class Item:
    """A pair of a suite.

    Attributes:
        suite: `demo`, `single`, `real`, `mixed` or `pairs`.
        degradation: the task: a class, a mixture, `real_snow` or `real_haze`.
        image: the photo's name, unique within a degradation.
        lq, gt: PNG files of the degraded and the clean image, of one size; `real_haze` has no clean one.
        draw: how this package degraded it; None where it was degraded elsewhere.
    """

    suite: str
    degradation: str
    image: str
    lq: Path
    gt: Path | None
    draw: Draw | None = None

    @property
    def file(self) -> str:
        """Path of a method's output for this item in that method's folder: `DEGRADATION/NAME.png`."""
        return f"{self.degradation}/{self.image}.png"


@dataclass(frozen=True)
class Suite:
    """Pairs, ordered by degradation, then by image.

    Attributes:
        note: a caution about the images for readers of its tables; may be empty.
        missing: task -> why it has no pairs, and the command that prepares them.
    """

    name: str
    items: tuple[Item, ...]
    note: str = ""
    missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        files = [item.file.lower() for item in self.items]
        if len(set(files)) < len(files):
            doubled = next(item for item in self.items if files.count(item.file.lower()) > 1)
            raise ValueError(f"suite {self.name} names {doubled.degradation}/{doubled.image} twice")

    @property
    def degradations(self) -> list[str]:
        """Names of the degradations, in order."""
        return list(dict.fromkeys(item.degradation for item in self.items))

    @property
    def images(self) -> list[str]:
        """Names of the photos, in order."""
        return list(dict.fromkeys(item.image for item in self.items))

    def of(self, degradation: str) -> list[Item]:
        """Return the items of a degradation."""
        return [item for item in self.items if item.degradation == degradation]


def suite_of(task: str) -> str:
    """Return the suite of Table I that a task belongs to: `single`, `real` or `mixed`."""
    return next(suite for suite, tasks in TASKS.items() if task in tasks)


def prepare_command(task: str, root: str | None) -> str:
    """Return the command that prepares a task's pairs."""
    return f"diffrestorer prepare set={SETS[task]} root=DOWNLOADS out={root or 'PREPARED'}"


def prepare_commands(tasks: Sequence[str], root: str | None) -> str:
    """Return the advice about tasks that are not prepared, one command per line."""
    commands = dict.fromkeys(prepare_command(task, root) for task in tasks)
    return "\n  ".join([f"prepare it, then give data.root={root or 'PREPARED'}:", *commands])


def open_suite(
    name: str, folder: Path, size: int, images: int | None, seed: int, synthesis: str = "ours"
) -> Suite:
    """Build a suite on photos of scikit-image, degraded by this package.

    Args:
        name: a key of `SUITES`.
        folder: where its files lie; they are written where they are missing.
        size: side of the photos in pixels.
        images: number of photos; None for all.
        seed: of the degradations.
        synthesis: name of their models, see `named_synthesis`.

    Raises:
        ValueError: a size or number of images that the photos can't give, or a suite without a task that they can be.
    """
    if not 64 <= size <= DEMO_SHORTER_SIDE:
        raise ValueError(f"size={size}: the open photos are 64 to {DEMO_SHORTER_SIDE} pixels a side")
    count = len(DEMO_PHOTOS) if images is None else images
    if not 1 <= count <= len(DEMO_PHOTOS):
        raise ValueError(f"images={count}: there are 1 to {len(DEMO_PHOTOS)} open photos")

    # Real photos can't be made from clean ones.
    missing = {
        task: f"not prepared: {prepare_command(task, None)}" for task in SUITES[name] if task in REAL
    }
    check_any(name, SUITES[name], missing)

    note = ""
    if name != "demo":
        note = (
            f"Measured on {count} open photos of scikit-image, {size} x {size} pixels, degraded by this "
            "package, since no prepared test sets were given (data.root=PREPARED): not the paper's images, so the "
            "differences from the paper's numbers say nothing about the methods."
        )
    photos = {photo: open_photo(photo, size) for photo in DEMO_PHOTOS[:count]}
    items = _degrade_photos(name, folder, photos, seed, synthesis)
    return Suite(name, tuple(items), note, missing)


def check_any(
    suite: str, tasks: Sequence[str], missing: dict[str, str], root: str | None = None
) -> None:
    """Refuse a suite without any pair.

    Raises:
        ValueError: every task is missing; the message holds the commands that prepare them.
    """
    if set(tasks) <= set(missing):
        raise ValueError(f"suite={suite} is not prepared; {prepare_commands(tasks, root)}")


def _degrade_photos(
    name: str, folder: Path, photos: dict[str, np.ndarray], seed: int, synthesis: str
) -> list[Item]:
    """Write the clean photos and what each task of a suite makes of them."""
    for photo, gt in photos.items():
        write_pixels(folder / "gt" / f"{photo}.png", gt)

    items = []
    for task in (task for task in SUITES[name] if task not in REAL):
        suite = "demo" if name == "demo" else suite_of(task)
        for index, (photo, gt) in enumerate(photos.items()):
            lq = folder / "lq" / task / f"{photo}.png"
            draw = Draw(seed, f"suite/{task}", index, synthesis)
            write_pixels(
                lq, degrade(gt, task, counter_rng(seed, draw.stream, index), named_synthesis(synthesis))
            )
            items.append(Item(suite, task, photo, lq, folder / "gt" / f"{photo}.png", draw))
    return items


def open_photo(name: str, size: int) -> np.ndarray:
    """Load the centre of a photo of `DEMO_PHOTOS` as uint8 (size, size, 3), shrunk by area before."""
    try:
        import skimage.data
    except ImportError:
        raise ValueError(
            "the open photos need scikit-image: pip install 'diffrestorer[eval]'"
        ) from None
    if name == "motorcycle":
        photo = skimage.data.stereo_motorcycle()[0]
    else:
        photo = getattr(skimage.data, name)()

    # Shrunk, so that the crop shows a scene.
    scale = DEMO_SHORTER_SIDE / min(photo.shape[:2])
    height, width = (round(side * scale) for side in photo.shape[:2])
    photo = cv2.resize(photo[..., :3], (width, height), interpolation=cv2.INTER_AREA)

    # The centre.
    top, left = (height - size) // 2, (width - size) // 2
    return np.ascontiguousarray(photo[top : top + size, left : left + size])


def write_pixels(path: Path, pixels: np.ndarray) -> None:
    """Write pixels, uint8 (h, w, 3), as a PNG unless the file already holds them."""
    try:
        if np.array_equal(read_photo(path).pixels, pixels):
            return
    except ImageError:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_photo(path, Photo(pixels))
