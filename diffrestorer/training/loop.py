"""The one training loop. It knows tasks, not stages: batches in, losses down, checkpoints out."""

import atexit
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from diffrestorer.config.hardware_presets import GIB
from diffrestorer.config.schema import RunConfig
from diffrestorer.data.ownership import own_folder
from diffrestorer.data.pairs import Pair, PairBatch, StepBatches, pair_loader
from diffrestorer.data.prepared import open_pairs
from diffrestorer.inference.model_folder import keep_own_files
from diffrestorer.training.averaging import WeightAverage
from diffrestorer.training.cache import open_cache
from diffrestorer.training.checkpoint import copies_of, write_folder
from diffrestorer.training.data_check import check_data
from diffrestorer.training.exhibits import Exhibits
from diffrestorer.training.failures import explain_data, explain_files, explain_lost_processes
from diffrestorer.training.hardware import apply_hardware, check_precision
from diffrestorer.training.launcher import make_accelerator, on_main_process
from diffrestorer.training.profiling import StepProfile
from diffrestorer.training.progress import LossRecord, Speed, TimedBatches
from diffrestorer.training.record import prepare_output, restore_records, run_log
from diffrestorer.training.resuming import load_newest
from diffrestorer.training.saving import Saver
from diffrestorer.training.schedule import choose_micro_batch, set_learning_rates, skip_unstarted
from diffrestorer.training.sharding import consolidate, shard
from diffrestorer.training.step_memory import explain_out_of_memory, log_expected_memory, peak_memory
from diffrestorer.training.stopping import StopSignal
from diffrestorer.training.task import Losses, Task
from diffrestorer.training.throughput import measure_throughput
from diffrestorer.training.trackers import check_tracker, open_tracker
from diffrestorer.training.validation import Validation

STEPS_AHEAD = 2
"""Steps whose batches are there before they are needed. It takes two steps until all processes know of a failure."""


def train(build_task: Callable[[Any], Task], config: RunConfig, output_dir: Path) -> float | None:
    """Train a task until `train.max_steps`, from the newest checkpoint in `output_dir` if there is one.

    Writes `config.yaml`, `environment.json`, `data.json`, `losses.csv`, `samples/`, `validation.csv`, `validation/`,
    `checkpoints/step_N/` and at the end `model/`.

    Args:
        build_task: makes the task from the config (usually its class); called once data and folder are found sound.
        config: of the run.
        output_dir: of the run.

    Returns:
        Seconds per step of this start, without its warm-up; None if there were no more steps.

    Raises:
        ValueError: `output_dir` holds a run with another configuration or other data, or is in use; the batch does not
            divide; every checkpoint is damaged; the disk is full; a loss is not finite; memory does not suffice; data
            can't be read; another process of the run ended.
        SystemExit: with status 75, after SIGTERM, SIGUSR1 or Ctrl-C and a checkpoint.
    """
    # Before anything is loaded.
    check_tracker(config.train.tracker, config.train.wandb_mode)
    with (
        explain_files(output_dir),
        StopSignal() as stop,
        Run(build_task, config, output_dir, stop) as run,
    ):
        return run.to_the_end()


class Run:
    """One training run on this process: what it holds, and what happens around its steps.

    Args:
        build_task: see `train`.
        config: of the run.
        output_dir: of the run.
        stop: asks it to stop.
    """

    def __init__(
        self, build_task: Callable[[Any], Task], config: RunConfig, output_dir: Path, stop: StopSignal
    ) -> None:
        self.build_task = build_task
        self.config = config
        self.settings = config.train
        self.output_dir = output_dir
        self.stop = stop
        self.accelerator = make_accelerator(config.train.mixed_precision)
        self._held = ExitStack()

    def __enter__(self) -> "Run":
        with ExitStack() as held:
            held.enter_context(explain_lost_processes(self.accelerator.num_processes))
            self._open_folder(held)
            self._open_task()
            self._resume()
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._held.__exit__(*error)

    def _open_folder(self, held: ExitStack) -> None:
        """Find data and folder sound, and take the folder. Nothing large is loaded yet."""
        settings = self.settings
        accelerator = self.accelerator
        precision = check_precision(settings.mixed_precision, accelerator.device)
        self.dataset = open_pairs(self.config.data, self.config.seed, settings.global_batch_size)

        # Refuse a batch that does not divide before anything is written.
        micro_batch_size = choose_micro_batch(settings, accelerator.num_processes)
        processes = (accelerator.process_index, accelerator.num_processes)
        self.division = (settings.global_batch_size, *processes, micro_batch_size)
        self.batches = StepBatches(0, settings.max_steps, *self.division)

        # From here on the folder belongs to this run.
        on_main_process(accelerator, lambda: held.enter_context(own_folder(self.output_dir)) or None)
        self.log = held.enter_context(
            run_log(self.output_dir / "train.log", accelerator.is_main_process)
        )
        on_main_process(accelerator, lambda: prepare_output(self.output_dir, self.config, accelerator))
        if precision is not None:
            self.log.info("%s", precision)
        skip = self.config.data.skip_unreadable
        check_data(
            self.output_dir, self.dataset, settings.allow_changed_data, skip, accelerator, self.log
        )
        self.validation = Validation(self.config, self.output_dir) if settings.validate_every else None

    def _open_task(self) -> None:
        """Build the task on its device, with its cache and its optimisers."""
        settings = self.settings
        accelerator = self.accelerator
        self.log.info("loading the networks")
        torch.manual_seed(self.config.seed)  # initial weights; every later draw is made by counter
        self.task = self.build_task(self.config)

        self.source: Dataset[Pair] = self.dataset
        if settings.cache_dir is not None:
            resources = (accelerator, self.batches.micro_batch_size, settings.num_workers, self.log)
            self.source = open_cache(Path(settings.cache_dir), self.task, self.dataset, *resources)

        # On the device first: a checkpoint is then copied straight to it.
        self.task.to(accelerator.device)
        apply_hardware(self.task, settings.hardware, accelerator.device)
        self.optimizers = list(self.task.optimizers())
        self.shards = accelerator.num_processes if settings.hardware.shard_optimizer else 1
        if self.shards > 1:
            self.optimizers = shard(self.optimizers)
        self.peak_rates = [
            group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups
        ]
        decay = settings.ema_decay
        self.average = WeightAverage(self.task, decay) if decay is not None else None

    def _resume(self) -> None:
        """Load the newest checkpoint, and bring everything that counts steps to its step."""
        settings = self.settings
        accelerator = self.accelerator
        checkpoints = self.output_dir / "checkpoints"
        first_step = load_newest(
            checkpoints, self.task, self.optimizers, self.log, self.average, accelerator
        )
        tracker = None
        if accelerator.is_main_process:
            copies = copies_of(checkpoints / f"step_{first_step}") if first_step else {}
            restore_records(self.output_dir, first_step, copies)
            tracker = open_tracker(self.config, self.output_dir, first_step)
        shown = (self.task, self.average, self.dataset)
        self.exhibits = Exhibits(*shown, tracker, self.output_dir, self.log)

        # The rest of the steps.
        self.batches = StepBatches(first_step, settings.max_steps, *self.division)
        self.failure: Exception | None = None
        self.model = accelerator.prepare(self.task)
        added = (accelerator, self.dataset, self.batches.accumulation, self.log)
        self.record = LossRecord(self.output_dir / "losses.csv", first_step, *added)

        # From here on a stop saves a checkpoint.
        trained = (self.task, self.optimizers, self.average)
        self.saver = Saver(self.output_dir, *trained, settings.keep_checkpoints, first_step)
        save = partial(self.saver.save_last_step, self.record)
        self.stop.connect(accelerator, str(self.output_dir), save)

    def to_the_end(self) -> float | None:
        """Step until the last step or until asked to stop; return the seconds per step, as `train` says."""
        settings, device = self.settings, self.accelerator.device
        accumulation = self.batches.accumulation
        guard = (settings.hardware, self.batches.micro_batch_size, self.accelerator.num_processes)
        speed = Speed(device)
        profile = StepProfile(settings.profile, self.output_dir, self.accelerator, self.log)
        on_gpu = device.type == "cuda"
        loader = pair_loader(self.source, self.batches, settings.num_workers, pin_memory=on_gpu)
        self.timed = TimedBatches(loader, STEPS_AHEAD * accumulation, self._note_failure)

        # A batch here is a micro batch: the optimisers step after the last one of each step.
        for number, batch in enumerate(self.timed, start=1):
            is_last = number % accumulation == 0
            profile.before(batch.step)
            with explain_out_of_memory(*guard):
                losses = self._accumulate(batch, synchronise=is_last, measure=number == 1)
                self.record.add(batch.step, losses.total, losses.parts)
                if not is_last:
                    continue
                self._update(batch.step)
            profile.after(batch.step)
            speed.count_step(last=batch.step + 1 == settings.max_steps)
            if number == accumulation:
                self.log.info("measured peak memory: %.2f GiB", peak_memory(device) / GIB)
            self._after_step(batch.step + 1)

        # Data that failed at once left no step to stop after.
        if self.failure is not None:
            raise self.failure
        self._finish()
        return speed.seconds_per_step

    def _accumulate(self, batch: PairBatch, synchronise: bool, measure: bool) -> Losses:
        """Add a micro batch's share to the gradients.

        Args:
            batch: one micro batch.
            synchronise: whether processes add their gradients up, at the last micro batch of a step.
            measure: whether to count and log operations, and what the forward pass keeps for the backward pass.
        """
        batch = batch.to(self.accelerator.device)
        if measure:
            task, accelerator = self.task, self.accelerator
            self.record.throughput = measure_throughput(task, batch, accelerator, self.log)

        # Gradients are added up over processes once per step.
        with nullcontext() if synchronise else self.accelerator.no_sync(self.model):
            averages = self.average is not None
            counting = (self.task, averages, self.shards, self.batches.micro_batch_size, self.log)
            with log_expected_memory(*counting) if measure else nullcontext():
                losses = self.model(batch)
            self.accelerator.backward(losses.total / self.batches.accumulation)
        return losses

    def _update(self, step: int) -> None:
        """Step the optimisers and the average. Nothing is saved while they are between two steps."""
        # Sharded optimisers wait for each other here, and nothing is saved of them from beside the loop.
        with self.stop.changing() if self.shards == 1 else nullcontext():
            set_learning_rates(self.optimizers, self.peak_rates, self.settings, step)
            skip_unstarted(self.optimizers, step)
            if self.settings.max_grad_norm is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=self.shards == 1)
            if self.average is not None:
                self.average.update()
            self.saver.mark(step + 1)

    def _after_step(self, done: int) -> None:
        """Log, samples, validation and checkpoint at their intervals and at the end; a checkpoint when stopping."""
        settings = self.settings
        device = self.accelerator.device
        stopping = self.stop.agreed()
        last = done == settings.max_steps

        # Losses are on the disk before the checkpoint that copies them.
        saves = last or stopping or done % settings.checkpoint_every == 0
        if saves or done % settings.log_every == 0:
            self._report(done)

        # All processes show the model; the main process saves it.
        with self.stop.changing():
            if last or done % settings.sample_every == 0:
                self.exhibits.save_samples(device, done)
            if self.validation is not None and (last or done % (settings.validate_every or 1) == 0):
                self.exhibits.validate(self.validation, device, done)
        if saves:
            consolidate(self.optimizers)
        if self.accelerator.is_main_process:
            self.saver.writer.check()
            with self.stop.changing():
                if saves:
                    self.saver.save()
            if stopping or last:
                self.saver.writer.wait()

        # Every process leaves after the same step.
        if stopping and not last:
            self._close()
            if isinstance(self.failure, ValueError):
                raise ValueError(f"{self.failure}; the same command then goes on from step {done}")
            if self.failure is not None:
                raise self.failure
            self.stop.leave(done)

    def _report(self, done: int) -> None:
        """Write, log and send the losses since the last report."""
        losses = self.record.flush(done)
        if self.accelerator.is_main_process:
            usage = self.record.log_progress(done, self.settings.max_steps, self.timed.waited, losses)
            self.exhibits.send_progress({**losses, **usage}, self.optimizers, done)

    def _note_failure(self, error: Exception, num_batches: int) -> None:
        """Note that the batch after `num_batches` could not be made, and ask all processes to stop."""
        step = self.batches.steps.start + num_batches // self.batches.accumulation
        sources = [self.dataset.source(step, position)[0] for position in self.batches.positions]
        self.failure = explain_data(error, sources, self.settings.num_workers > 0) or error
        self.stop.tell("the training data")

    def _finish(self) -> None:
        """Write `model/` and let trackers and process group go."""
        self.stop.retire()
        with self.average.in_place() if self.average else nullcontext():
            self.task.conclude()
            if self.accelerator.is_main_process:
                dtype = getattr(torch, self.settings.save_dtype)
                model = self.output_dir / "model"

                def write(folder: Path) -> None:
                    self.task.save_model(folder, dtype)
                    keep_own_files(model, folder)

                write_folder(model, write)
                self.log.info("model saved to %s", model)
        self._close()

    def _close(self) -> None:
        self.accelerator.wait_for_everyone()
        self.exhibits.close()
        # Not before the process ends: train_base trains several tasks in a row.
        atexit.register(self.accelerator.state.destroy_process_group)
