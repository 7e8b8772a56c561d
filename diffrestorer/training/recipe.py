"""mini in a given number of minutes: its stages in a row, each an ordinary run with as many steps as fit."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState

from diffrestorer.config.composition import load
from diffrestorer.config.options import check_limits
from diffrestorer.config.schema import DecoderConfig, MiniConfig, RunConfig, Stage1Config, StudentConfig
from diffrestorer.data.storage import whole_file
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.loop import train
from diffrestorer.training.model_classes import follow_stage1
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.student import StudentTask
from diffrestorer.training.task import Task

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
    if not config.root:
        raise ValueError("root is not set: give root=FOLDER_OF_PHOTOS")
    check_limits(MiniConfig, asdict(config))
    if set(config.stages) != set(STAGES) or set(config.shares) != set(STAGES):
        raise ValueError(f"stages and shares name the stages {', '.join(STAGES)}")
    output_dir = Path(config.output_dir)
    steps = _plan(config, output_dir / "plan.json")

    before = None
    for stage, (_, task, _) in STAGES.items():
        train(task, _stage_config(config, stage, steps[stage], output_dir / stage, before), output_dir / stage)
        before = str(output_dir / stage)


def _plan(config: MiniConfig, path: Path) -> dict[str, int]:
    """Return the steps of each stage: those planned at the first start, or as many as fit into the minutes."""
    state = PartialState()
    if not path.is_file():
        started = time.monotonic()
        seconds = {stage: _seconds_per_step(config, stage, path.parent / ".speed") for stage in STAGES}
        left = (60 * config.minutes - (time.monotonic() - started)) * (1 - RESERVE)
        steps = {stage: max(1, int(left * config.shares[stage] / seconds[stage])) for stage in STAGES}
        if state.is_main_process:
            with whole_file(path) as file:
                file.write(json.dumps(steps, indent=1).encode() + b"\n")
    state.wait_for_everyone()
    return json.loads(path.read_text())


def _seconds_per_step(config: MiniConfig, stage: str, folder: Path) -> float:
    """Return how long a step of a stage takes, by a short run from the bundled weights that is thrown away."""
    run = _stage_config(config, stage, MEASURED_STEPS, folder, "mini")
    seconds = train(STAGES[stage][1], run, folder)
    assert seconds is not None, "there are steps after the warm-up"
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder)
    state.wait_for_everyone()
    return seconds


def _stage_config(config: MiniConfig, stage: str, steps: int, output_dir: Path, before: str | None) -> RunConfig:
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
    return follow_stage1(run) if isinstance(run, DecoderConfig) else run
