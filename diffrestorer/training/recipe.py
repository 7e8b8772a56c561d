"""mini trained on for a given number of minutes: runs in a row, each an ordinary one with as many steps as fit."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffrestorer.config.composition import load
from diffrestorer.config.options import check_limits
from diffrestorer.config.schema import (
    BaseConfig,
    DecoderConfig,
    MiniConfig,
    RunConfig,
    Stage1Config,
    StudentConfig,
)
from diffrestorer.training.checkpoint import newest_copies
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.encoder_tuning import ImageEncoderTask
from diffrestorer.training.kept_files import DamagedFileError, read_sealed, write_sealed
from diffrestorer.training.launcher import join_processes
from diffrestorer.training.loop import train
from diffrestorer.training.model_classes import with_classes
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.student import StudentTask
from diffrestorer.training.task import Task

LOG = logging.getLogger("diffrestorer.training")


@dataclass(frozen=True)
class Stage:
    """One of the runs.

    Attributes:
        root: of its configuration, as its script names it.
        schema: of that configuration.
        task: what it trains.
        model_key: takes the model of the stage before; None for the first one, which begins as its overrides say.
    """

    root: str
    schema: type[RunConfig]
    task: Callable[[Any], Task]
    model_key: str | None


STAGES = {
    "stage1": Stage("train_stage1", Stage1Config, Stage1Task, None),
    "decoder": Stage("train_decoder", DecoderConfig, DecoderTask, "stage1"),
    "image_encoder": Stage("train_base", BaseConfig, ImageEncoderTask, "teacher"),
    "student": Stage("train_student", StudentConfig, StudentTask, "teacher"),
    "finish": Stage("train_student", StudentConfig, StudentTask, "teacher"),
}
"""The stages in their order. The first two make a teacher of many steps; they are left out unless they have a share."""

BATCH_SIZES = {"cuda": 64, "cpu": 8}
"""Crops of a step by kind of device. The GPU's number has not been tried; the weights that ship were trained with 8."""

MEASURED_STEPS = 30
"""Steps of the run that measures a stage's speed; the first ten warm up."""
RESERVE = 0.05
"""Share of the time left for sample sheets, checkpoints and models."""


def train_mini(config: MiniConfig) -> None:
    """Train every stage that has a share into `output_dir/STAGE`; the last one's folder holds the finished model.

    Raises:
        ValueError: there are no photos or no minutes, a stage is unknown or none has a share, or as `train`.
    """
    # Refuse what can be refused before anything is measured.
    if not config.root:
        raise ValueError("root is not set: give root=FOLDER_OF_PHOTOS")
    check_limits(MiniConfig, asdict(config))
    if set(config.stages) != set(STAGES) or set(config.shares) != set(STAGES):
        raise ValueError(f"stages and shares name the stages {', '.join(STAGES)}")
    chosen = chosen_stages(config)
    if not chosen:
        raise ValueError("no stage has a share of the minutes: give shares.student=1")

    # One stage after the other, each from the model before it. A stage is planned when its turn comes.
    output_dir = Path(config.output_dir)
    started = time.monotonic()
    before = config.teacher
    for stage in chosen:
        folder = output_dir / stage
        steps = _planned_steps(config, stage, before, started)
        train(STAGES[stage].task, _stage_config(config, stage, steps, folder, before), folder)
        before = str(folder)


def chosen_stages(config: MiniConfig) -> list[str]:
    """Return the stages that have a share of the minutes, in their order."""
    return [stage for stage in STAGES if config.shares[stage] > 0]


def _planned_steps(config: MiniConfig, stage: str, before: str, started: float) -> int:
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
    chosen = chosen_stages(config)
    later = sum(config.shares[name] for name in chosen[chosen.index(stage) :])
    total = sum(config.shares[name] for name in chosen)
    spent = max(time.monotonic() - started, 60 * config.minutes * (1 - later / total))
    left = max(0.0, 60 * config.minutes - spent) * (1 - RESERVE)
    plan[stage] = max(1, int(left * config.shares[stage] / later / seconds))

    # Every process measured for itself; the main one's plan counts.
    state = join_processes()
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
            if isinstance(plan, dict) and set(plan) == {"stage1", "decoder", "student"}:
                return plan
        LOG.warning("%s; planning again what has not begun", error)

    begun = {}
    for stage in STAGES:
        _, copies = newest_copies(path.parent / stage / "checkpoints")
        with suppress(OSError, ValueError, YAMLError, OmegaConfBaseException, AttributeError):
            text = copies.get("config.yaml") or (path.parent / stage / "config.yaml").read_bytes()
            begun[stage] = int(OmegaConf.create(text.decode()).train.max_steps)
    return begun


def _seconds_per_step(config: MiniConfig, stage: str, folder: Path, before: str) -> float:
    """Return the seconds of a stage's step, measured by a short run from `before` that is thrown away."""
    _remove_together(folder)  # of an earlier start that was killed
    run = _stage_config(config, stage, MEASURED_STEPS, folder, before)
    seconds = train(STAGES[stage].task, run, folder)
    assert seconds is not None, "there are steps after the warm-up"
    _remove_together(folder)
    return seconds


def _remove_together(folder: Path) -> None:
    """Remove a folder once all processes are done with it."""
    state = join_processes()
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    state.wait_for_everyone()


def _stage_config(
    config: MiniConfig, stage: str, steps: int, output_dir: Path, before: str
) -> RunConfig:
    """Return the configuration of a stage's run, as its script would compose it.

    Args:
        before: model of the stage before.
    """
    kind = STAGES[stage]
    workers = max(1, (os.cpu_count() or 2) - 1) if config.num_workers is None else config.num_workers
    batch_size = config.batch_size or BATCH_SIZES.get(join_processes().device.type, BATCH_SIZES["cuda"])
    counts = [
        f"seed={config.seed}",
        f"train.max_steps={steps}",
        f"train.num_workers={workers}",
    ]
    if kind.schema is BaseConfig:
        counts.append(f"image_encoder_steps={steps}")
    batch = f"train.global_batch_size={batch_size}"
    run = load(kind.root, kind.schema, [*config.common, batch, *config.stages[stage], *counts])

    # Paths are set as they are: on a command line some of their characters would need quotes.
    run.output_dir, run.data.root = str(output_dir), config.root
    if kind.model_key is not None:
        setattr(run, kind.model_key, before)
    return run if isinstance(run, Stage1Config) else with_classes(run)
