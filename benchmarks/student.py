"""A one-step student beside its teacher: PSNR per degradation and on clean photos, and seconds per image.

    python scripts/prepare_data.py set=photos split=test root=PHOTOS out=PREPARED size=256
    python benchmarks/student.py --student outputs/train_student --data PREPARED     # a few minutes on two cores

PREPARED holds test pairs of the eight degradations and the four mixtures; its clean images are restored as well, since
a model should leave them alone. The teacher samples in 1, 2, 4 and 20 steps; both use the refined decoder. The table
gives mean PSNR in dB per degradation, the worst clean photo, the share of degraded photos that lose over 0.5 dB
against their input, and the share of photos of one degradation, or none, whose class is told. Times are taken in turn
in one process: the teacher at its most steps, then the student.

    python benchmarks/student.py --teacher FOLDER --student mini --data PREPARED --tasks clean --steps 20
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffrestorer import DiffRestorerPipeline
from diffrestorer.config.evaluating import EvaluateConfig, TestDataConfig
from diffrestorer.evaluation.paper_suites import build_suite
from diffrestorer.evaluation.restoring.outputs import read_pixels

CLEAN = "clean"
HARM = 0.5
"""Loss in dB from which a photo counts as harmed."""


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--student", required=True, help="model folder, or output folder of train_student.py"
    )
    parser.add_argument("--teacher", default="mini", help="(default: mini)")
    parser.add_argument("--data", type=Path, required=True, help="folder with prepared test pairs")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 2, 4, 20], help="of the teacher (default: 1 2 4 20)"
    )
    parser.add_argument(
        "--images", type=int, help="use the first so many photos per degradation (default: all)"
    )
    parser.add_argument(
        "--tasks", nargs="+", help=f"degradations and mixtures, or {CLEAN} (default: all, and {CLEAN})"
    )
    parser.add_argument("--rounds", type=int, default=9, help="of the timing (default: 9)")
    parser.add_argument(
        "--sheet", type=Path, help="picture of the first photo: a row per degradation (default: none)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "student.json"
    )
    arguments = parser.parse_args()

    teacher, student = (load(model) for model in (arguments.teacher, arguments.student))
    runs = {f"teacher, {steps} steps": (teacher, steps) for steps in arguments.steps} | {
        "student": (student, 1)
    }
    pairs = read_pairs(arguments.data, arguments.images)
    if arguments.tasks:
        pairs = {task: pairs[task] for task in arguments.tasks}
    if arguments.sheet:
        save_sheet(pairs, teacher, student, max(arguments.steps), arguments.sheet)
    scores = score(pairs, runs)
    seconds = race(teacher, student, max(arguments.steps), arguments.rounds)

    told = {"teacher": tell(pairs, teacher), "student": tell(pairs, student)}
    print(table(scores))
    for name, shares in told.items():
        print(
            f"told right by the {name}: {', '.join(f'{task} {share:.0%}' for task, share in shares.items())}"
        )
    ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)]
    spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
    print(f"\nend to end, 256x256, one at a time: {statistics.median(ratios):.2f}x ({spread})")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    results = {
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "git_commit": commit or None,
        "versions": {name: version(name) for name in ("torch", "diffusers", "diffrestorer")},
        "steps": arguments.steps, "psnr": scores, "told": told, "seconds": seconds, "speed_up": ratios,
    }  # fmt: skip
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def load(model: str) -> DiffRestorerPipeline:
    """Return a quiet pipeline."""
    pipe = DiffRestorerPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read_pairs(root: Path, images: int | None) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the pairs (degraded, clean) of each degradation, and each clean image once as a pair with itself."""
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    clean: dict[str, np.ndarray] = {}
    for suite in ("single", "mixed"):
        config = EvaluateConfig(suite=suite, data=TestDataConfig(root=str(root)), images=images)
        for item in build_suite(config).items:
            assert item.gt is not None, "photos degraded here all have one"
            gt = read_pixels(item.gt)
            pairs.setdefault(item.degradation, []).append((read_pixels(item.lq), gt))
            clean.setdefault(item.image, gt)
    return {**pairs, CLEAN: [(gt, gt) for gt in clean.values()]}


def score(
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]],
    runs: dict[str, tuple[DiffRestorerPipeline, int]],
) -> dict[str, dict[str, list[float]]]:
    """Return PSNR per photo, by run and degradation; the run `input` restores nothing."""
    found: dict[str, dict[str, list[float]]] = {"input": {}, **{name: {} for name in runs}}
    for degradation, rows in pairs.items():
        found["input"][degradation] = [psnr(lq, gt) for lq, gt in rows]
        for name, (pipe, steps) in runs.items():
            found[name][degradation] = [psnr(restore(pipe, lq, steps), gt) for lq, gt in rows]
        means = ", ".join(f"{name} {statistics.mean(found[name][degradation]):.2f}" for name in found)
        print(f"{degradation}: {means}", flush=True)
    return found


def restore(pipe: DiffRestorerPipeline, lq: np.ndarray, steps: int) -> np.ndarray:
    """Return the restored image as 8-bit pixels."""
    generator = torch.Generator().manual_seed(0)
    image = pipe(lq, num_inference_steps=steps, generator=generator, output_type="np").images[0]
    return np.rint(255 * image).astype(np.uint8)


def tell(
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]], pipe: DiffRestorerPipeline
) -> dict[str, float]:
    """Return the share of photos whose class is the most probable one, by task that is a class of the model."""
    shares = {}
    for task in (task for task in pairs if task in pipe.classes):
        found = [int(pipe.detect(lq)[0].argmax()) for lq, _ in pairs[task]]
        shares[task] = statistics.mean(pipe.classes[index] == task for index in found)
    return shares


def save_sheet(
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]],
    teacher: DiffRestorerPipeline,
    student: DiffRestorerPipeline,
    steps: int,
    path: Path,
) -> None:
    """Save a picture: degraded, by the teacher, by the student, clean; a row per degradation, clean photos last."""
    rows = [
        np.concatenate([lq, restore(teacher, lq, steps), restore(student, lq, 1), gt], axis=1)
        for (lq, gt), *_ in pairs.values()
    ]
    Image.fromarray(np.concatenate(rows)).save(path, quality=85)


def psnr(image: np.ndarray, gt: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of 8-bit images in dB, at most 80 (a mean needs a finite number)."""
    error = np.mean((image.astype(np.float64) - gt) ** 2)
    return float(min(80.0, 10 * np.log10(255**2 / max(error, 1e-12))))


def race(
    teacher: DiffRestorerPipeline, student: DiffRestorerPipeline, steps: int, rounds: int
) -> dict[str, Any]:
    """Return seconds per image of both, in turn on fresh random images of 256x256; the first round warms up."""
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"teacher": [], "student": []}
    for number in range(rounds + 1):
        image = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
        for name, pipe, own_steps in (("teacher", teacher, steps), ("student", student, 1)):
            started = time.perf_counter()
            restore(pipe, image, own_steps)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def table(scores: dict[str, dict[str, list[float]]]) -> str:
    """Return the scores in Markdown: means per degradation, then what a mean hides."""
    names = list(scores)
    degradations = [name for name in scores["input"] if name != CLEAN]
    lines = [f"| PSNR, dB | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]

    def row(title: str, values: list[str]) -> None:
        lines.append(f"| {title} | {' | '.join(values)} |")

    def means(task: str) -> list[float]:
        return [statistics.mean(scores[name][task]) for name in names]

    # Each degradation, and all of them.
    for task in degradations:
        row(task, [f"{mean:.2f}" for mean in means(task)])
    if degradations:
        overall = [statistics.mean(column) for column in zip(*map(means, degradations), strict=True)]
        row(f"mean of the {len(degradations)}", [f"{mean:.2f}" for mean in overall])
        row(f"harmed by more than {HARM} dB", [harmed(scores, name, degradations) for name in names])

    # What should have stayed as it was.
    if CLEAN in scores["input"]:
        row("clean photos", [f"{mean:.2f}" for mean in means(CLEAN)])
        row("clean photos, worst", [f"{min(scores[name][CLEAN]):.2f}" for name in names])
    return "\n".join(lines)


def harmed(scores: dict[str, dict[str, list[float]]], name: str, degradations: list[str]) -> str:
    """Return the share of degraded photos that a run made worse."""
    losses = [
        before - after
        for row in degradations
        for before, after in zip(scores["input"][row], scores[name][row], strict=True)
    ]
    return f"{sum(loss > HARM for loss in losses) / len(losses):.0%}"


if __name__ == "__main__":
    main()
