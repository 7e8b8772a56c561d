"""The part of a run that people look at: losses at the tracker, sheets of samples, validation.

All processes make sheets and validate, each its share of the samples; the main process keeps and shows the result.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffrestorer.data.pairs import collate_pairs
from diffrestorer.data.prepared import TrainingPairs
from diffrestorer.training.averaging import WeightAverage
from diffrestorer.training.shared_work import share_out
from diffrestorer.training.sheets import save_sheet
from diffrestorer.training.task import Task, evaluating
from diffrestorer.training.trackers import Tracker
from diffrestorer.training.validation import Validation

SHEET_ROWS = 8
"""Samples on a sheet, at most."""


class Exhibits:
    """Losses, samples and validations of a run, in its folder, its log and its tracker.

    Args:
        task: that trains.
        average: of its weights, which validation uses; None: the weights as they are.
        pairs: that are trained on.
        tracker: of the run; None on all processes but the main one.
        output_dir: of the run; gets `samples/`.
        log: of the run.
    """

    def __init__(
        self,
        task: Task,
        average: WeightAverage | None,
        pairs: TrainingPairs,
        tracker: Tracker | None,
        output_dir: Path,
        log: logging.Logger,
    ) -> None:
        self.task = task
        self.average = average
        self.pairs = pairs
        self.num_samples = min(SHEET_ROWS, pairs.global_batch_size)
        self.tracker = tracker
        self.output_dir = output_dir
        self.log = log

    def send_progress(
        self, values: Mapping[str, float], optimizers: Sequence[torch.optim.Optimizer], done: int
    ) -> None:
        """Send values by name (mean losses, speed, memory), and every learning rate, to the tracker."""
        if self.tracker is None:
            return
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        names = ["lr", *(f"lr_{i}" for i in range(1, len(rates)))]
        self.tracker.log({**values, **dict(zip(names, rates, strict=True))}, done)

    @torch.no_grad()
    def save_samples(self, device: torch.device, done: int) -> None:
        """Write a sheet with a column for each tensor of `task.sample` and a row for each of the step's first samples.

        Samples run one by one, so that the sheet is the same for any number of processes and of micro batches.
        """

        def sample(position: int) -> list[Float[Tensor, "1 3 h w"]]:
            batch = collate_pairs([self.pairs[done - 1, position]])
            columns = self.task.sample(batch.to(device))
            return [column.float().clamp(0, 1).cpu() for column in columns]

        with evaluating(self.task):
            rows = share_out(sample, self.num_samples)
        if self.tracker is None:
            return
        columns = [torch.cat(column) for column in zip(*rows, strict=True)]
        sheet = save_sheet(self.output_dir / "samples" / f"step_{done}.png", columns)
        self.tracker.show("samples", sheet, done)

    def validate(self, validation: Validation, device: torch.device, done: int) -> None:
        """Score the averaged weights on the fixed set, and show scores and sheet."""
        with self.average.in_place() if self.average else nullcontext():
            score = validation(self.task, device)
        if self.tracker is None:
            return
        sheet = validation.write(score, done)
        row = score.row()
        self.tracker.log({f"validation/{name}": value for name, value in row.items()}, done)
        if sheet is not None:
            self.tracker.show("validation", sheet, done)
        shown = " ".join(f"{name} {value:.4f}" for name, value in row.items())
        self.log.info("validation at step %d  %s", done, shown)

    def close(self) -> None:
        """Let the tracker finish."""
        if self.tracker is not None:
            self.tracker.finish()
