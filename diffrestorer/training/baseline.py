"""Training of the compared methods: which task a method learns by, and its phases one after the other."""

from dataclasses import replace
from pathlib import Path

from diffrestorer.config.schema import BaselineConfig
from diffrestorer.training.airnet_task import AirNetEncoderTask, AirNetTask
from diffrestorer.training.baseline_task import PRETRAINING, BaselineTask, RegressionTask
from diffrestorer.training.da_clip_task import ControllerTask, IRSDETask
from diffrestorer.training.loop import train

FIRST_PHASES: dict[str, type[BaselineTask]] = {"airnet": AirNetEncoderTask, "da_clip": ControllerTask}
PHASES: dict[str, type[BaselineTask]] = {"airnet": AirNetTask, "da_clip": IRSDETask}
"""Tasks by method. A method that is not listed is a `RegressionTask`."""


def first_phase(config: BaselineConfig) -> BaselineConfig:
    """Return the configuration of a method's first phase: the second's, where `pretraining` does not differ.

    First phases compare images with each other, so a process takes its share of a step at once, whatever the preset.
    """
    changed = {name: value for name, value in vars(config.pretraining).items() if value is not None}
    hardware = replace(config.train.hardware, max_micro_batch=None)
    return replace(config, train=replace(config.train, hardware=hardware, **changed))


def train_baseline(config: BaselineConfig) -> None:
    """Train a method. A first phase goes to `output_dir/pretraining/`, everything else straight to `output_dir`.

    Raises:
        ValueError: as `train`; `pretraining.max_steps` is set for a method without a first phase.
    """
    output_dir = Path(config.output_dir)
    if config.pretraining.max_steps:
        if config.method not in FIRST_PHASES:
            raise ValueError(
                f"pretraining.max_steps: {config.method} has no first phase; {', '.join(FIRST_PHASES)} do"
            )
        train(FIRST_PHASES[config.method], first_phase(config), output_dir / PRETRAINING)
    train(PHASES.get(config.method, RegressionTask), config, output_dir)
