"""The stages of benchmarks/rehearsal.py: their commands, what each must have made, and what may be deleted after it."""

import csv
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sd15_layout import CLIP_FILE, TINY_WIDTHS, VGG_FILE

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent

TRAINING_PHOTOS = ("chelsea", "coffee")
TEST_PHOTOS = ("hubble_deep_field", "motorcycle_left")
"""Of scikit-image, CC0 or in the public domain."""
SAMPLING_STEPS = 4

STARTED = re.compile(r"step (\d+), \d+ process\(es\) on")
PROGRESS = re.compile(r"^(\d\d:\d\d:\d\d) step (\d+)/\d+ ", re.MULTILINE)

Check = Callable[[str], dict[str, Any]]
"""Takes a stage's log; returns `speed` and `note` for the table, or raises StageError."""


class StageError(Exception):
    """A command ended well, but what it made is not what it should have made."""


def never() -> bool:
    """Return False: the command runs to its end."""
    return False


@dataclass(frozen=True)
class Stage:
    """One command of the way.

    Attributes:
        outputs: whose sizes are told as disk taken.
        discard: what no later stage needs.
        kill_when: the moment it is killed; `never` for a stage that must end by itself.
    """

    name: str
    command: list[str]
    check: Check
    outputs: tuple[Path, ...] = ()
    discard: tuple[Path, ...] = ()
    kill_when: Callable[[], bool] = never

    @property
    def killed(self) -> bool:
        """Whether it ends by SIGKILL."""
        return self.kill_when is not never

    @property
    def file(self) -> str:
        """Name of its log."""
        return re.sub(r"\W+", "_", self.name)


class Rehearsal:
    """A whole way through the scripts, below one folder.

    Args:
        hardware: preset of the training scripts, `cpu` or one of a GPU.
        size, steps: None takes what suits the hardware.
    """

    def __init__(
        self, output: Path, hardware: str, tiny: bool, size: int | None, steps: int | None
    ) -> None:
        on_gpu = hardware != "cpu"
        self.output = output
        self.hardware = hardware
        self.tiny = tiny
        self.size = size or (512 if on_gpu and not tiny else 64)
        self.steps = steps or (20 if on_gpu else 8)
        self.batch_sizes = (
            {"stage1": 16, "decoder": 4, "student": 16}
            if on_gpu
            else {"stage1": 2, "decoder": 2, "student": 2}
        )
        self.base = output / ("base_tiny" if tiny else "base")

    def describe(self) -> str:
        """Return the settings as a sentence."""
        networks = "small networks" if self.tiny else "networks of full width"
        return f"{networks.capitalize()}, {self.size}x{self.size} pixels, {self.steps} steps, hardware={self.hardware}."

    def begin(self) -> None:
        """Remove an earlier try's results, except files with random weights, and write the photos."""
        self.output.mkdir(parents=True, exist_ok=True)
        (self.output / "rehearsal.json").write_text("{}\n")
        for name in (
            "photos",
            "prepared",
            "cache",
            "stage1",
            "decoder",
            "student",
            "restored",
            "evaluation",
            "logs",
        ):
            shutil.rmtree(self.output / name, ignore_errors=True)
        (self.output / "logs").mkdir()

        # The same photos are scored, cropped, and restored, whole but smaller where the networks are slow.
        for use, names in (("train", TRAINING_PHOTOS), ("test", TEST_PHOTOS), ("restore", TEST_PHOTOS)):
            folder = self.output / "photos" / use
            folder.mkdir(parents=True)
            for name in names:
                image = Image.fromarray(_photo(name))
                if use == "restore":
                    image.thumbnail((2 * self.size, 2 * self.size))
                image.save(folder / f"{name}.png")

    def stages(self) -> list[Stage]:
        """Return the way, in order."""
        output, base = self.output, self.base
        tiny = ["--tiny"] if self.tiny else []
        written = "small files with random weights" if self.tiny else "files with random weights"
        write = [sys.executable, str(ROOT / "benchmarks" / "random_sd15.py"), str(base), *tiny]
        return [
            Stage(written, write, done, outputs=(base,)),
            Stage("training pairs", self._prepare("train"), done, outputs=(output / "prepared",)),
            Stage("test images", self._prepare("test"), done),
            *self._training(),
            Stage("restore", self._restore("decoder", SAMPLING_STEPS), self._check_restored, (output / "restored",),
                  discard=(output / "restored",)),
            Stage("evaluate", self._evaluate(), self._check_scores, outputs=(output / "evaluation",)),
            self._student(),
            Stage(
                "restore in one step", self._restore("student", 1), self._check_restored, (output / "restored",),
                discard=(output / "student" / "model", output / "prepared", output / "cache"),
            ),
        ]  # fmt: skip

    def _training(self) -> list[Stage]:
        """Return stage 1, killed and resumed, and the decoder stage."""
        output, base = self.output, self.base
        stage1, decoder = output / "stage1", output / "decoder"
        half = stage1 / "checkpoints" / f"step_{self.steps // 2}"
        clip = [] if self.tiny else [f"model.clip={base / CLIP_FILE}"]
        first = self._train("stage1", f"base={base}", *clip)
        second = self._train(
            "decoder", f"stage1={stage1}", f"model.perceptual_weights={base / VGG_FILE}"
        )
        losses = partial(self._check_losses, stage1)
        return [
            Stage("stage 1, killed", first, self._note_killed, outputs=(stage1 / "checkpoints",),
                  kill_when=half.exists),
            Stage("stage 1, resumed", first, lambda log: {**losses(log), **_check_resumed(log, self.steps)},
                  outputs=(stage1 / "checkpoints", stage1 / "model", output / "cache"),
                  discard=(stage1 / "checkpoints", base / "unet", base / "vae", base / CLIP_FILE)),
            Stage("decoder", second, partial(self._check_losses, decoder),
                  outputs=(decoder / "checkpoints", decoder / "model"),
                  discard=(decoder / "checkpoints", stage1 / "model")),
        ]  # fmt: skip

    def _student(self) -> Stage:
        """Return the student's stage, with all that it can train from the first step on.

        Without an average of the weights, which a CPU's memory would not hold beside the checkpoint.
        """
        decoder, student, base = self.output / "decoder", self.output / "student", self.base
        own = [f"teacher={decoder}", f"model.perceptual_weights={base / VGG_FILE}", "decoder_start=0"]
        own += ["discriminator_start=0", "train.ema_decay=null"]
        command = self._train("student", *own)
        return Stage(
            "student", [*command, f"train.checkpoint_every={self.steps}"], partial(self._check_losses, student),
            outputs=(student / "checkpoints", student / "model"),
            discard=(student / "checkpoints", decoder / "model", base),
        )  # fmt: skip

    def _prepare(self, split: str) -> list[str]:
        folders = [f"root={self.output / 'photos' / split}", f"out={self.output / 'prepared'}"]
        script = str(ROOT / "scripts" / "prepare_data.py")
        return [sys.executable, script, "set=photos", *folders, f"size={self.size}", f"split={split}"]

    def _train(self, stage: str, *own: str) -> list[str]:
        batch_size = self.batch_sizes[stage]
        settings = [
            *own, *(TINY_WIDTHS if self.tiny else ()), f"output_dir={self.output / stage}", "data=manifest",
            f"data.root={self.output / 'prepared'}", f"data.size={self.size}", f"train.max_steps={self.steps}",
            f"train.global_batch_size={batch_size}", f"train.checkpoint_every={self.steps // 2}",
            "train.keep_checkpoints=1", "train.log_every=1", f"train.num_workers={min(4, os.cpu_count() or 1)}",
            f"train.cache_dir={self.output / 'cache'}",
        ]  # fmt: skip
        return [
            str(PROGRAMS / "accelerate"),
            "launch",
            str(ROOT / "scripts" / f"train_{stage}.py"),
            *settings,
        ]

    def _restore(self, model: str, steps: int) -> list[str]:
        photos, restored = self.output / "photos" / "restore", self.output / "restored"
        options = ["-o", str(restored), "--model", str(self.output / model), "--steps", str(steps)]
        return [str(PROGRAMS / "diffrestorer"), "restore", str(photos), *options]

    def _evaluate(self) -> list[str]:
        settings = [
            "--suite", "mixed", "--method", "degraded,diff_restorer", f"model={self.output / 'decoder'}",
            f"data.root={self.output / 'prepared'}", f"output_dir={self.output / 'evaluation'}", "metrics=psnr,ssim",
            f"steps={SAMPLING_STEPS}", "seeds=1",
        ]  # fmt: skip
        return [sys.executable, str(ROOT / "scripts" / "evaluate.py"), *settings]

    def _note_killed(self, log: str) -> dict[str, Any]:
        reached = [int(step) for _, step in PROGRESS.findall(log)]
        return {
            "note": f"killed after step {max(reached, default=0)} of {self.steps}",
            "speed": self._speed(log),
        }

    def _check_losses(self, folder: Path, log: str) -> dict[str, Any]:
        with (folder / "losses.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        if [int(row["step"]) for row in rows] != list(range(self.steps)):
            raise StageError(
                f"{folder / 'losses.csv'} does not hold steps 0 to {self.steps - 1}, once each"
            )
        if not all(math.isfinite(float(value)) for row in rows for value in row.values()):
            raise StageError(f"{folder / 'losses.csv'} holds numbers that are not finite")
        if not (folder / "model" / "model_index.json").is_file():
            raise StageError(f"there is no model in {folder / 'model'}")
        return {"speed": self._speed(log)}

    def _speed(self, log: str) -> str | None:
        """Return samples per second between the first and the last line of progress; None where that is no time."""
        lines = [
            (datetime.strptime(time, "%H:%M:%S"), int(step)) for time, step in PROGRESS.findall(log)
        ]
        if len(lines) < 2:
            return None
        seconds = (lines[-1][0] - lines[0][0]).seconds  # of a day: right across midnight
        stage = "student" if "latent " in log else "decoder" if "pixel " in log else "stage1"
        samples = (lines[-1][1] - lines[0][1]) * self.batch_sizes[stage]
        return f"{samples / seconds:.2f} samples/s" if seconds else None

    def _check_restored(self, log: str) -> dict[str, Any]:
        found = {path.name for path in (self.output / "restored").glob("*.png")}
        if found != {f"{name}.png" for name in TEST_PHOTOS}:
            raise StageError(f"{self.output / 'restored'} holds {sorted(found)}, not a picture a photo")
        return {}

    def _check_scores(self, log: str) -> dict[str, Any]:
        with (self.output / "evaluation" / "scores.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        if {row["method"] for row in rows} != {"degraded", "diff_restorer"}:
            raise StageError("scores.csv does not hold both methods")
        if not all(math.isfinite(float(row[metric])) for row in rows for metric in ("psnr", "ssim")):
            raise StageError("scores.csv holds scores that are not finite")
        run = json.loads((self.output / "evaluation" / "run.json").read_text())
        seconds = run["methods"]["diff_restorer"]["seconds_per_image"]
        return {"speed": f"{1 / seconds:.2f} images/s"}


def done(log: str) -> dict[str, Any]:
    """Return nothing: a status of 0 says it all."""
    return {}


def _check_resumed(log: str, steps: int) -> dict[str, Any]:
    starts = [int(step) for step in STARTED.findall(log)]
    if not starts or not 0 < starts[0] < steps:
        raise StageError(
            f"it began at step {starts[0] if starts else '?'}, not where the checkpoint left off"
        )
    if "encoding" in log:
        raise StageError("it computed the cache of encodings again, which the killed run had made")
    return {"note": f"went on at step {starts[0]} of {steps}"}


def _photo(name: str) -> np.ndarray:
    """Return one of scikit-image's photos, uint8 (h, w, 3)."""
    import skimage.data

    photo = (
        skimage.data.stereo_motorcycle()[0]
        if name == "motorcycle_left"
        else getattr(skimage.data, name)()
    )
    return np.ascontiguousarray(photo[..., :3])
