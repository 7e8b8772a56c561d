"""The one training loop. It knows tasks, not stages: batches in, losses down, checkpoints out."""

import atexit
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torchvision.utils import make_grid, save_image

from diffrestorer.config.schema import BaseConfig, BaselineConfig, DecoderConfig, Stage1Config, TrainConfig
from diffrestorer.data.pairs import PairBatch, StepBatches, pair_loader
from diffrestorer.data.prepared import open_pairs
from diffrestorer.training.checkpoint import load_newest, save_checkpoint, write_folder
from diffrestorer.training.record import LossRecord, prepare_output
from diffrestorer.training.task import Task


def train(
    build_task: Callable[[Any], Task],
    config: BaseConfig | Stage1Config | DecoderConfig | BaselineConfig,
    output_dir: Path,
) -> None:
    """Trains a task until `train.max_steps`, from the newest checkpoint in `output_dir` if there is one.

    Writes `config.yaml`, `environment.json`, `losses.csv`, `samples/`, `checkpoints/step_N/` and at the end `model/`.

    Args:
        build_task: makes the task from the config (usually its class); called once data and folder are found sound.

    Raises:
        ValueError: `output_dir` holds a run with another configuration; a checkpoint is damaged; a loss is not finite.
    """
    settings = config.train
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # said explicitly, or accelerate ignores torchrun's ranks on a CPU
        mixed_precision=settings.mixed_precision,
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_dir=output_dir,
    )
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    dataset = open_pairs(config.data, config.seed, settings.global_batch_size)
    log = prepare_output(output_dir, config, accelerator)
    torch.manual_seed(config.seed)  # initial weights; every later draw is made by counter
    task = build_task(config)
    optimizers = list(task.optimizers())
    peak_rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    first_step = load_newest(output_dir / "checkpoints", task, optimizers, log)
    batches = StepBatches(first_step, settings.max_steps, settings.global_batch_size, rank, num_processes)
    model, *optimizers = accelerator.prepare(task, *optimizers)
    record = LossRecord(output_dir / "losses.csv", first_step, accelerator, dataset, log)

    for batch in pair_loader(dataset, batches, settings.num_workers):
        batch = batch.to(accelerator.device)
        _set_learning_rates(optimizers, peak_rates, settings, batch.step)
        losses = model(batch)
        accelerator.backward(losses.total)
        if settings.max_grad_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        record.add(batch.step, losses.total, losses.parts)

        done = batch.step + 1
        last = done == settings.max_steps
        if last or done % settings.log_every == 0 or done % settings.checkpoint_every == 0:
            record.flush(done, settings.max_steps)
        if accelerator.is_main_process and (last or done % settings.sample_every == 0):
            _save_samples(task, batch, output_dir / "samples" / f"step_{done}.png")
        if accelerator.is_main_process and (last or done % settings.checkpoint_every == 0):
            save_checkpoint(output_dir / "checkpoints", done, task, optimizers, settings.keep_checkpoints)

    _finish(accelerator, task, settings, output_dir, log)


def _finish(accelerator: Accelerator, task: Task, settings: TrainConfig, output_dir: Path, log: logging.Logger) -> None:
    """Writes `model/` and lets trackers and process group go."""
    if accelerator.is_main_process:
        dtype = getattr(torch, settings.save_dtype)
        write_folder(output_dir / "model", lambda folder: task.save_model(folder, dtype))
        log.info("model saved to %s", output_dir / "model")
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    atexit.register(accelerator.state.destroy_process_group)  # not before: train_base trains several tasks in a row


def learning_rate_factor(step: int, settings: TrainConfig) -> float:
    """Factor on the peak learning rate at a step: linear warm-up, then as `lr_schedule` says."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps)
    match settings.lr_schedule:
        case "cosine":
            falling = max(0.0, progress - settings.lr_hold) / (1 - settings.lr_hold)
            return (1 + math.cos(math.pi * falling)) / 2
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
        group["lr"] = peak * factor


@torch.no_grad()
def _save_samples(task: Task, batch: PairBatch, path: Path) -> None:
    """A sheet of up to eight samples: a row each, a column for each tensor of `task.sample`."""
    columns = [column[:8].float().clamp(0, 1).cpu() for column in task.sample(batch)]
    path.parent.mkdir(exist_ok=True)
    rows = torch.stack(columns, dim=1).flatten(0, 1)
    save_image(make_grid(rows, nrow=len(columns)), path)
