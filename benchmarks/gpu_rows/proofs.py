"""Rows that prove: the device computes what a CPU computes in float32, and says how far bf16 is from that."""

import copy
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from diffrestorer.data.pairs import PairBatch
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.restorer import Restorer
from diffrestorer.training.task import Task
from gpu_rows.report import Report
from gpu_rows.session import Session, float32_products

ROOT = Path(__file__).resolve().parents[2]

FLOAT32_BOUND = 1e-3
"""Relative, of images, losses and gradients in float32 without TF32 on two devices: rounding in another order."""

BF16_BOUND = 15.0
"""Decibels by which an image's own contrast stands above what bf16's rounding changes of it, on random weights; also
where the same is computed in bf16 in another order: compiled, by other tiles, by diffusers."""


def start_tests(session: Session) -> None:
    """Start `pytest tests/gpu` beside the other proofs, which measure no time either."""
    output = session.folder / "tests.xml"
    options = ["-q", "-rs", "-p", "no:cacheprovider", f"--junitxml={output}", "-m", "not slow"]
    if session.on_gpu and find_spec("xdist"):  # most of their time goes into imports and compiling
        options += ["-n", "3"]
    command = [sys.executable, "-m", "pytest", *options, "tests/gpu"]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(session.folder / "compiled_by_tests")}
    session.background["tests"] = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def tests(session: Session, report: Report) -> None:
    """The real CUDA tests of tests/gpu: how many passed, and the numbers they recorded."""
    if "tests" not in session.background:
        start_tests(session)
    process = session.background.pop("tests")
    text, _ = process.communicate()
    report.data["output"] = text[-4000:]
    suite = ElementTree.parse(session.folder / "tests.xml").getroot().find("testsuite")
    if suite is None:
        raise RuntimeError("pytest wrote no results")

    # What each test said, and the counts.
    outcomes = {}
    for case in suite.iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
        outcomes[case.get("name")] = {"outcome": kinds[0] if kinds else "passed", **found}
        for name, value in found.items():
            report.line(f"{case.get('name')}: {name}", str(value))
    report.data["tests"] = outcomes
    counts = {
        kind: sum(one["outcome"] == kind for one in outcomes.values()) for kind in ("passed", "skipped")
    }
    failed = len(outcomes) - sum(counts.values())
    skipped = f" ({reason})" if (reason := _skip_reason(suite)) else ""
    report.line(
        "pytest tests/gpu",
        f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped{skipped}",
    )
    if failed or process.returncode:
        raise RuntimeError(
            f"{failed} tests of tests/gpu failed, pytest's status is {process.returncode}"
        )


def _skip_reason(suite: ElementTree.Element) -> str:
    return ", ".join(sorted({str(case.get("message")) for case in suite.iter("skipped")}))


def parity(session: Session, report: Report) -> None:
    """Both training steps and the pipeline in float32 against the CPU; bf16, tiles and TF32 against float32."""
    # One set of weights, on the device and on the CPU.
    stage1 = session.stage1()
    on_cpu = copy.deepcopy(stage1).to("cpu")
    with float32_products(tf32=False):
        _prove_step(session, report, "stage-1 step", stage1, on_cpu)
        expected = _prove_pipeline(session, report, stage1.restorer, on_cpu.restorer)
    _compare_precisions(session, report, stage1.restorer, expected)
    del stage1, on_cpu
    session.collect()

    decoder = session.decoder(session.hardware())
    with float32_products(tf32=False):
        _prove_step(session, report, "decoder step", decoder, session.kept["decoder"])


def _prove_step(session: Session, report: Report, name: str, task: Task, on_cpu: Task) -> None:
    """Losses and gradients of one small batch."""
    batch = session.batch(1, side=session.sizes.proof_side)
    found = _losses_and_gradient(task, batch.to(session.device))
    expected = _losses_and_gradient(on_cpu, batch)
    for key, value in expected[0].items():
        difference = abs(found[0][key] - value) / max(abs(value), 1e-3)
        report.at_most(
            f"{name}, loss {key}: relative difference from the CPU", difference, FLOAT32_BOUND
        )
    gradient = relative(found[1], expected[1])
    report.at_most(f"{name}, gradient: relative difference from the CPU", gradient, 5 * FLOAT32_BOUND)


def _losses_and_gradient(task: Task, batch: PairBatch) -> tuple[dict[str, float], torch.Tensor]:
    """Losses by name, and the gradient as one vector on the CPU."""
    losses = task(batch)
    losses.total.backward()
    gradients = [p.grad.flatten().cpu() for p in task.parameters() if p.grad is not None]
    task.zero_grad(set_to_none=True)
    return {name: value.item() for name, value in losses.parts.items()}, torch.cat(gradients)


def _prove_pipeline(
    session: Session, report: Report, restorer: Restorer, on_cpu: Restorer
) -> torch.Tensor:
    """Two steps on a small image; return float32's image of the larger size."""
    pipe = session.pipeline(restorer, torch.float32)
    reference = session.pipeline(on_cpu, torch.float32)
    small = session.images(1, 1, session.sizes.proof_side)
    for decoder in ("refined", "sd"):
        found, expected = (restore(one, small, 2, decoder=decoder) for one in (pipe, reference))
        difference = relative(found, expected)
        report.at_most(
            f"pipeline, {decoder} decoder: relative difference from the CPU",
            difference,
            2 * FLOAT32_BOUND,
        )
    return restore(pipe, session.images(1, 2, session.sizes.bf16_side), max(session.sizes.steps))


def _compare_precisions(
    session: Session, report: Report, restorer: Restorer, expected: torch.Tensor
) -> None:
    """TF32 and bf16 against float32, tiles against the whole image."""
    steps = max(session.sizes.steps)
    image = session.images(1, 2, session.sizes.bf16_side)
    pipe = session.pipeline(restorer, torch.float32)
    with float32_products(tf32=True):
        report.line("TF32 against float32", f"{decibels(restore(pipe, image, steps), expected):.1f} dB")
    pipe = session.pipeline(restorer, torch.bfloat16)
    found = restore(pipe, image, steps)
    report.at_least(f"bf16 against float32 after {steps} steps", decibels(found, expected), BF16_BOUND)
    psnr = -10 * (found - expected).square().mean().log10().item()
    report.line("bf16 against float32, PSNR of images in [0, 1]", f"{psnr:.1f} dB")

    # Tiles: another number at a time changes rounding alone; against the whole image each norms itself.
    sides = session.sizes
    large = session.images(1, 3, min(2 * sides.tile, sides.tile_image))
    one, four = (restore(pipe, large, 2, tile=sides.tile, tile_batch_size=size) for size in (1, 4))
    report.at_least("tiles four at a time against one by one", decibels(four, one), BF16_BOUND)
    whole = restore(pipe, large, 2, tile="none")
    report.line("tiles against the whole image, random weights", f"{decibels(one, whole):.1f} dB")


def restore(
    pipe: DiffRestorerPipeline, images: torch.Tensor, steps: int, **options: Any
) -> torch.Tensor:
    """Return restored images, float32 on the CPU, from noise of a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    restored = pipe(images, steps, generator, output_type="pt", **options).images
    return torch.stack(list(restored)).float()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference over that of what is expected, its mean taken off."""
    return ((found - expected).norm() / (expected - expected.mean()).norm()).item()


def decibels(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far an image's contrast stands above its error: 20 log10 of 1 / `relative`."""
    return -20 * torch.tensor(max(relative(found, expected), 1e-9)).log10().item()
