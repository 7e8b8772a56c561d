"""The record of a run: what its outputs and rows depend on, and what is needed to repeat it."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from diffrestorer import __version__
from diffrestorer.config.checkout import git_commit
from diffrestorer.config.evaluating import EvaluateConfig
from diffrestorer.data.storage import write_text
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.report.write_report import Findings
from diffrestorer.evaluation.restoring.outputs import made_by
from diffrestorer.evaluation.scoring.scores import nan_counts
from diffrestorer.evaluation.suites import Suite

MODEL_SETTINGS = ("weights", "decoder", "sampler", "steps", "seed", "dtype")
"""What a row of a model depends on; a field that does not apply is empty."""


def made_with(
    method: Method,
    restoring: dict[str, dict[str, Any]],
    versions: dict[str, str],
    suite: Suite,
    output_dir: Path,
    device: torch.device,
) -> dict[str, str]:
    """Return what every row of a method depends on.

    Args:
        method: the method.
        restoring: method name -> settings of those that were restored in this run.
        versions: metric name -> version.
        suite: the suite, whose first output records the settings of a run that only scores.
        output_dir: of the run.
        device: where scores were computed.
    """
    # A run that only scores reads them from the first output.
    settings = restoring.get(method.name)
    if settings is None and method.kind != "degraded":
        settings = made_by(method.output(suite.items[0], output_dir))
    # A prepared suite may hold sets that this package did not degrade.
    draw = suite.items[0].draw if all(item.draw for item in suite.items) else None
    return {
        "metrics": "; ".join(f"{name}={text}" for name, text in versions.items()),
        **{key: str((settings or {}).get(key, "")) for key in MODEL_SETTINGS},
        "suite_seed": "" if draw is None else str(draw.seed),
        "synthesis": "" if draw is None else draw.synthesis,
        "device": device_name(device),
        "git_commit": git_commit() or "",
    }


def join_runs(
    known: dict[str, str] | None,
    run: dict[str, str],
) -> dict[str, str]:
    """Add what a further run of a method depends on: where runs differ, as in their seeds, all values are kept."""
    if known is None:
        return run
    joined = {}
    for key, value in run.items():
        values = known[key].split(" | ")
        joined[key] = known[key] if value in values else " | ".join([*values, value])
    return joined


def write_run(
    path: Path,
    config: EvaluateConfig,
    found: Findings,
    restoring: dict[str, dict[str, Any]],
    state: PartialState,
    device: torch.device,
) -> None:
    """Write run.json: what is needed to repeat the run, and how fast it was."""
    run = {
        "diffrestorer": __version__,
        **{name: version(name) for name in ("torch", "diffusers", "pyiqa", "numpy")},
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": state.num_processes,
        "suite": found.suite.name,
        "images": {task: len(found.suite.of(task)) for task in found.suite.degradations},
        "not_prepared": found.suite.missing,
        "seed": config.seed,
        "seeds": config.seeds,
        "steps": config.steps,
        "dtype": config.dtype,
        "batch_size": config.batch_size,
        "methods": restoring,
        "unavailable_methods": {
            method.name: method.reason for method in found.methods if method.reason
        },
        "unavailable_metrics": found.unavailable,
        "undefined_scores": nan_counts(found.summaries),
    }
    write_text(path, json.dumps(run, indent=1) + "\n")


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
