"""A run's state on its way to the disk: at intervals, at the end, and from beside a loop that is stuck."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from diffrestorer.training.averaging import WeightAverage
from diffrestorer.training.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    take_snapshot,
    trained_state,
)
from diffrestorer.training.kept_files import read_kept
from diffrestorer.training.progress import LossRecord
from diffrestorer.training.sharding import ShardedOptimizer


class Saver:
    """Checkpoints of a run, and whether its state is still that after a step.

    Args:
        output_dir: of the run.
        task: that trains.
        optimizers: of the task.
        average: of the weights, if one is kept.
        keep: number of checkpoints that stay.
        first_step: number of steps done at the start.

    Attributes:
        done: number of steps done.
        writer: of the checkpoints.
    """

    def __init__(
        self,
        output_dir: Path,
        task: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        average: WeightAverage | None,
        keep: int,
        first_step: int,
    ) -> None:
        self.output_dir = output_dir
        self.task = task
        self.optimizers = optimizers
        self.average = average
        self.writer = CheckpointWriter(output_dir / "checkpoints", keep)
        self.first_step = first_step
        self.state = [*trained_state(task).values()]
        self.mark(first_step)

    def mark(self, done: int) -> None:
        """Note the state after a step, to tell later whether it is still that."""
        self.done = done
        self.marked = [tensor._version for tensor in self.state]

    def save(self) -> None:
        """Start to write a checkpoint. Sharded optimisers are consolidated before."""
        copies = read_kept(self.output_dir)
        self.writer.save(take_snapshot(self.done, self.task, self.optimizers, self.average, copies))

    def save_last_step(self, record: LossRecord) -> int | None:
        """Save the last finished step while the loop is stuck in the next one; None if that can't be done.

        A network with statistics (BatchNorm) changes in the forward pass: its state after the step is gone by then.
        And losses that were not yet averaged over processes can't be any more.

        Raises:
            CheckpointError: other processes hold a part of the state.
        """
        if self.done == self.first_step:
            return self.done
        if any(isinstance(optimizer, ShardedOptimizer) for optimizer in self.optimizers):
            raise CheckpointError(
                "processes that wait for each other cannot collect the state that train.hardware.shard_optimizer "
                "divides among them: the same command goes on from the last checkpoint"
            )
        if self.marked != [tensor._version for tensor in self.state]:
            return None
        waiting = any(step < self.done for step, _, _ in record.pending)
        if waiting and record.accelerator.num_processes > 1:
            return None

        # On a GPU what is copied must not wait for the stuck work.
        device = record.accelerator.device
        with torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext():
            record.flush(self.done)
            self.save()
        self.writer.wait()
        return self.done
