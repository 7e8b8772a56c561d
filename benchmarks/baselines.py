"""Parameters, FLOPs and seconds of the compared methods at 256x256; writes the table of docs/baselines.md.

    python benchmarks/baselines.py                  # table on stdout, raw numbers in benchmarks/results/baselines.json
    python benchmarks/baselines.py --size mini      # the mini sizes, beside the published ones in the same file
    python benchmarks/baselines.py --rounds 0       # parameters and FLOPs only: seconds need an idle machine

The methods take turns, one forward pass a round on a fresh random image after one warm-up; the median, fastest and
slowest round are shown. DA-CLIP's pass is one of its U-Net's steps; CLIP's two towers run once an image besides, and
are counted apart. FLOPs are torch's count (two a multiply-add). `training` is samples a second of forward, loss and
backward on pairs of the mini recipe's crops. AirNet's deformable convolution is timed against torchvision's, the
results compared.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d

from diffrestorer.baselines.airnet import deformable_convolution
from diffrestorer.baselines.da_clip.model import DaClip
from diffrestorer.baselines.registry import BASELINES, build_baseline
from diffrestorer.config.composition import load
from diffrestorer.config.schema import BaselineConfig
from diffrestorer.data.pairs import PairBatch
from diffrestorer.training.baseline import PHASES
from diffrestorer.training.baseline_task import RegressionTask

SIDE = 256
DOCUMENT = Path(__file__).parents[1] / "docs" / "baselines.md"
MARKS = ("<!-- table: benchmarks/baselines.py -->", "<!-- end of table -->")


def main() -> None:
    """Measures, prints, saves, and writes the table into the document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("paper", "mini"), default="paper", help="(default: paper)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "baselines.json"
    )
    arguments = parser.parse_args()

    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    results[arguments.size] = {**environment(arguments), "rows": measure_methods(arguments)}
    if arguments.rounds:
        results["deformable_convolution"] = {**environment(arguments), **measure_convolution(arguments)}
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    text = document_text(results)
    print(text)
    before, rest = DOCUMENT.read_text().split(MARKS[0])
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


def measure_methods(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a method; rounds are interleaved."""
    rows, passes = [], []
    for method in BASELINES:
        config = load("train_baseline", BaselineConfig, [f"method={method}", f"size={arguments.size}"])
        with torch.device("meta"):
            rows.append(
                {
                    "method": method,
                    **count(build_baseline(method, config.network).eval()),
                    "seconds": [],
                }
            )
        if arguments.rounds:
            model = build_baseline(method, config.network).to(arguments.device).eval()
            passes.append(forward_pass(model, arguments.device))
    for round_number in range(arguments.rounds + 1 if arguments.rounds else 0):
        for row, run in zip(rows, passes, strict=True):
            seconds = timed(run, arguments.device)
            if round_number:
                row["seconds"].append(seconds)
    if arguments.size == "mini" and arguments.rounds:
        for row in rows:
            row["training_samples_per_second"] = training_rates(row["method"], arguments)
    return rows


def forward_pass(model: nn.Module, device: str) -> Callable[[], object]:
    """A forward pass on a fresh image; of DA-CLIP, one step of the U-Net."""
    size = (1, 3, SIDE, SIDE)
    if isinstance(model, DaClip):
        dim = model.controller.clip.config.embed_dim
        steps = torch.ones(1, dtype=torch.int64, device=device)
        inputs = lambda: (torch.rand(size, device=device), torch.rand(size, device=device), steps)  # noqa: E731
        return lambda: model.unet(*inputs(), *torch.rand(2, 1, dim, device=device))
    return lambda: model(torch.rand(size, device=device))


def count(model: nn.Module) -> dict[str, float]:
    """Parameters in millions and GFLOP of a pass, of a model on the meta device."""
    counted = {"million_parameters": millions(model.unet if isinstance(model, DaClip) else model)}
    if isinstance(model, DaClip):
        counted["million_parameters_clip"] = millions(model.controller)
        side = model.controller.clip.image_size
        with FlopCounterMode(display=False) as counter:
            model.controller(torch.rand(1, 3, side, side, device="meta"))
        counted["gflop_clip"] = counter.get_total_flops() / 1e9
    with FlopCounterMode(display=False) as counter:
        forward_pass(model, "meta")()
    return {**counted, "gflop": counter.get_total_flops() / 1e9}


def millions(module: nn.Module) -> float:
    """Parameters."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    with torch.no_grad():
        run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def training_rates(method: str, arguments: argparse.Namespace) -> list[float]:
    """Samples a second of forward, loss and backward, a number a round."""
    no_first_phase = ["pretraining.max_steps=0", "clip=none"]
    config = load("train_baseline", BaselineConfig, [f"method={method}", "size=mini", *no_first_phase])
    task = PHASES.get(method, RegressionTask)(config).to(arguments.device)
    rates, size = [], (2, 3, config.data.size, config.data.size)
    for step in range(arguments.rounds + 1):
        lq, gt = (
            torch.randint(256, size, dtype=torch.uint8, device=arguments.device) for _ in range(2)
        )
        batch = PairBatch(lq, gt, torch.zeros(len(lq), dtype=torch.int64), step, tuple(range(len(lq))))
        started = time.perf_counter()
        task(batch).total.backward()
        if arguments.device != "cpu":
            torch.cuda.synchronize()
        rates.append(len(lq) / (time.perf_counter() - started))
    return rates[1:]


def measure_convolution(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ours against torchvision's, forward and backward, 8 images of 32 channels at 64x64."""
    weight = torch.randn(32, 32, 3, 3, device=arguments.device, requires_grad=True)
    seconds: dict[str, list[float]] = {"ours": [], "torchvision": []}
    difference = 0.0
    for _ in range(arguments.rounds + 1):
        features = torch.randn(8, 32, 64, 64, device=arguments.device, requires_grad=True)
        offset, mask = 2 * torch.randn(8, 18, 64, 64), torch.rand(8, 9, 64, 64)
        offset, mask = (tensor.to(arguments.device).requires_grad_() for tensor in (offset, mask))
        gradients = {}
        for name in seconds:
            started = time.perf_counter()
            if name == "ours":
                output = deformable_convolution(features, offset, mask, weight)
            else:
                output = deform_conv2d(features, offset, weight, padding=1, mask=mask)
            (gradients[name],) = torch.autograd.grad(output.square().mean(), features)
            seconds[name].append(time.perf_counter() - started)
        error = (gradients["ours"] - gradients["torchvision"]).abs().max() / gradients[
            "torchvision"
        ].abs().max()
        difference = max(difference, error.item())
    seconds = {name: values[1:] for name, values in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["torchvision"], strict=True)]
    return {
        "seconds": seconds,
        "ratios": ratios,
        "largest_relative_difference_of_gradients": difference,
    }


def document_text(results: dict[str, Any]) -> str:
    """The tables, in markdown."""
    lines = []
    for size in [size for size in ("paper", "mini") if size in results]:
        result = results[size]
        training = "training_samples_per_second" in result["rows"][0]
        threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"
        lines += [
            f"Size `{size}`, {SIDE}x{SIDE}, {result['device']}, {threads}, {result['rounds']} rounds"
            f", load average {result['load_average']:.1f} at the end:",
            "",
            "| method | parameters | GFLOP | seconds: median (fastest - slowest) |"
            + (" training, samples/s |" * training),
            "|---|---|---|---|" + ("---|" * training),
        ]
        for row in result["rows"]:
            clip, step = row.get("million_parameters_clip"), " a step" * ("gflop_clip" in row)
            cells = [
                row["method"],
                f"{row['million_parameters']:.2f} M" + (f" + {clip:.2f} M" if clip else ""),
                f"{row['gflop']:.1f}{step}" + (f" + {row['gflop_clip']:.1f}" if clip else ""),
                spread(row["seconds"], 3) + step if row["seconds"] else "not measured",
                *([spread(row["training_samples_per_second"], 1)] if training else []),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    if convolution := results.get("deformable_convolution"):
        lines.append(
            f"AirNet's deformable convolution, forward and backward on {convolution['device']}, beside torchvision's: "
            f"{spread(convolution['ratios'], 1)} times as fast."
        )
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    """Median, smallest and largest."""
    return (
        f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"
    )


def environment(arguments: argparse.Namespace) -> dict[str, object]:
    """What the numbers depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "side": SIDE,
        "rounds": arguments.rounds,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "diffrestorer")},
        "git_commit": commit or None,
    }


if __name__ == "__main__":
    main()
