"""The one training loop. It knows tasks, not stages: batches in, losses down, checkpoints out."""

import csv
import json
import logging
import math
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from torchvision.utils import make_grid, save_image

from diffrestorer import config as configuration
from diffrestorer.config import BaseConfig, DecoderConfig, Stage1Config, TrainConfig
from diffrestorer.data.pairs import PairBatch, StepBatches, SynthesisedPairs, pair_loader
from diffrestorer.training.checkpoint import load_newest, save_checkpoint, write_folder
from diffrestorer.training.task import Task

FREE_KEYS = ("output_dir", "data.root", "model.base", "base", "stage1") + tuple(
    f"train.{name}"
    for name in ("num_workers", "checkpoint_every", "keep_checkpoints", "log_every", "sample_every", "tracker")
)
"""Keys that may change between a run and its resumption without changing what is computed."""


def train(task: Task, config: BaseConfig | Stage1Config | DecoderConfig, output_dir: Path) -> None:
    """Trains `task` until `train.max_steps`, from the newest checkpoint in `output_dir` if there is one.

    Writes `config.yaml`, `environment.json`, `losses.csv`, `samples/`, `checkpoints/step_N/` and at the end `model/`.

    Raises:
        ValueError: `output_dir` holds a run with another configuration; a checkpoint is damaged; a loss is not finite.
    """
    settings = config.train
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_dir=output_dir,
    )
    log = _prepare_output(output_dir, config, accelerator)
    dataset = SynthesisedPairs(config.data, config.seed, settings.global_batch_size)
    optimizers = list(task.optimizers())
    peak_rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    first_step, damaged = load_newest(output_dir / "checkpoints", task, optimizers)
    for error in damaged:
        log.warning("%s; going back to an older one", error)
    batches = StepBatches(
        first_step, settings.max_steps, settings.global_batch_size, accelerator.process_index, accelerator.num_processes
    )
    model, *optimizers = accelerator.prepare(task, *optimizers)
    record = LossRecord(output_dir / "losses.csv", first_step, accelerator, dataset, log)
    log.info(
        "%s: step %d of %d, %.2f M parameters train, %d process(es) on %s",
        type(task).__name__, first_step, settings.max_steps,
        sum(p.numel() for p in task.parameters() if p.requires_grad) / 1e6,
        accelerator.num_processes, accelerator.device,
    )  # fmt: skip

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

    if accelerator.is_main_process:
        dtype = getattr(torch, settings.save_dtype)
        write_folder(output_dir / "model", lambda folder: task.save_model(folder, dtype))
        log.info("model saved to %s", output_dir / "model")
    accelerator.wait_for_everyone()
    accelerator.end_training()


class LossRecord:
    """`losses.csv`: one row a step, the mean over all processes; kept on the device until it is flushed.

    Rows of steps that a resumed run will do again are dropped when it starts.
    """

    def __init__(
        self, path: Path, first_step: int, accelerator: Accelerator, dataset: SynthesisedPairs, log: logging.Logger
    ) -> None:
        self.path = path
        self.accelerator = accelerator
        self.dataset = dataset
        self.log = log
        self.pending: list[tuple[int, Tensor, dict[str, Tensor]]] = []
        self.started = time.monotonic()
        self.first_step = first_step
        if accelerator.is_main_process and path.exists():
            header, *rows = path.read_text().splitlines(keepends=True)
            kept = [row for row in rows if row.endswith("\n") and int(row.split(",", 1)[0]) < first_step]
            path.write_text("".join([header, *kept]))

    def add(self, step: int, total: Float[Tensor, ""], parts: dict[str, Tensor]) -> None:
        """Notes the losses of a step without waiting for the device."""
        self.pending.append((step, total.detach(), {name: value.detach() for name, value in parts.items()}))

    def flush(self, done: int, max_steps: int) -> None:
        """Averages over processes, refuses what is not finite, writes the rows and a line of progress.

        Raises:
            ValueError: a loss is NaN or infinite; the message names the step and the photos of its batch.
        """
        names = ["total", *self.pending[0][2]]
        values = torch.stack([torch.stack([total, *parts.values()]).float() for _, total, parts in self.pending])
        rows = self.accelerator.reduce(values, reduction="mean").tolist()
        steps = [step for step, _, _ in self.pending]
        self.pending.clear()
        for step, row in zip(steps, rows, strict=True):
            if not all(math.isfinite(value) for value in row):
                raise ValueError(f"{self._describe(step, dict(zip(names, row, strict=True)))}")
        if not self.accelerator.is_main_process:
            return
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(["step", *names])
            writer.writerows([step, *map(repr, row)] for step, row in zip(steps, rows, strict=True))
        self.accelerator.log(dict(zip(names, rows[-1], strict=True)), step=done)
        self._log_progress(done, max_steps, dict(zip(names, rows[-1], strict=True)))

    def _describe(self, step: int, losses: dict[str, float]) -> str:
        sources = [self.dataset.source(step, position) for position in range(self.dataset.global_batch_size)]
        batch = ", ".join(f"{path.name} ({degradation})" for path, degradation in sources)
        bad = ", ".join(f"{name}={value}" for name, value in losses.items() if not math.isfinite(value))
        return f"loss is not finite at step {step}: {bad}; its batch was {batch}"

    def _log_progress(self, done: int, max_steps: int, losses: dict[str, float]) -> None:
        rate = (done - self.first_step) / (time.monotonic() - self.started)
        shown = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        self.log.info(
            "step %d/%d  %s  %.1f samples/s  %.1f min left",
            done, max_steps, shown, rate * self.dataset.global_batch_size, (max_steps - done) / rate / 60,
        )  # fmt: skip


def learning_rate_factor(step: int, settings: TrainConfig) -> float:
    """Factor on the peak learning rate at a step: linear warm-up, then constant or half a cosine down to 0."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.lr_schedule == "constant":
        return 1.0
    progress = (step - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps)
    return (1 + math.cos(math.pi * progress)) / 2


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


def _prepare_output(output_dir: Path, config: Any, accelerator: Accelerator) -> logging.Logger:
    """Makes the folder, refuses another run's, and writes what is needed to repeat this one."""
    log = logging.getLogger("diffrestorer.training")
    log.setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    output_dir.mkdir(parents=True, exist_ok=True)
    saved = output_dir / "config.yaml"
    if saved.exists() and (changed := configuration.differences(config, saved, FREE_KEYS)):
        raise ValueError(
            f"{output_dir} holds a run with another configuration ({'; '.join(changed[:5])}); "
            "choose another output_dir or remove it"
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        configuration.save(config, saved)
        (output_dir / "environment.json").write_text(json.dumps(_environment(config, accelerator), indent=1))
        if not log.handlers:
            log.addHandler(logging.StreamHandler())
        for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
            log.removeHandler(handler)
        log.addHandler(logging.FileHandler(output_dir / "train.log"))
        for handler in log.handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if config.train.tracker != "none":
        accelerator.init_trackers("diffrestorer")
    return log


def _environment(config: Any, accelerator: Accelerator) -> dict[str, Any]:
    packages = ("torch", "diffusers", "accelerate", "open_clip_torch", "diffrestorer")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "git_commit": commit.stdout.strip() or None,
        "seed": config.seed,
        "num_processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "mixed_precision": accelerator.mixed_precision,
    }
