"""The part of a run that people look at: losses at the tracker, sheets of samples, validation."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from diffrestorer.data.pairs import PairBatch
from diffrestorer.training.averaging import WeightAverage
from diffrestorer.training.sheets import save_sheet
from diffrestorer.training.task import Task
from diffrestorer.training.trackers import Tracker
from diffrestorer.training.validation import Validation

SHEET_ROWS = 8
"""Samples on a sheet, at most."""


class Exhibits:
    """Losses, samples and validations of a run, in its folder, its log and its tracker. The main process has them.

    Args:
        task: that trains.
        average: of its weights, which validation uses; None: the weights as they are.
        tracker: of the run.
        output_dir: of the run; gets `samples/`.
        log: of the run.
    """

    def __init__(
        self,
        task: Task,
        average: WeightAverage | None,
        tracker: Tracker,
        output_dir: Path,
        log: logging.Logger,
    ) -> None:
        self.task = task
        self.average = average
        self.tracker = tracker
        self.output_dir = output_dir
        self.log = log

    def send_progress(
        self, values: Mapping[str, float], optimizers: Sequence[torch.optim.Optimizer], done: int
    ) -> None:
        """Send values by name (mean losses, speed, memory), and every learning rate, to the tracker."""
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        names = ["lr", *(f"lr_{i}" for i in range(1, len(rates)))]
        self.tracker.log({**values, **dict(zip(names, rates, strict=True))}, done)

    @torch.no_grad()
    def save_samples(self, batch: PairBatch, device: torch.device, done: int) -> None:
        """Write a sheet with a row per sample and a column for each tensor of `task.sample`."""
        samples = self.task.sample(batch.first(SHEET_ROWS).to(device))
        columns = [column.float().clamp(0, 1).cpu() for column in samples]
        sheet = save_sheet(self.output_dir / "samples" / f"step_{done}.png", columns)
        self.tracker.show("samples", sheet, done)

    def validate(self, validation: Validation, device: torch.device, done: int) -> None:
        """Score the averaged weights on the fixed set, and show scores and sheet."""
        with self.average.in_place() if self.average else nullcontext():
            score = validation(self.task, done, device)
        row = score.row()
        self.tracker.log({f"validation/{name}": value for name, value in row.items()}, done)
        if validation.sheet is not None:
            self.tracker.show("validation", validation.sheet, done)
        shown = " ".join(f"{name} {value:.4f}" for name, value in row.items())
        self.log.info("validation at step %d  %s", done, shown)

    def close(self) -> None:
        """Let the tracker finish."""
        self.tracker.finish()
