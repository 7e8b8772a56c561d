"""A whole image before and after a change: two checkouts of this repository, in turn, on one core.

    git worktree add ../before COMMIT
    python benchmarks/whole_image.py ../before      # ratios on stdout, raw numbers in results/whole_image.json

Each checkout runs in a process of its own with one thread. Both restore the same batch of degraded photos with the same
weights, the other checkout's `mini`, in alternating order. Seconds are those of the processor, which a busy machine
disturbs less than those of the clock; the ratios are of the two runs of one round. The images are compared, too.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
SIDE = 256


class Checkout:
    """One checkout of the repository, restoring in a process of its own."""

    def __init__(self, folder: Path, model: Path, arguments: argparse.Namespace) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            str(folder),
            "--worker",
            "--model",
            str(model),
        ]
        command += ["--batch-size", str(arguments.batch_size), "--steps", str(arguments.steps)]
        command += ["--dtype", arguments.dtype]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder,
        )

    def restore(self, seed: int, image: Path) -> dict[str, float]:
        """Return the seconds of one batch, whose images are saved as an array."""
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps([seed, str(image)]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def work(arguments: argparse.Namespace) -> None:
    """Restore a batch for every line on stdin."""
    import numpy as np
    import skimage.data
    import torch

    from diffrestorer import DiffRestorerPipeline

    torch.set_num_threads(1)
    dtype = getattr(torch, arguments.dtype)
    pipe = DiffRestorerPipeline.from_pretrained(str(arguments.model)).prepare("cpu", dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    names = ("astronaut", "coffee", "chelsea", "rocket")
    photos = [
        getattr(skimage.data, names[i % len(names)])()[:SIDE, :SIDE]
        for i in range(arguments.batch_size)
    ]

    for line in sys.stdin:
        seed, path = json.loads(line)
        noise = np.random.default_rng(seed).normal(0, 25, (SIDE, SIDE, 3))
        lq = [np.clip(photo + noise, 0, 255).round().astype(np.uint8) for photo in photos]
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(lq))]
        wall, cpu = time.perf_counter(), time.process_time()
        images = pipe(lq, arguments.steps, generators, output_type="np").images
        seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        np.save(path, np.stack(images))
        print(json.dumps(seconds), flush=True)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run both checkouts in turn, after a first round that warms them up."""
    import numpy as np

    model = arguments.model or arguments.before.resolve() / "diffrestorer" / "weights" / "mini"
    sides = {
        "before": Checkout(arguments.before.resolve(), model, arguments),
        "after": Checkout(HERE, model, arguments),
    }
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    differences = []
    for index in range(arguments.rounds + 1):
        order = list(sides) if index % 2 else list(reversed(sides))
        taken = {name: sides[name].restore(100 * index, folder / f"{name}.npy") for name in order}
        before, after = (np.load(folder / f"{name}.npy") for name in sides)
        if index:
            for name, seconds in taken.items():
                rounds[name].append(seconds)
            differences.append(float(np.abs(before - after).max()))
    for side in sides.values():
        side.close()
    return {"rounds": rounds, "differences": differences}


def main() -> None:
    """Measure, print and save; with `--worker` it is the process of one checkout."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--model", type=Path, help="model folder (default: the other checkout's mini)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: 7)")
    parser.add_argument("--batch-size", type=int, default=4, help="(default: 4)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="(default: float32)"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "whole_image.json"
    )
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)

    import tempfile

    import torch

    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))

    # The ratio of every round, and seconds per image of both.
    before, after = (
        [seconds["cpu"] for seconds in found["rounds"][name]] for name in ("before", "after")
    )
    ratios = [old / new for old, new in zip(before, after, strict=True)]
    for name, values in (("before", before), ("after", after)):
        print(
            f"{name}: {statistics.median(values) / arguments.batch_size:.3f} s of the processor per image"
        )
    print(
        f"before/after: {statistics.median(ratios):.2f}x ({min(ratios):.2f} - {max(ratios):.2f}), "
        f"greatest difference {max(found['differences']):.1e} of 1"
    )

    # One file holds a row for each precision.
    rows = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else {}
    rows[arguments.dtype] = {
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "ratios": ratios,
        **found,
    }
    environment = {
        "side": SIDE,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "diffrestorer")},
    }
    arguments.output.write_text(json.dumps({**environment, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
