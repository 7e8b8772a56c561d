"""Seconds an image and peak memory of restoring 256x256 photos with the bundled mini weights.

    python benchmarks/restore.py                    # table on stdout, raw numbers in benchmarks/results/restore.json

Each batch size runs `--rounds` times on fresh random crops after one warm-up; the median, fastest and slowest round are
printed. Memory is the process's peak resident set, so it includes the libraries.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import skimage.data
import torch

from diffrestorer import DiffRestorerPipeline
from diffrestorer.data.synthesis import degrade

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
SIDE = 256


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini", help="what to measure (default: mini)")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 4, 8], help="(default: 1 4 8)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "restore.json"
    )
    arguments = parser.parse_args()

    pipe = DiffRestorerPipeline.from_pretrained(arguments.model).to(arguments.device)
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    rows = []
    print("batch  seconds an image: median (fastest - slowest)   peak memory")
    for batch_size in arguments.batch_sizes:
        seconds = [
            measure(pipe, batch_size, arguments.steps, rng) for _ in range(arguments.rounds + 1)
        ][1:]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append(
            {"batch_size": batch_size, "seconds_per_image": seconds, "peak_rss_mib": round(peak)}
        )
        middle = statistics.median(seconds)
        print(
            f"{batch_size:5d}  {middle:.3f} ({min(seconds):.3f} - {max(seconds):.3f})   {peak:.0f} MiB",
            flush=True,
        )
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps({**environment(arguments), "rows": rows}, indent=1) + "\n")


def measure(pipe: DiffRestorerPipeline, batch_size: int, steps: int, rng: np.random.Generator) -> float:
    """Seconds an image of one call on fresh degraded crops."""
    images = []
    for i in range(batch_size):
        photo = getattr(skimage.data, PHOTOS[i % len(PHOTOS)])()
        top, left = (int(rng.integers(size - SIDE + 1)) for size in photo.shape[:2])
        images.append(
            degrade(np.ascontiguousarray(photo[top : top + SIDE, left : left + SIDE]), "snow", rng)
        )
    started = time.perf_counter()
    pipe(
        images, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="np"
    )
    return (time.perf_counter() - started) / batch_size


def environment(arguments: argparse.Namespace) -> dict[str, object]:
    """What the numbers depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "model": arguments.model,
        "steps": arguments.steps,
        "side": SIDE,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "diffrestorer")},
        "git_commit": commit or None,
    }


if __name__ == "__main__":
    main()
