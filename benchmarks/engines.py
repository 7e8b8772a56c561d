"""Engines side by side on the CPU: PyTorch as it is, and OpenVINO in float32, with the same weights.

    python benchmarks/engines.py      # a table on stdout, raw numbers in benchmarks/results/engines.json

Both restore the same fresh random crops of degraded photos from the same noise, in turns, in one process and with one
number of threads; their images must agree. Compiling is timed by itself and is not part of a round.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import skimage.data
import torch

from diffrestorer import DiffRestorerPipeline
from diffrestorer.data.synthesis import degrade

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="(default: mini)")
    parser.add_argument("--side", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument("--steps", type=int, default=20, help="(default: 20)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: 7)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "engines.json")
    arguments = parser.parse_args()
    pipes = {}
    for engine in ("eager", "openvino"):
        pipes[engine] = DiffRestorerPipeline.from_pretrained(arguments.model).prepare("cpu", engine)
        pipes[engine].set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    compiling = {engine: restore(pipe, crop(rng, arguments.side), 1)[1] for engine, pipe in pipes.items()}
    seconds: dict[str, list[float]] = {engine: [] for engine in pipes}
    differences = []
    for round_ in range(arguments.rounds + 1):  # the first warms up
        lq, images = crop(rng, arguments.side), {}
        for engine, pipe in pipes.items():
            images[engine], taken = restore(pipe, lq, arguments.steps)
            if round_:
                seconds[engine].append(taken)
        differences.append(float(np.abs(images["eager"] - images["openvino"]).max()))
    for engine, values in seconds.items():
        spread = f"{statistics.median(values):.3f} ({min(values):.3f} - {max(values):.3f}) s an image"
        print(f"{engine}: {spread}, first image {compiling[engine]:.1f} s", flush=True)
    ratio = statistics.median(seconds["eager"]) / statistics.median(seconds["openvino"])
    print(f"openvino: {ratio:.2f}x, greatest difference {max(differences):.1e} of 1")
    environment = {
        "model": arguments.model,
        "side": arguments.side,
        "steps": arguments.steps,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "openvino", "diffrestorer")},
    }
    measured = {"seconds": seconds, "first_image_seconds": compiling, "differences": differences}
    arguments.output.write_text(json.dumps({**environment, **measured}, indent=1) + "\n")


def crop(rng: np.random.Generator, side: int) -> np.ndarray:
    """A degraded crop of a photo: uint8 (side, side, 3)."""
    photo = getattr(skimage.data, PHOTOS[rng.integers(len(PHOTOS))])()
    top, left = (int(rng.integers(size - side + 1)) for size in photo.shape[:2])
    return degrade(np.ascontiguousarray(photo[top : top + side, left : left + side]), "noise", rng)


def restore(pipe: DiffRestorerPipeline, lq: np.ndarray, steps: int) -> tuple[np.ndarray, float]:
    """The restored image in [0, 1], and the seconds it took."""
    started = time.perf_counter()
    image = pipe(lq, steps, torch.Generator().manual_seed(0), output_type="np").images[0]
    return image, time.perf_counter() - started


if __name__ == "__main__":
    main()
