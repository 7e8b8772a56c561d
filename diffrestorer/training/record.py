"""What a run writes about itself: its configuration and environment, its losses, a line of progress."""

import csv
import json
import logging
import math
import platform
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from diffrestorer import __version__
from diffrestorer.config.composition import differences, git_commit, save
from diffrestorer.config.hardware_presets import GIB
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs
from diffrestorer.data.prepared import PreparedPairs
from diffrestorer.training.step_memory import peak_memory

FREE_KEYS = (
    "output_dir",
    *(f"train.{name}" for name in ("num_workers", "checkpoint_every", "keep_checkpoints", "log_every", "sample_every")),
    *(f"train.{name}" for name in ("tracker", "validate_every", "validation_", "cache_dir", "allow_changed_data")),
    *(f"train.{name}" for name in ("micro_batch_size", "hardware")),
    "data.validation_root",
)
"""Keys that may differ between a run and its resumption: they change nothing that is learned."""


class TimedBatches:
    """Batches, and the seconds that training waited for them."""

    def __init__(self, batches: Iterable[PairBatch]) -> None:
        self.batches = batches
        self.waited = 0.0

    def __iter__(self) -> Iterator[PairBatch]:
        batches = iter(self.batches)
        while True:
            started = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - started
            if batch is None:
                return
            yield batch


class LossRecord:
    """`losses.csv`: one row a step, the mean over all samples; kept on the device until it is flushed.

    Rows of steps that a resumed run will do again are dropped when it starts.

    Args:
        accumulation: times `add` is called a step.
    """

    def __init__(
        self,
        path: Path,
        first_step: int,
        accelerator: Accelerator,
        dataset: SynthesisedPairs | PreparedPairs,
        accumulation: int,
        log: logging.Logger,
    ) -> None:
        self.path = path
        self.accelerator = accelerator
        self.dataset = dataset
        self.accumulation = accumulation
        self.log = log
        self.pending: list[tuple[int, Float[Tensor, ""], dict[str, Tensor]]] = []
        self.flushed = (first_step, time.monotonic(), 0.0)
        log.info("step %d, %d process(es) on %s", first_step, accelerator.num_processes, accelerator.device)
        if accelerator.is_main_process and path.exists():
            header, *rows = path.read_text().splitlines(keepends=True)
            kept = [row for row in rows if row.endswith("\n") and int(row.split(",", 1)[0]) < first_step]
            path.write_text("".join([header, *kept]))

    def add(self, step: int, total: Float[Tensor, ""], parts: dict[str, Tensor]) -> None:
        """Notes the losses of a micro batch without waiting for the device."""
        self.pending.append((step, total.detach(), {name: value.detach() for name, value in parts.items()}))

    def flush(self, done: int, max_steps: int, waited: float) -> None:
        """Averages over micro batches and processes, refuses what is not finite, writes rows and a line of progress.

        Args:
            waited: seconds the run has waited for data so far.

        Raises:
            ValueError: a loss is NaN or infinite; the message names the step and the photos of its batch.
        """
        names = ["total", *self.pending[0][2]]
        values = torch.stack([torch.stack([total, *parts.values()]).float() for _, total, parts in self.pending])
        values = values.view(-1, self.accumulation, len(names)).mean(1)
        rows = self.accelerator.reduce(values, reduction="mean").tolist()
        steps = [step for step, _, _ in self.pending[:: self.accumulation]]
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
        self._log_progress(done, max_steps, waited, dict(zip(names, rows[-1], strict=True)))

    def _describe(self, step: int, losses: dict[str, float]) -> str:
        sources = [self.dataset.source(step, position) for position in range(self.dataset.global_batch_size)]
        batch = ", ".join(f"{path.name} ({degradation})" for path, degradation in sources)
        bad = ", ".join(f"{name}={value}" for name, value in losses.items() if not math.isfinite(value))
        return f"loss is not finite at step {step}: {bad}; its batch was {batch}"

    def _log_progress(self, done: int, max_steps: int, waited: float, losses: dict[str, float]) -> None:
        """The heartbeat: rate and data wait since the line before, and what they make of the steps to come."""
        now = time.monotonic()
        step, started, waited_before = self.flushed
        self.flushed = done, now, waited
        seconds = max(now - started, 1e-9)
        rate = (done - step) / seconds
        shown = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        left = timedelta(seconds=round((max_steps - done) / rate)) if rate else "?"
        self.log.info(
            "step %d/%d  %s  %.2f samples/s  %s left  %.2f GiB peak  %.1f%% of the time waiting for data",
            done, max_steps, shown, rate * self.dataset.global_batch_size, left,
            peak_memory(self.accelerator.device) / GIB, 100 * (waited - waited_before) / seconds,
        )  # fmt: skip


def check_data(output_dir: Path, fingerprint: str, allow_change: bool, log: logging.Logger) -> None:
    """Notes which data a run is trained on, and refuses to resume it on others.

    Raises:
        ValueError: they changed since the run began, and `train.allow_changed_data` does not say that this is meant.
    """
    path = output_dir / "data.json"
    before = json.loads(path.read_text())["fingerprint"] if path.exists() else None
    if before not in (None, fingerprint):
        if not allow_change:
            raise ValueError(
                f"the training data are not those that the run in {output_dir} began with (files were added, removed "
                "or changed): restore them, choose another output_dir, or give train.allow_changed_data=true"
            )
        log.warning("the training data changed since this run began; going on, as train.allow_changed_data=true says")
    path.write_text(json.dumps({"fingerprint": fingerprint}) + "\n")


def prepare_output(output_dir: Path, config: Any, accelerator: Accelerator) -> logging.Logger:
    """Makes the folder, refuses another run's, and writes what is needed to repeat this one.

    Returns:
        The run's log: to stderr and `train.log` on the main process, errors only on the others.

    Raises:
        ValueError: the folder holds a run with another configuration; the message names the keys that differ.
    """
    log = logging.getLogger("diffrestorer.training")
    log.setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    output_dir.mkdir(parents=True, exist_ok=True)
    saved = output_dir / "config.yaml"
    if saved.exists() and (changed := differences(config, saved, FREE_KEYS)):
        raise ValueError(
            f"{output_dir} holds a run with another configuration ({'; '.join(changed[:5])}); "
            "choose another output_dir or remove it"
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save(config, saved)
        (output_dir / "environment.json").write_text(json.dumps(_environment(config, accelerator), indent=1))
        if not log.handlers:
            log.addHandler(logging.StreamHandler())
        _give_root_a_handler()
        for older in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
            log.removeHandler(older)
        log.addHandler(logging.FileHandler(output_dir / "train.log"))
        for handler in log.handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if config.train.tracker != "none":
        accelerator.init_trackers("diffrestorer")
    return log


def _give_root_a_handler() -> None:
    """Give the root logger, if it has none, a handler for the warnings of other libraries.

    Without one, any library that calls `logging.info` (open_clip does while it loads CLIP) installs a handler there
    that repeats every line of the run's log.
    """
    if not logging.root.handlers:
        handler = logging.StreamHandler()
        handler.setLevel(logging.WARNING)
        handler.addFilter(lambda record: not record.name.startswith("diffrestorer.training"))
        logging.root.addHandler(handler)


def _environment(config: Any, accelerator: Accelerator) -> dict[str, Any]:
    packages = ("torch", "diffusers", "accelerate", "open_clip_torch")
    own = {"diffrestorer": __version__, "python": platform.python_version()}  # a checkout need not be installed
    return {
        "versions": {name: version(name) for name in packages} | own,
        "git_commit": git_commit(),
        "seed": config.seed,
        "num_processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "mixed_precision": accelerator.mixed_precision,
    }
