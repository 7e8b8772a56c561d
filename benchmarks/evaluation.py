"""Images a second of scoring, beside pyiqa metric by metric and image by image.

    python benchmarks/evaluation.py          # table on stdout, raw numbers in benchmarks/results/evaluation.json

Both sides score the same PNG files of several methods against the same references, with the same weights and pyiqa's
own metrics; the rounds are interleaved. The peer calls each metric on each pair of files, as pyiqa's own script does.
The product decodes each file once for all metrics, scores batches of one size, lets LPIPS' and DISTS' networks see a
reference once for all methods, and filters SSIM's windows one dimension at a time. Weights are random where the
real ones can't be had (`--weights`): pyiqa loads them on
its own path, and time does not depend on them. Values must agree to 1e-4.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from diffrestorer.config.checkout import git_commit
from diffrestorer.data.synthesis import degrade
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.scoring.image_scorer import Scorer
from diffrestorer.evaluation.scoring.metrics import DEFAULT_METRICS, METRICS
from diffrestorer.evaluation.scoring.pyiqa_networks import create
from diffrestorer.evaluation.scoring.score_store import ScoreStore
from diffrestorer.evaluation.scoring.scores import Score
from diffrestorer.evaluation.scoring.suite_scoring import Scoring
from diffrestorer.evaluation.suites import DEMO_PHOTOS, Item, Suite, open_photo

# The tests' weights serve here, too.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from random_metric_weights import RANDOM_METRICS, write_random_weights

METRIC_NAMES = (*DEFAULT_METRICS, *(name for name in RANDOM_METRICS if name != "fid"))


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument(
        "--methods", type=int, default=9, help="Table I has 8, and the input itself (default: 9)"
    )
    parser.add_argument("--images", type=int, default=2, help="of each method (default: 2)")
    parser.add_argument("--side", type=int, default=256, help="pixels, at most 288 (default: 256)")
    parser.add_argument("--batch-size", type=int, default=2, help="(default: 2)")
    parser.add_argument(
        "--metrics", nargs="+", default=list(METRIC_NAMES), help=f"(default: {' '.join(METRIC_NAMES)})"
    )
    parser.add_argument(
        "--weights", type=Path, help="folder like torch's hub folder (default: random weights)"
    )
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "evaluation.json"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    files = f"{arguments.methods} methods x {arguments.images} images of {arguments.side} px"
    print(f"{files}, {len(arguments.metrics)} metrics")
    print("           images a second: median (slowest - fastest)")
    for name in ("pyiqa", "product"):
        rates = result["images_per_second"][name]
        print(f"{name:10s} {statistics.median(rates):.3f} ({min(rates):.3f} - {max(rates):.3f})")
    print(
        f"ratio      {result['ratio']:.2f} ({min(result['ratios']):.2f} - {max(result['ratios']):.2f})"
    )
    print(f"largest difference between values: {result['largest_difference']:.2e}")
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps({**environment(arguments), **result}, indent=1) + "\n")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Interleaved rounds; each scores fresh noise, so that nothing is remembered from the one before."""
    weights = arguments.weights
    if weights is None:
        weights = folder / "weights"
        write_random_weights(weights)
    metrics = [METRICS[name] for name in arguments.metrics]
    device = torch.device(arguments.device)
    peers = {metric.name: create_plain(metric.name, device, weights) for metric in metrics}
    scorer = Scorer(metrics, device, weights)
    rates: dict[str, list[float]] = {"pyiqa": [], "product": []}
    largest = 0.0
    for number in range(arguments.rounds + 1):
        suite, methods = make_files(arguments, folder / str(number), number)
        started = time.perf_counter()
        expected = score_with_pyiqa(suite, methods, peers, folder / str(number))
        peer_seconds = time.perf_counter() - started
        started = time.perf_counter()
        found = score_with_product(suite, methods, scorer, folder / str(number), arguments.batch_size)
        seconds = time.perf_counter() - started
        largest = max(
            largest,
            *(
                abs(value - expected[score.method, score.image, name])
                for score in found
                for name, value in score.values.items()
            ),
        )
        assert len(expected) == sum(len(score.values) for score in found)
        if number > 0:  # the first round warms both up
            count = arguments.methods * arguments.images
            rates["pyiqa"].append(count / peer_seconds)
            rates["product"].append(count / seconds)
    if largest > 1e-4:
        raise SystemExit(f"values differ by {largest}")
    ratios = [own / other for own, other in zip(rates["product"], rates["pyiqa"], strict=True)]
    return {
        "images_per_second": rates,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "largest_difference": largest,
    }


def create_plain(name: str, device: torch.device, weights: Path) -> Any:
    """The metric exactly as pyiqa makes it."""
    model = create(METRICS[name], device, weights)
    if name == "lpips":
        del model.net.net.forward  # what the product adds
    elif name == "dists":
        del model.net.forward_once
    return model


def make_files(arguments: argparse.Namespace, folder: Path, seed: int) -> tuple[Suite, list[Method]]:
    """A suite of noisy photos and outputs of several methods, as PNG files."""
    rng = np.random.default_rng(seed)
    methods = [Method(f"method{i}", "outputs") for i in range(arguments.methods)]
    items = []
    for index in range(arguments.images):
        gt = open_photo(DEMO_PHOTOS[index % len(DEMO_PHOTOS)], arguments.side)
        gt = np.clip(gt + rng.normal(0, 2, gt.shape), 0, 255).astype(np.uint8)
        file = folder / "gt" / f"{index}.png"
        write(file, gt)
        item = Item("single", "noise", str(index), file, file)
        for method in methods:
            write(method.output(item, folder), degrade(gt, "noise", rng))
        items.append(item)
    return Suite("single", tuple(items)), methods


def write(path: Path, pixels: np.ndarray) -> None:
    """A PNG file in a folder that may be missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def score_with_pyiqa(
    suite: Suite, methods: list[Method], peers: dict[str, Any], folder: Path
) -> dict[tuple[str, str, str], float]:
    """Metric by metric, image by image, from the files."""
    values = {}
    for name, metric in peers.items():
        for method in methods:
            for item in suite.items:
                paths = [method.output(item, folder), item.lq][: 1 + METRICS[name].needs_reference]
                values[method.name, item.image, name] = float(metric(*map(str, paths)))
    return values


def score_with_product(
    suite: Suite, methods: list[Method], scorer: Scorer, folder: Path, batch_size: int
) -> list[Score]:
    """As scripts/evaluate.py does, the store of scores included."""
    versions = {metric.name: metric.name for metric in scorer.metrics}
    store = ScoreStore(folder / "scores", 0)
    scoring = Scoring(
        suite, methods, folder, scorer, [], versions, store, batch_size, PartialState(cpu=True)
    )
    with Progress(console=Console(quiet=True)) as progress:
        scores = scoring.score_images(progress)
    store.close()
    return scores


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        **{key: value for key, value in vars(arguments).items() if key not in ("output", "weights")},
        "weights": "random" if arguments.weights is None else "given",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "pyiqa", "diffrestorer")},
        "git_commit": git_commit(),
    }


if __name__ == "__main__":
    main()
