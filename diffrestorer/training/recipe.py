"""mini in a given number of minutes: its stages in a row, each an ordinary run with as many steps as fit."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffrestorer.config.composition import load
from diffrestorer.config.options import check_limits
from diffrestorer.config.schema import DecoderConfig, MiniConfig, RunConfig, Stage1Config, StudentConfig
from diffrestorer.training.checkpoint import newest_copies
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.kept_files import DamagedFileError, read_sealed, write_sealed
from diffrestorer.training.loop import train
from diffrestorer.training.model_classes import with_classes
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.student import StudentTask
from diffrestorer.training.task import Task

LOG = logging.getLogger("diffrestorer.training")

STAGES: dict[str, tuple[type[RunConfig], Callable[[Any], Task], str | None]] = {
    "stage1": (Stage1Config, Stage1Task, None),
    "decoder": (DecoderConfig, DecoderTask, "stage1"),
    "student": (StudentConfig, StudentTask, "teacher"),
}
"""Stage, in order -> its configuration, its task, and the key that takes the model of the stage before."""

MEASURED_STEPS = 30
"""Steps of the run that measures a stage's speed; the first ten warm up."""
RESERVE = 0.05
"""Share of the time left for sample sheets, checkpoints and models."""


def train_mini(config: MiniConfig) -> None:
    """Train every stage into `output_dir/STAGE`; the student's folder holds the finished model.

    Raises:
        ValueError: there are no photos or no minutes, a stage is unknown, or as `train`.
    """
    # Refuse what can be refused before anything is measured.
    if not config.root:
        raise ValueError("root is not set: give root=FOLDER_OF_PHOTOS")
    check_limits(MiniConfig, asdict(config))
    if set(config.stages) != set(STAGES) or set(config.shares) != set(STAGES):
        raise ValueError(f"stages and shares name the stages {', '.join(STAGES)}")

    # One stage after the other, each from the model before it. A stage is planned when its turn comes.
    output_dir = Path(config.output_dir)
    started = time.monotonic()
    before = None
    for stage, (_, task, _) in STAGES.items():
        folder = output_dir / stage
        steps = _planned_steps(config, stage, before, started)
        train(task, _stage_config(config, stage, steps, folder, before), folder)
        before = str(folder)


def _planned_steps(config: MiniConfig, stage: str, before: str | None, started: float) -> int:
    """Return the steps of a stage: those planned at its first start, or as many as fit into its share of what is left.

    Args:
        before: model of the stage before.
        started: when this process began, by the monotonic clock.
    """
    path = Path(config.output_dir) / "plan.json"
    plan = _read_plan(path)
    if stage in plan:
        return plan[stage]
    seconds = _seconds_per_step(config, stage, path.parent / ".speed", before)

    # Stages that an earlier process ran count with their shares.
    later = list(STAGES)[list(STAGES).index(stage) :]
    shares = sum(config.shares[name] for name in later)
    spent = max(time.monotonic() - started, 60 * config.minutes * (1 - shares))
    left = max(0.0, 60 * config.minutes - spent) * (1 - RESERVE)
    plan[stage] = max(1, int(left * config.shares[stage] / shares / seconds))

    # Every process measured for itself; the main one's plan counts.
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        write_sealed(path, plan)
    state.wait_for_everyone()
    return read_sealed(path)[stage]


def _read_plan(path: Path) -> dict[str, int]:
    """Return the planned steps of the stages. Without a sound plan: those of the stages that have begun."""
    try:
        return read_sealed(path)
    except FileNotFoundError:
        pass
    except DamagedFileError as error:
        # Earlier versions wrote the plan without a checksum.
        with suppress(OSError, ValueError):
            plan = json.loads(path.read_bytes().decode())
            if isinstance(plan, dict) and set(plan) == set(STAGES):
                return plan
        LOG.warning("%s; planning again what has not begun", error)

    begun = {}
    for stage in STAGES:
        _, copies = newest_copies(path.parent / stage / "checkpoints")
        with suppress(OSError, ValueError, YAMLError, OmegaConfBaseException, AttributeError):
            text = copies.get("config.yaml") or (path.parent / stage / "config.yaml").read_bytes()
            begun[stage] = int(OmegaConf.create(text.decode()).train.max_steps)
    return begun


def _seconds_per_step(config: MiniConfig, stage: str, folder: Path, before: str | None) -> float:
    """Return the seconds of a stage's step, measured by a short run from `before` that is thrown away."""
    _remove_together(folder)  # of an earlier start that was killed
    run = _stage_config(config, stage, MEASURED_STEPS, folder, before)
    seconds = train(STAGES[stage][1], run, folder)
    assert seconds is not None, "there are steps after the warm-up"
    _remove_together(folder)
    return seconds


def _remove_together(folder: Path) -> None:
    """Remove a folder once all processes are done with it."""
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    state.wait_for_everyone()


def _stage_config(
    config: MiniConfig, stage: str, steps: int, output_dir: Path, before: str | None
) -> RunConfig:
    """Return the configuration of a stage's run, as its script would compose it.

    Args:
        before: model of the stage before.
    """
    schema, _, key = STAGES[stage]
    workers = max(1, (os.cpu_count() or 2) - 1) if config.num_workers is None else config.num_workers
    counts = [f"seed={config.seed}", f"train.max_steps={steps}", f"train.num_workers={workers}"]
    run = load(f"train_{stage}", schema, [*config.common, *config.stages[stage], *counts])

    # Paths are set as they are: on a command line some of their characters would need quotes.
    run.output_dir, run.data.root = str(output_dir), config.root
    if key is not None:
        setattr(run, key, before)
    return with_classes(run) if isinstance(run, DecoderConfig) else run
