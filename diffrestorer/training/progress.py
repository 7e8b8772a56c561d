"""A run's batches, losses and speed as it goes: batches ahead of time, `losses.csv`, a line of progress."""

import csv
import io
import logging
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from diffrestorer.config.hardware_presets import GIB
from diffrestorer.data.pairs import PairBatch
from diffrestorer.data.prepared import TrainingPairs
from diffrestorer.training.step_memory import peak_memory

WARM_UP_STEPS = 10
"""Steps at a start that are not counted in its speed: memory is taken and blocks are compiled in them."""


class TimedBatches:
    """Batches, and the seconds that training waited for them.

    Args:
        batches: the loader.
        ahead: batches that are fetched before they are needed. When one fails, the processes of a run can still agree
            to stop while they have batches left.
        on_failure: is told of the failure, and of how many batches came before it. Without it failures are raised.

    Attributes:
        waited: seconds so far.
        failed: whether a batch failed; those before it are still given out.
    """

    def __init__(
        self,
        batches: Iterable[PairBatch],
        ahead: int = 0,
        on_failure: Callable[[Exception, int], None] | None = None,
    ) -> None:
        self.batches = batches
        self.ahead = ahead
        self.on_failure = on_failure
        self.waited = 0.0
        self.failed = False

    def __iter__(self) -> Iterator[PairBatch]:
        source = iter(self.batches)
        _leave_workers_to_the_loader()
        fetched: deque[PairBatch] = deque()
        count = 0
        ended = False
        while True:
            # Fetch until there are enough, or no more.
            while not ended and len(fetched) <= self.ahead:
                batch = self._fetch(source, count)
                if batch is None:
                    ended = True
                else:
                    fetched.append(batch)
                    count += 1
            if not fetched:
                return
            yield fetched.popleft()

    def _fetch(self, source: Iterator[PairBatch], count: int) -> PairBatch | None:
        started = time.monotonic()
        try:
            return next(source, None)
        except Exception as error:
            if self.on_failure is None:
                raise
            self.failed = True
            self.on_failure(error, count)
            return None
        finally:
            self.waited += time.monotonic() - started


def _leave_workers_to_the_loader() -> None:
    """Undo torch's handler of SIGCHLD, which raises a data worker's death wherever the main thread happens to be.

    The loader finds out by itself within five seconds, while it waits for the worker: between two steps.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    is_torch = getattr(handler, "__module__", "").startswith("torch.utils.data")
    if is_torch and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class Speed:
    """Seconds per step of one start, without its warm-up.

    Args:
        device: is waited for at both ends of the measurement.

    Attributes:
        seconds_per_step: None until the last step, and if there were no steps after the warm-up.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps = 0
        self.started = 0.0
        self.seconds_per_step: float | None = None

    def count_step(self, last: bool) -> None:
        """Count a step; the first ones warm up."""
        self.steps += 1
        if self.steps == WARM_UP_STEPS:
            self.started = self._now()
        elif self.steps > WARM_UP_STEPS and last:
            self.seconds_per_step = (self._now() - self.started) / (self.steps - WARM_UP_STEPS)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic()


class LossRecord:
    """`losses.csv`: a row per step, the mean over all samples. Losses stay on the device until they are flushed.

    Args:
        path: of the file.
        first_step: of this start; the file holds the steps before it.
        accelerator: of the run.
        dataset: names the photos of a batch whose loss is not finite.
        accumulation: times that `add` is called per step.
        log: of the run.

    Attributes:
        throughput: `measure_throughput`'s values; empty until operations are counted, and where they are not.
    """

    def __init__(
        self,
        path: Path,
        first_step: int,
        accelerator: Accelerator,
        dataset: TrainingPairs,
        accumulation: int,
        log: logging.Logger,
    ) -> None:
        self.path = path
        self.accelerator = accelerator
        self.dataset = dataset
        self.accumulation = accumulation
        self.log = log
        self.throughput: dict[str, float] = {}
        self.pending: list[tuple[int, Float[Tensor, ""], dict[str, Tensor]]] = []
        self.flushed = (first_step, time.monotonic(), 0.0)
        log.info(
            "step %d, %d process(es) on %s", first_step, accelerator.num_processes, accelerator.device
        )

    def add(self, step: int, total: Float[Tensor, ""], parts: dict[str, Tensor]) -> None:
        """Note the losses of a micro batch without waiting for the device."""
        detached = {name: value.detach() for name, value in parts.items()}
        self.pending.append((step, total.detach(), detached))

    def flush(self, done: int) -> dict[str, float]:
        """Write the rows of the steps before `done`, averaged over micro batches and processes.

        Returns:
            The means over these steps by name; empty: there were none.

        Raises:
            ValueError: a loss is NaN or infinite; the message names the step and the photos of its batch.
        """
        complete = [entry for entry in self.pending if entry[0] < done]
        self.pending = self.pending[len(complete) :]
        if not complete:
            return {}

        # One transfer from the device for all of them.
        names = ["total", *complete[0][2]]
        values = torch.stack(
            [torch.stack([total, *parts.values()]).float() for _, total, parts in complete]
        )
        values = values.view(-1, self.accumulation, len(names)).mean(1)
        rows = self.accelerator.reduce(values, reduction="mean").tolist()
        steps = [step for step, _, _ in complete[:: self.accumulation]]

        # A loss that is not finite ends the run before it is written.
        for step, row in zip(steps, rows, strict=True):
            if not all(math.isfinite(value) for value in row):
                raise ValueError(self._describe(step, dict(zip(names, row, strict=True))))

        if self.accelerator.is_main_process:
            self._append(names, steps, rows)
        means = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
        return dict(zip(names, means, strict=True))

    def _append(self, names: list[str], steps: list[int], rows: list[list[float]]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.path.exists() or not self.path.stat().st_size:
            writer.writerow(["step", *names])
        for step, row in zip(steps, rows, strict=True):
            writer.writerow([step, *map(repr, row)])
        with self.path.open("a", newline="") as file:
            file.write(text.getvalue())

    def _describe(self, step: int, losses: dict[str, float]) -> str:
        sources = [
            self.dataset.source(step, position) for position in range(self.dataset.global_batch_size)
        ]
        batch = ", ".join(f"{path.name} ({degradation})" for path, degradation in sources)
        bad = ", ".join(f"{name}={value}" for name, value in losses.items() if not math.isfinite(value))
        return f"loss is not finite at step {step}: {bad}; its batch was {batch}"

    def log_progress(
        self, done: int, max_steps: int, waited: float, losses: dict[str, float]
    ) -> dict[str, float]:
        """Log a line: losses, speed and data wait since the line before, and the time that the rest will take.

        Args:
            done: steps.
            max_steps: of the run.
            waited: seconds that the run has waited for data so far.
            losses: means since the line before.

        Returns:
            `samples_per_second`, `peak_memory_gib`, `data_wait_percent` and, where operations are counted, the names
            of `throughput`; empty: there were no steps.
        """
        now = time.monotonic()
        step, started, waited_before = self.flushed
        self.flushed = done, now, waited

        # A resumed run may finish at once, without a step.
        seconds = max(now - started, 1e-9)
        rate = (done - step) / seconds
        left = timedelta(seconds=round((max_steps - done) / rate)) if rate else "?"
        usage = {
            "samples_per_second": rate * self.dataset.global_batch_size,
            "peak_memory_gib": peak_memory(self.accelerator.device) / GIB,
            "data_wait_percent": 100 * (waited - waited_before) / seconds,
        }

        for name, value in self.throughput.items():
            usage[name] = value * usage["samples_per_second"]

        shown = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        self.log.info(
            "step %d/%d  %s  %s  %s left  %.2f GiB peak  %.1f%% of the time waiting for data",
            done,
            max_steps,
            shown,
            _describe_speed(usage),
            left,
            usage["peak_memory_gib"],
            usage["data_wait_percent"],
        )
        return usage if rate else {}


def _describe_speed(usage: dict[str, float]) -> str:
    text = f"{usage['samples_per_second']:.2f} samples/s"
    if "tflops_per_gpu" in usage:
        text += f"  {usage['tflops_per_gpu']:.3g} TFLOP/s per GPU"
    if "mfu_percent" in usage:
        text += f" ({usage['mfu_percent']:.1f}% of its peak)"
    return text
