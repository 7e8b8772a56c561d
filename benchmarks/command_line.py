"""Images a second of `diffrestorer restore` against the bare pipeline, on photos of 256x256 with the bundled weights.

    python benchmarks/command_line.py      # a table on stdout, raw numbers in benchmarks/results/command_line.json

Both restore the same 50 photos, in turns, in one process. The pipeline starts from decoded arrays and returns arrays;
the command searches, reads PNGs, restores, and writes PNGs that are on the disk when it ends. Its loading of the model
is measured too and taken off, since it does not grow with the photos; importing the libraries is not counted anywhere.
Both must return the same pictures. A ratio is that of one round; the median, slowest and fastest are printed.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import skimage.data
import torch
from PIL import Image

from diffrestorer.cli import main as command_line
from diffrestorer.data.synthesis import degrade
from diffrestorer.inference import photos

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
SIDE = 256


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=50, help="(default: 50)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    parser.add_argument("--batch-size", type=int, default=1, help="(default: 1)")
    parser.add_argument("--device", default="auto", help="(default: auto)")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "command_line.json"
    )
    arguments = parser.parse_args()
    options = {"steps": arguments.steps, "batch_size": arguments.batch_size, "device": arguments.device}
    pipe = photos.load_pipeline("mini", arguments.device)
    rounds = []
    for number in range(arguments.rounds + 1):
        images = degraded(arguments.photos, np.random.default_rng(number))
        row = measure(pipe, images, first=number % 2, **options)
        if number:  # the first one warms up
            rounds.append(row)
            print(", ".join(f"{name} {value:.3f}" for name, value in row.items()), flush=True)
    ratios = [row["pipeline_seconds"] / row["command_seconds"] for row in rounds]
    load = statistics.median(row["load_seconds"] for row in rounds)
    print(
        f"images/s of the command over the pipeline's: {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} - {max(ratios):.3f}), loading the model {load:.2f} s"
    )
    environment = {
        "photos": arguments.photos,
        "side": SIDE,
        **options,
        "device": str(pipe.device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "diffrestorer")},
    }
    arguments.output.write_text(
        json.dumps({**environment, "rounds": rounds, "ratios": ratios}, indent=1) + "\n"
    )


def degraded(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random crops (SIDE, SIDE, 3) with snow."""
    images = []
    for i in range(count):
        photo = getattr(skimage.data, PHOTOS[i % len(PHOTOS)])()
        top, left = (int(rng.integers(size - SIDE + 1)) for size in photo.shape[:2])
        images.append(
            degrade(np.ascontiguousarray(photo[top : top + SIDE, left : left + SIDE]), "snow", rng)
        )
    return images


def measure(
    pipe: object, images: list[np.ndarray], first: int, steps: int, batch_size: int, device: str
) -> dict[str, float]:
    """Seconds of both on the same photos, the order of the two by `first`; the command's without loading."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / "in" / f"{i:03}.png")
        runs = [
            lambda: bare(pipe, images, steps, batch_size),
            lambda: command(folder, steps, batch_size, device),
        ]
        results = {}
        for i in (first, 1 - first):
            results[i], own = runs[i]()
            seconds |= own
        difference = max(
            int(np.abs(a.astype(int) - b).max()) for a, b in zip(results[0], results[1], strict=True)
        )
        assert difference <= 1, f"the pictures differ by {difference} of 255"
    return dict(sorted(seconds.items()))


def bare(
    pipe: object, images: list[np.ndarray], steps: int, batch_size: int
) -> tuple[list[np.ndarray], dict[str, float]]:
    """The pipeline alone."""
    started = time.perf_counter()
    restored = []
    for i in range(0, len(images), batch_size):
        batch = images[i : i + batch_size]
        generators = [torch.Generator().manual_seed(0) for _ in batch]
        restored += pipe(batch, steps, generators, output_type="np").images
    seconds = time.perf_counter() - started
    return [(image * 255).round().astype(np.uint8) for image in restored], {"pipeline_seconds": seconds}


def command(
    folder: Path, steps: int, batch_size: int, device: str
) -> tuple[list[np.ndarray], dict[str, float]]:
    """`diffrestorer restore`, as typed."""
    loading = []

    def load(*arguments: str) -> object:
        started = time.perf_counter()
        pipe = photos.load_pipeline(*arguments)
        loading.append(time.perf_counter() - started)
        return pipe

    typed = ["restore", str(folder / "in"), "-o", str(folder / "out"), "--steps", str(steps)]
    typed += ["--batch-size", str(batch_size), "--device", device]
    started = time.perf_counter()
    with (
        mock.patch("diffrestorer.cli.job.load_pipeline", load),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        status = command_line(typed)
    seconds = time.perf_counter() - started - loading[0]
    assert status == 0, status
    outputs = sorted((folder / "out").iterdir())
    return [np.asarray(Image.open(path)) for path in outputs], {
        "command_seconds": seconds,
        "load_seconds": loading[0],
    }


if __name__ == "__main__":
    main()
