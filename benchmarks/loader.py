"""Pairs a second from prepared stores, mapped into memory or compressed, beside the usual dataset of paired PNG files.

    python benchmarks/loader.py                     # table on stdout, raw numbers in benchmarks/results/loader.json

All serve the same pairs in the same order, cropped and mirrored alike, through the same DataLoader; that their batches
are equal is checked first. Rounds alternate between them and take equally long, each from a step of its own; the
median, slowest and fastest are printed, then each store's ratio to the PNG files. All files are in the page cache.
Without workers, processor time is measured too, which other programs on the machine disturb less.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch.utils.data import Dataset

from diffrestorer.config.degradations import DEGRADATIONS, degradation_index
from diffrestorer.config.schema import DataConfig, PrepareConfig
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.manifest import open_shard
from diffrestorer.data.pairs import Pair, StepBatches, pair_loader
from diffrestorer.data.prepared import PreparedPairs
from diffrestorer.preparation.prepare import prepare

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
BATCH = 16
PAIRS_A_CLASS = 12

PNG = "paired PNG"
STORES = {"memory-mapped": "none", "zstd": "zstd", "WebP": "webp"}
"""Rows of the table -> `diffrestorer prepare compress=`."""


class PairedPNG(Dataset[Pair]):
    """Files `lq/NAME.png` and `gt/NAME.png`, decoded by Pillow, then cropped and mirrored."""

    def __init__(self, pairs: PreparedPairs, folder: Path) -> None:
        self.pairs = pairs
        self.folder = folder

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        path, degradation = self.pairs.source(*key)
        lq, gt = (np.array(Image.open(file).convert("RGB")) for file in png_files(self.folder, path))
        rng = counter_rng(self.pairs.seed, "crop", *key)
        size = self.pairs.size
        top, left = (int(rng.integers(side - size + 1)) for side in lq.shape[:2])
        lq, gt = (image[top : top + size, left : left + size] for image in (lq, gt))
        if rng.random() < 0.5:
            lq, gt = (np.ascontiguousarray(image[:, ::-1]) for image in (lq, gt))
        return Pair(lq, gt, degradation_index(degradation), *key)


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="side of the pairs (default: 512)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2], help="of the DataLoader (default: 0 2)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="(default: 7)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round, at least (default: 3)")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "loader.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        stores, png = build(Path(folder), arguments.size)
        for store in stores.values():
            check_parity(store, png)
        datasets = {PNG: png, **stores}
        rows = []
        print("workers  pairs a second             median (slowest - fastest)")
        for workers in arguments.workers:
            rounds: dict[str, list[Round]] = {name: [] for name in datasets}
            for number in range(arguments.rounds + 1):
                for name, dataset in datasets.items():
                    rounds[name].append(measure(dataset, 1000 * number, arguments.seconds, workers))
            for name, values in rounds.items():
                del values[0]  # warm-up
                rows.append(
                    {"workers": workers, "dataset": name, "rounds": [asdict(value) for value in values]}
                )
                show(workers, name, [value.pairs / value.seconds for value in values])
            for name in stores:
                show_ratios(workers, name, rounds[PNG], rounds[name])
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps({**environment(arguments), "rows": rows}, indent=1) + "\n")


def build(folder: Path, size: int) -> tuple[dict[str, PreparedPairs], PairedPNG]:
    """The same pairs in all forms: photos under the eight degradations."""
    (folder / "photos").mkdir()
    for name in PHOTOS:
        Image.fromarray(getattr(skimage.data, name)()).save(folder / "photos" / f"{name}.png")
    stores = {}
    for name, codec in STORES.items():
        keys = {"size": size, "budget": PAIRS_A_CLASS, "num_workers": 1, "compress": codec}
        prepare(PrepareConfig("photos", str(folder / "photos"), str(folder / codec), **keys))
        config = DataConfig("manifest", str(folder / codec), size, list(DEGRADATIONS))
        stores[name] = PreparedPairs(config, 0, BATCH)

    # The files of a paired dataset, from the raw store.
    mapped = stores["memory-mapped"]
    for number in range(mapped.num_pairs):
        path, _ = mapped.source(*divmod(number, BATCH))
        shard, _, row = str(path).partition("#")
        for file, image in zip(
            png_files(folder / "png", path), open_shard(Path(shard))[int(row)], strict=True
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file)
    return stores, PairedPNG(mapped, folder / "png")


def png_files(folder: Path, path: Path) -> tuple[Path, Path]:
    """The PNG files of the pair at an address of the store."""
    name = f"{path.parent.name}_{path.name.partition('#')[2]}.png"
    return folder / "lq" / name, folder / "gt" / name


def check_parity(mapped: PreparedPairs, png: PairedPNG) -> None:
    """Compares the batches of an epoch."""
    batches = StepBatches(0, -(-mapped.num_pairs // BATCH), BATCH, 0, 1)
    for ours, theirs in zip(pair_loader(mapped, batches, 0), pair_loader(png, batches, 0), strict=True):
        for first, second in ((ours.lq, theirs.lq), (ours.gt, theirs.gt), (ours.label, theirs.label)):
            if not torch.equal(first, second):
                raise SystemExit(f"step {ours.step}: the two datasets differ")


@dataclass(frozen=True)
class Round:
    """What one measurement gave; the processor time is of this process alone."""

    pairs: int
    seconds: float
    cpu_seconds: float


def measure(dataset: Dataset[Pair], first_step: int, seconds: float, workers: int) -> Round:
    """Loads batches until the time is over; the first is not counted, since workers start."""
    batches = iter(
        pair_loader(dataset, StepBatches(first_step, first_step + 1_000_000, BATCH, 0, 1), workers)
    )
    next(batches)
    started, cpu_started, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < seconds:
        next(batches)
        count += BATCH
    return Round(count, time.perf_counter() - started, time.process_time() - cpu_started)


def show(workers: int, name: str, values: list[float]) -> None:
    """Prints a line of the table."""
    middle = statistics.median(values)
    print(
        f"{workers:7d}  {name:24s}  {middle:7.1f} ({min(values):.1f} - {max(values):.1f})", flush=True
    )


def show_ratios(workers: int, name: str, png: list[Round], store: list[Round]) -> None:
    """Prints a store's speed beside the PNG files', round by round."""
    rounds = list(zip(png, store, strict=True))
    show(workers, f"{name} / PNG", [(b.pairs / b.seconds) / (a.pairs / a.seconds) for a, b in rounds])
    if not workers:
        ratios = [(b.pairs / b.cpu_seconds) / (a.pairs / a.cpu_seconds) for a, b in rounds]
        show(workers, f"{name} / PNG, cpu", ratios)


def environment(arguments: argparse.Namespace) -> dict[str, object]:
    """What the numbers depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "size": arguments.size,
        "batch_size": BATCH,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "numpy", "pillow", "diffrestorer")},
        "git_commit": commit or None,
    }


if __name__ == "__main__":
    main()
