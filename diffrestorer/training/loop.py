"""The one training loop. It knows tasks, not stages: batches in, losses down, checkpoints out."""

import atexit
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset
from torchvision.utils import make_grid, save_image

from diffrestorer.config.hardware_presets import GIB
from diffrestorer.config.schema import RunConfig, TrainConfig
from diffrestorer.data.pairs import Pair, PairBatch, StepBatches, pair_loader
from diffrestorer.data.prepared import open_pairs
from diffrestorer.data.storage import NO_SPACE, whole_file
from diffrestorer.training.averaging import WeightAverage
from diffrestorer.training.cache import CachedPairs, open_cache
from diffrestorer.training.checkpoint import CheckpointWriter, load_newest, take_snapshot, write_folder
from diffrestorer.training.hardware import apply_hardware, check_precision
from diffrestorer.training.record import LossRecord, TimedBatches, check_data, prepare_output
from diffrestorer.training.step_memory import count_memory, count_saved_bytes, explain_out_of_memory, peak_memory
from diffrestorer.training.stopping import StopSignal
from diffrestorer.training.task import Losses, Task
from diffrestorer.training.validation import Validation

SHEET_ROWS = 8
"""Samples on a sheet, at most."""


WARM_UP_STEPS = 10
"""Steps at a start that are not counted in its speed: memory is taken and blocks are compiled in them."""


def train(build_task: Callable[[Any], Task], config: RunConfig, output_dir: Path) -> float | None:
    """Trains a task until `train.max_steps`, from the newest checkpoint in `output_dir` if there is one.

    Writes `config.yaml`, `environment.json`, `data.json`, `losses.csv`, `samples/`, `validation.csv`, `validation/`,
    `checkpoints/step_N/` and at the end `model/`.

    Args:
        build_task: makes the task from the config (usually its class); called once data and folder are found sound.

    Returns:
        Seconds per step of this start, without its first `WARM_UP_STEPS`; None if there were no more.

    Raises:
        ValueError: `output_dir` holds a run with another configuration or other data; the batch does not divide; every
            checkpoint is damaged; the disk is full; a loss is not finite; memory does not suffice.
        SystemExit: with status 75, after SIGTERM or SIGUSR1 and a checkpoint.
    """
    try:
        with StopSignal() as stop:
            return _Run(build_task, config, output_dir, stop).to_the_end()
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise ValueError(
            f"{output_dir} could not be written ({error.strerror}); what was saved before is intact: make room and "
            "give the same command again"
        ) from None


class _Run:
    """One training run on this process: what it holds, and what happens around its steps."""

    def __init__(
        self, build_task: Callable[[Any], Task], config: RunConfig, output_dir: Path, stop: StopSignal
    ) -> None:
        settings = self.settings = config.train
        self.output_dir, self.stop = output_dir, stop
        accelerator = self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # said explicitly, or it ignores torchrun's ranks on a CPU
            mixed_precision=settings.mixed_precision,
            log_with=None if settings.tracker == "none" else settings.tracker,
            project_dir=output_dir,
        )
        precision = check_precision(settings.mixed_precision, accelerator.device)
        self.dataset = open_pairs(config.data, config.seed, settings.global_batch_size)
        micro_batch_size = choose_micro_batch(settings, accelerator.num_processes)
        division = (settings.global_batch_size, accelerator.process_index, accelerator.num_processes, micro_batch_size)
        StepBatches(0, settings.max_steps, *division)  # refuses a batch that does not divide before anything is written
        self.log = prepare_output(output_dir, config, accelerator)
        if precision is not None:
            self.log.info("%s", precision)
        if accelerator.is_main_process:
            check_data(output_dir, self.dataset.fingerprint(), settings.allow_changed_data, self.log)
        self.validation = Validation(config, output_dir) if settings.validate_every else None
        torch.manual_seed(config.seed)  # initial weights; every later draw is made by counter
        self.task = build_task(config)
        self.source: Dataset[Pair] = self.dataset
        if settings.cache_dir is not None:
            self.source = self._cached_pairs(Path(settings.cache_dir), micro_batch_size)
        self.task.to(accelerator.device)  # a checkpoint is then copied straight to it
        apply_hardware(self.task, settings.hardware, accelerator.device)
        optimizers = list(self.task.optimizers())
        self.peak_rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        self.average = WeightAverage(self.task, settings.ema_decay) if settings.ema_decay is not None else None
        checkpoints = output_dir / "checkpoints"
        first_step = load_newest(checkpoints, self.task, optimizers, self.log, self.average, accelerator)
        self.batches = StepBatches(first_step, settings.max_steps, *division)
        self.model, *self.optimizers = accelerator.prepare(self.task, *optimizers)
        self.record = LossRecord(
            output_dir / "losses.csv", first_step, accelerator, self.dataset, self.batches.accumulation, self.log
        )
        self.writer = CheckpointWriter(checkpoints, settings.keep_checkpoints)
        stop.connect(accelerator)

    def _cached_pairs(self, folder: Path, micro_batch_size: int | None) -> CachedPairs:
        batch_size = micro_batch_size or self.settings.global_batch_size // self.accelerator.num_processes
        resources = (self.accelerator, batch_size, self.settings.num_workers, self.log)
        return open_cache(folder, self.task, self.dataset, *resources)

    def to_the_end(self) -> float | None:
        """Steps until the last one or until asked to stop; returns the seconds of a step, as `train` says."""
        settings, accumulation = self.settings, self.batches.accumulation
        on_gpu = self.accelerator.device.type == "cuda"
        loader = TimedBatches(pair_loader(self.source, self.batches, settings.num_workers, pin_memory=on_gpu))
        guard = (settings, self.batches.micro_batch_size, self.accelerator.num_processes)
        warm_up, started, seconds = WARM_UP_STEPS * accumulation, 0.0, None
        for number, batch in enumerate(loader, start=1):
            with explain_out_of_memory(*guard):
                if number == 1:
                    losses = self._measured_forward(batch)
                else:
                    losses = self._accumulate(batch, synchronise=number % accumulation == 0)
                self.record.add(batch.step, losses.total, losses.parts)
                if number % accumulation:
                    continue
                self._update(batch.step)
            if number == warm_up:
                started = self._now()
            elif number > warm_up and batch.step + 1 == settings.max_steps:
                seconds = (self._now() - started) * accumulation / (number - warm_up)
            if number == accumulation:
                self.log.info("measured peak memory: %.2f GiB", peak_memory(self.accelerator.device) / GIB)
            self._after_step(batch, loader.waited)
        self._finish()
        return seconds

    def _now(self) -> float:
        """The time, once the device has done all it was given."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)
        return time.monotonic()

    def _accumulate(self, batch: PairBatch, synchronise: bool) -> Losses:
        """A micro batch's share of the gradients; the step's last one is where processes add theirs up."""
        with nullcontext() if synchronise else self.accelerator.no_sync(self.model):
            losses = self.model(batch.to(self.accelerator.device))
            self.accelerator.backward(losses.total / self.batches.accumulation)
        return losses

    def _measured_forward(self, batch: PairBatch) -> Losses:
        """The first micro batch: the same, and what it keeps for its backward pass is counted and told."""
        synchronise = self.batches.accumulation == 1
        with nullcontext() if synchronise else self.accelerator.no_sync(self.model):
            with count_saved_bytes(self.task) as saved:
                losses = self.model(batch.to(self.accelerator.device))
            expected = count_memory(self.task, self.average is not None, saved.total)
            self.log.info(
                "memory expected for micro batches of %d: %s, and the libraries",
                self.batches.micro_batch_size,
                expected,
            )
            self.accelerator.backward(losses.total / self.batches.accumulation)
        return losses

    def _update(self, step: int) -> None:
        _set_learning_rates(self.optimizers, self.peak_rates, self.settings, step)
        if self.settings.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()

    def _after_step(self, batch: PairBatch, waited: float) -> None:
        """Log, samples, validation and checkpoint at their intervals and at the end; a checkpoint when stopping."""
        settings, done = self.settings, batch.step + 1
        stopping = self.stop.agreed()
        last = done == settings.max_steps
        saves = last or stopping or done % settings.checkpoint_every == 0
        if saves or done % settings.log_every == 0:
            self.record.flush(done, settings.max_steps, waited)
        if self.accelerator.is_main_process:
            self.writer.check()
            if last or done % settings.sample_every == 0:
                self._save_samples(batch.first(SHEET_ROWS).to(self.accelerator.device), done)
            if self.validation is not None and (last or done % (settings.validate_every or 1) == 0):
                self._validate(done)
            if saves:
                self.writer.save(take_snapshot(done, self.task, self.optimizers, self.average))
            if stopping or last:
                self.writer.wait()
        if stopping and not last:
            self._close()
            self.stop.leave(self.log, done)

    def _validate(self, done: int) -> None:
        assert self.validation is not None
        with self.average.in_place() if self.average else nullcontext():
            score = self.validation(self.task, done, self.accelerator.device)
        row = score.row()
        self.accelerator.log({f"validation/{name}": value for name, value in row.items()}, step=done)
        shown = " ".join(f"{name} {value:.4f}" for name, value in row.items())
        self.log.info("validation at step %d  %s", done, shown)

    @torch.no_grad()
    def _save_samples(self, batch: PairBatch, done: int) -> None:
        """A sheet: a row a sample, a column for each tensor of `task.sample`."""
        columns = [column.float().clamp(0, 1).cpu() for column in self.task.sample(batch)]
        path = self.output_dir / "samples" / f"step_{done}.png"
        path.parent.mkdir(exist_ok=True)
        rows = torch.stack(columns, dim=1).flatten(0, 1)
        with whole_file(path) as file:
            save_image(make_grid(rows, nrow=len(columns)), file, format="png")

    def _finish(self) -> None:
        """Writes `model/` and lets trackers and process group go."""
        if self.accelerator.is_main_process:
            dtype = getattr(torch, self.settings.save_dtype)
            with self.average.in_place() if self.average else nullcontext():
                write_folder(self.output_dir / "model", lambda folder: self.task.save_model(folder, dtype))
            self.log.info("model saved to %s", self.output_dir / "model")
        self._close()

    def _close(self) -> None:
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        # Not before the process ends: train_base trains several tasks in a row.
        atexit.register(self.accelerator.state.destroy_process_group)


def choose_micro_batch(settings: TrainConfig, num_processes: int) -> int | None:
    """Samples a process computes at once: the key, or the largest divisor of its share that the preset allows.

    None: its whole share of the global batch.
    """
    allowed = settings.hardware.max_micro_batch
    if settings.micro_batch_size is not None or allowed is None:
        return settings.micro_batch_size
    share = settings.global_batch_size // num_processes
    return max((n for n in range(1, min(share, allowed) + 1) if share % n == 0), default=None)


def learning_rate_factor(step: int, settings: TrainConfig) -> float:
    """Factor on the peak learning rate at a step: linear warm-up, then as `lr_schedule` says."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps)
    match settings.lr_schedule:
        case "cosine":
            falling = max(0.0, progress - settings.lr_hold) / (1 - settings.lr_hold)
            floor = settings.lr_floor / settings.lr if settings.lr_floor else 0.0
            return floor + (1 - floor) * (1 + math.cos(math.pi * falling)) / 2
        case "steps":
            reached = [share for share in settings.lr_milestones if share <= progress]
            return settings.lr_milestones[max(reached)] if reached else 1.0
        case _:
            return 1.0


def _set_learning_rates(
    optimizers: Sequence[torch.optim.Optimizer], peak_rates: Sequence[float], settings: TrainConfig, step: int
) -> None:
    factor = learning_rate_factor(step, settings)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group, peak in zip(groups, peak_rates, strict=True):
        group["lr"] = peak * factor if step >= group.get("start_step", 0) else 0.0
