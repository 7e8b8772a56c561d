"""A few images of each data set in its distributed layout, and their preparation, for the tests."""

import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from diffrestorer.config.schema import PrepareConfig
from diffrestorer.data.manifest import MANIFEST
from diffrestorer.data.synthesis import degrade
from diffrestorer.preparation.prepare import prepare

WIDTH, HEIGHT = 56, 48
SIZE = 16  # of what is prepared
BUDGET = 40

LAYOUTS: dict[str, tuple[tuple[str, str | None, str], ...]] = {
    "div2k": tuple(
        (f"DIV2K_{s}_HR/{n:04d}.png", None, "") for s, n in (("train", 1), ("train", 2), ("valid", 801))
    ),
    "flickr2k": tuple((f"Flickr2K/Flickr2K_HR/{n:06d}.png", None, "") for n in (1, 2)),
    "lol": tuple(
        (f"LOLdataset/{f}/high/{n}.png", f"LOLdataset/{f}/low/{n}.png", "low_light")
        for f, n in (("our485", 2), ("our485", 10), ("eval15", 1))
    ),
    "reside": (
        ("RESIDE/OTS/clear/0001.jpg", "RESIDE/OTS/part1/0001_0.8_0.04.jpg", "haze"),
        ("RESIDE/OTS/clear/0001.jpg", "RESIDE/OTS/part2/0001_0.95_0.2.jpg", "haze"),
        ("RESIDE/OTS/clear/0025.jpg", "RESIDE/OTS/part1/0025_0.8_0.04.jpg", "haze"),
        (
            "RESIDE/OTS/clear/0007.jpg",
            "RESIDE/OTS/part1/0007_0.8_0.04.jpg",
            "haze",
        ),  # also in SOTS outdoor
        ("RESIDE/ITS/clear/1.png", "RESIDE/ITS/hazy/1_1_0.90179.png", "haze"),
        ("RESIDE/SOTS/outdoor/clear/0007.png", "RESIDE/SOTS/outdoor/hazy/0007_0.8_0.2.jpg", "haze"),
        ("RESIDE/SOTS/indoor/clear/1400.png", "RESIDE/SOTS/indoor/hazy/1400_1.png", "haze"),
    ),
    "rain1400": tuple(
        (
            f"rainy_image_dataset/{f}/ground_truth/{n}.jpg",
            f"rainy_image_dataset/{f}/rainy_image/{n}_{k}.jpg",
            "rain",
        )
        for f, n in (("training", 1), ("training", 11), ("testing", 901))
        for k in range(1, 15)
    ),
    "raindrop": tuple(
        (f"{f}/gt/{n}_clean.{e}", f"{f}/data/{n}_rain.{e}", "raindrop")
        for f, n, e in (
            ("train", 0, "png"),
            ("train", 10, "png"),
            ("test_a", 0, "png"),
            ("test_b", 0, "jpg"),
        )
    ),
    "snow100k": tuple(
        (f"{f}/gt/{n}.jpg", f"{f}/synthetic/{n}.jpg", "snow")
        for f, n in (
            ("all", "winter_1"),
            ("all", "winter_2"),
            ("media/jdway/GameSSD/overlapping/test/Snow100K-S", "city_1"),
            ("media/jdway/GameSSD/overlapping/test/Snow100K-M", "city_2"),
            ("media/jdway/GameSSD/overlapping/test/Snow100K-L", "city_3"),
        )
    ),
    "gopro": tuple(
        (f"GOPRO_Large/{s}/sharp/{n:06d}.png", f"GOPRO_Large/{s}/blur/{n:06d}.png", "blur")
        for s, n in (
            ("train/GOPR0372_07_00", 47),
            ("train/GOPR0374_11_00", 47),
            ("test/GOPR0384_11_00", 1),
        )
    ),
    "realsnow": tuple(
        (f"RealSnow/{f}/gt/{n}.png", f"RealSnow/{f}/input/{n}.png", "snow")
        for f, n in (("testing", 1), ("testing", 2))
    ),
    "rtts": (("", "RTTS/JPEGImages/AM_Bing_211.png", "haze"),),
}
"""Set -> (clean file, degraded file, class). Both partners of a pair show the same scene."""


def build(name: str, root: Path) -> None:
    """Writes a set's miniature below `root`."""
    for number, (gt, lq, degradation) in enumerate(LAYOUTS[name]):
        photo = scene(zlib.crc32((gt or str(lq)).encode()))
        if gt:
            save(root / gt, photo)
        if lq:
            save(root / lq, degrade(photo, degradation, np.random.default_rng(number)))


def scene(number: int) -> np.ndarray:
    """A photo-like image, another for each number: (HEIGHT, WIDTH, 3) uint8, smooth and bright."""
    coarse = np.random.default_rng(number).integers(60, 240, (6, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def save(path: Path, image: np.ndarray) -> None:
    """Writes an image, with the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def photos(folder: Path, *numbers: int) -> Path:
    """A folder of photos, one for each number."""
    for number in numbers:
        save(folder / f"{number}.png", scene(number))
    return folder


def make(name: str, root: Path, out: Path, **keys: Any) -> list[dict[str, Any]]:
    """Prepares and verifies; the manifest's rows."""
    prepare(
        PrepareConfig(
            name, str(root), str(out), **{"size": SIZE, "budget": BUDGET, "num_workers": 1, **keys}
        )
    )
    prepare(PrepareConfig(out=str(out), check=True))
    return rows_of(out)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The rows of a manifest."""
    return pq.read_table(out / MANIFEST).to_pylist()


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
