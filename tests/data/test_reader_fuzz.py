"""Mutated headers: whatever the reader returns is what independent readers agree on, to rounding."""

import contextlib
import io
from pathlib import Path

import cv2
import mutated_files
import numpy as np
import pytest
import tifffile
from PIL import Image

from diffrestorer.data.images import ImageError, read_photo

ROUNDING = 1.6 / 255
LOSSY_ROUNDING = 40 / 255  # JPEG: readers differ in how they enlarge colour
SHORT, LONG = 60, 1000  # mutated files of each kind


def by_pillow(data: bytes) -> np.ndarray | None:
    """RGB in [0, 1], 8 bits of it, by Pillow."""
    with contextlib.suppress(Exception):
        image = Image.open(io.BytesIO(data))
        if getattr(image, "n_frames", 1) == 1:
            image.load()
            if image.mode == "I" or image.mode.startswith("I;16"):
                grey = np.asarray(image, np.float64) / 65535
                return np.repeat(grey[..., None], 3, axis=2)
            if image.mode != "F":
                return np.asarray(image.convert("RGB"), np.float64) / 255
    return None


def by_opencv(data: bytes) -> np.ndarray | None:
    """RGB in [0, 1], by OpenCV."""
    with contextlib.suppress(Exception):
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if array is not None and array.dtype in (np.uint8, np.uint16):
            array = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
            if array.shape[2] in (3, 4):
                return array[..., 2::-1] / np.iinfo(array.dtype).max
    return None


def by_tifffile(data: bytes) -> np.ndarray | None:
    """RGB in [0, 1], by tifffile's own reading of a file of one page."""
    with contextlib.suppress(Exception), tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        array = page.asarray()
        plain = page.photometric in (0, 1, 2) and array.dtype in (np.uint8, np.uint16)
        if plain and len(file.pages) == 1:
            array = np.moveaxis(array, 0, 2) if page.axes == "SYX" else array
            array = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
            array = array[..., :3] / np.iinfo(array.dtype).max
            return 1 - array if page.photometric == 0 else array
    return None


def same(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    """Whether two pictures differ by rounding only."""
    return one.shape == other.shape and float(np.abs(one - other).max()) <= tolerance


def judge(data: bytes, path: Path, tolerance: float) -> str:
    """Read a file by the package and by the others: `read`, `refused`, `alone` (nobody else reads it) or `wrong`."""
    path.write_bytes(data)
    try:
        photo = read_photo(path, max_pixels=1 << 20)
    except ImageError:
        return "refused"
    ours = photo.pixels / np.iinfo(photo.pixels.dtype).max
    if path.suffix == ".jpg" and not data.endswith(b"\xff\xd9"):
        data = (
            data.removesuffix(b"\xff") + b"\xff\xd9"
        )  # the others want an end, and invent what is missing before it
    others = [
        found for found in (by_pillow(data), by_opencv(data), by_tifffile(data)) if found is not None
    ]
    if any(same(ours, other, tolerance) for other in others):
        return "read"
    return "wrong" if others else "alone"


def fuzz(kind: str, count: int, folder: Path) -> dict[str, list[str]]:
    """Judge `count` mutations; return their names by verdict."""
    make, mutate = mutated_files.KINDS[kind]
    tolerance = LOSSY_ROUNDING if kind == "jpg" else ROUNDING
    files = list(make().items())
    verdicts: dict[str, list[str]] = {"read": [], "refused": [], "alone": [], "wrong": []}
    for number in range(count):
        name, data = files[number % len(files)]
        mutated = mutate(data, np.random.default_rng(number))
        verdict = judge(mutated, folder / f"{number}.{kind}", tolerance)
        verdicts[verdict].append(f"{number}-{name}")
    return verdicts


@pytest.mark.parametrize("kind", mutated_files.KINDS)
def test_every_layout_is_read_as_the_others_read_it(kind: str, tmp_path: Path) -> None:
    """The files before their mutation."""
    make, _ = mutated_files.KINDS[kind]
    tolerance = LOSSY_ROUNDING if kind == "jpg" else ROUNDING
    verdicts = {
        name: judge(data, tmp_path / f"{name}.{kind}", tolerance) for name, data in make().items()
    }
    assert set(verdicts.values()) <= {"read", "alone"}, verdicts


@pytest.mark.parametrize("kind", mutated_files.KINDS)
def test_mutated_headers(kind: str, tmp_path: Path) -> None:
    verdicts = fuzz(kind, SHORT, tmp_path)
    assert verdicts["wrong"] == []
    assert verdicts["refused"]


@pytest.mark.parametrize("name", [name for name in mutated_files.jpegs() if not name.endswith("open")])
def test_a_jpeg_cut_anywhere_is_whole_or_refused(name: str, tmp_path: Path) -> None:
    """From the end on: as long as every bit of the pixels is there, the picture is that of the whole file."""
    data = mutated_files.jpegs()[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    whole = read_photo(path).pixels
    scan = data.rindex(b"\xff\xda")
    read = []
    for length in range(len(data) - 1, scan, -1 if len(data) - scan < 400 else -7):
        path.write_bytes(data[:length])
        with contextlib.suppress(ImageError):
            assert np.array_equal(read_photo(path).pixels, whole)
            read.append(len(data) - length)
    assert 1 in read, "only the second byte of the end marker is missing"
    assert max(read) <= 4


@pytest.mark.soak
@pytest.mark.parametrize("kind", mutated_files.KINDS)
def test_a_thousand_mutated_headers(kind: str, tmp_path: Path) -> None:
    verdicts = fuzz(kind, LONG, tmp_path)
    assert verdicts["wrong"] == []
    assert len(verdicts["refused"]) + len(verdicts["read"]) > 0.9 * LONG
