"""Pairs per second of one core that synthesis makes of 256x256 photos, for every class, mixture and variant.

    python benchmarks/synthesis.py                  # table on stdout, raw numbers in benchmarks/results/synthesis.json

Each round degrades the same crops with the same seeds, every class, mixture and variant in turn; one warm-up round
before. The processor time of this process counts, OpenCV on one thread, so that other work on the machine disturbs
little.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import skimage.data

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.config.synthesis_ranges import Synthesis
from diffrestorer.data.synthesis import VARIANTS, degrade

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
WANTED = 20.0


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--side", type=int, default=256, help="of the crops in pixels, at most 300 (default: 256)"
    )
    parser.add_argument("--pairs", type=int, default=32, help="of a round and class (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "synthesis.json"
    )
    arguments = parser.parse_args()

    cv2.setNumThreads(1)
    crops = [crop(PHOTOS[i % len(PHOTOS)], arguments.side, i) for i in range(arguments.pairs)]
    variants = [f"{degradation}/{name}" for degradation, names in VARIANTS.items() for name in names]
    names = (*DEGRADATIONS, *MIXTURES, *variants)
    rounds = [{name: measure(name, crops) for name in names} for _ in range(arguments.rounds + 1)][1:]
    print("class, mixture, variant  pairs per second: median (slowest - fastest)")
    rows = []
    for name in names:
        rates = [round_[name] for round_ in rounds]
        rows.append({"degradation": name, "pairs_per_second": rates})
        middle = statistics.median(rates)
        slow = "" if middle >= WANTED else f"   below {WANTED:.0f}"
        print(f"{name:23s}  {middle:7.1f} ({min(rates):.1f} - {max(rates):.1f}){slow}")
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps({**environment(arguments), "rows": rows}, indent=1) + "\n")


def crop(name: str, side: int, seed: int) -> np.ndarray:
    """A random crop (side, side, 3) of a photo."""
    photo = getattr(skimage.data, name)()
    rng = np.random.default_rng(seed)
    top, left = (int(rng.integers(size - side + 1)) for size in photo.shape[:2])
    return np.ascontiguousarray(photo[top : top + side, left : left + side])


def measure(name: str, crops: list[np.ndarray]) -> float:
    """Return the pairs per second of processor time of a class, a mixture, or a variant written CLASS/VARIANT."""
    degradation, _, variant = name.partition("/")
    synthesis = Synthesis()
    if variant:
        kind = type(getattr(synthesis, degradation))
        synthesis = replace(synthesis, **{degradation: kind(variants=(variant,))})
    started = time.process_time()
    for seed, image in enumerate(crops):
        degrade(image, degradation, np.random.default_rng(seed), synthesis)
    return len(crops) / (time.process_time() - started)


def environment(arguments: argparse.Namespace) -> dict[str, object]:
    """What the numbers depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "side": arguments.side,
        "pairs": arguments.pairs,
        "threads": cv2.getNumThreads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {
            name: version(name) for name in ("numpy", "opencv-python-headless", "scipy", "diffrestorer")
        },
        "git_commit": commit or None,
    }


if __name__ == "__main__":
    main()
