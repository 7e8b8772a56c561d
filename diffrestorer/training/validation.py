"""Validation on a fixed set: photos that are not trained on, degraded once, restored at intervals."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffrestorer.config.classes import trained_classes
from diffrestorer.config.degradations import is_synthesised
from diffrestorer.config.schema import DataConfig, RunConfig
from diffrestorer.data.own_synthesis import load_synthesis
from diffrestorer.data.pair_folders import PairFolders
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs, collate_pairs
from diffrestorer.data.prepared import is_prepared, name_classes
from diffrestorer.data.storage import write_text
from diffrestorer.training.shared_work import share_out
from diffrestorer.training.sheets import save_sheet
from diffrestorer.training.task import Task, evaluating, to_unit

VALIDATION_SEED = 1_000_003
"""Apart from every run's own seed, so that runs of different seeds see the same set."""

BATCH = 4
"""Photos that a process restores at once, at most: few, so that all processes have some, and the same batches for any
number of them."""


@dataclass(frozen=True)
class ValidationScore:
    """Means over the set.

    Attributes:
        losses: the task's losses by name.
        psnr: in dB; None if the task restores nothing.
        lpips: None unless asked for.
        restored: the images, in [0, 1] on the host; None if the task restores nothing.
    """

    losses: dict[str, float]
    psnr: float | None
    lpips: float | None
    restored: Float[Tensor, "n 3 h w"] | None = None

    def row(self) -> dict[str, float]:
        """Return the scores that exist, by the names of validation.csv's columns."""
        row = dict(self.losses)
        if self.psnr is not None:
            row["psnr"] = self.psnr
        if self.lpips is not None:
            row["lpips"] = self.lpips
        return row


@dataclass(frozen=True)
class _BatchScore:
    """Means over one batch of the set, and its restored images on the host."""

    losses: dict[str, float]
    restored: Float[Tensor, "b 3 h w"] | None = None
    psnr: float = 0.0
    lpips: float = 0.0


def _open_set(data: DataConfig, num_images: int) -> SynthesisedPairs | PairFolders:
    """Return the fixed set: pairs of a user's own, laid out like those that are trained on, or degraded photos."""
    if data.validation_root is None:
        raise ValueError(
            "train.validate_every needs data.validation_root=FOLDER of photos that are not trained on"
        )
    if data.name == "pairs" and not is_prepared(data.validation_root):
        return _open_own_pairs(data)

    trained = trained_classes(data)
    own = load_synthesis(data.synthesis_module, trained)
    classes = [name for name in trained if is_synthesised(name) or name in own]
    if not classes:
        raise ValueError(
            "train.validate_every degrades the photos of data.validation_root, and none of the classes that are "
            "trained on can be made from photos: leave it null"
        )
    photos = replace(data, name="photos", root=data.validation_root, degradations=classes)
    return SynthesisedPairs(photos, VALIDATION_SEED, num_images)


def _open_own_pairs(data: DataConfig) -> PairFolders:
    """Return the pairs below `data.validation_root`, NAME/lq/ and NAME/gt/ of each class it has, or lq/ and gt/."""
    root = Path(str(data.validation_root))
    single = (root / "lq").is_dir()
    folders = replace(data, root=None if single else str(root), lq=None, gt=None, balance="pairs")
    if single:
        folders = replace(folders, lq=str(root / "lq"), gt=str(root / "gt"))
    names = name_classes(folders)
    kept = [name for name in trained_classes(data) if name in names]
    return PairFolders(replace(folders, degradations=kept or None), VALIDATION_SEED, 1)


class Validation:
    """The fixed set of a run, and the files its results go to. Processes share its batches.

    Args:
        config: of the run.
        output_dir: gets `validation.csv` and `validation/step_N.png` with degraded, restored and clean images.

    Raises:
        ValueError: `data.validation_root` is missing or unusable, no class that is trained on can be made from its
            photos, or LPIPS' weights can't be had.
    """

    def __init__(self, config: RunConfig, output_dir: Path) -> None:
        settings = config.train
        # The set is small: it is made once and stays in memory.
        pairs = _open_set(config.data, settings.validation_images)
        num_images = min(settings.validation_images, pairs.num_fixed)
        size = min(
            BATCH,
            settings.micro_batch_size
            or settings.hardware.max_micro_batch
            or settings.global_batch_size,
        )
        self.batches: list[PairBatch] = []
        for start in range(0, num_images, size):
            indices = range(start, min(start + size, num_images))
            self.batches.append(collate_pairs([pairs.fixed(index) for index in indices]))

        self.output_dir = output_dir
        self.lpips = _load_lpips() if settings.validation_lpips else None

    @torch.no_grad()
    def __call__(self, task: Task, device: torch.device) -> ValidationScore:
        """Score the task as it stands. Every process calls this, and all get the same score.

        Nothing that is learned may depend on it. So a task's forward pass in evaluation mode changes no state. It also
        exchanges nothing between processes, since one of them may have more batches than another.
        """
        with evaluating(task):
            results = share_out(
                lambda number: self._score_batch(task, self.batches[number].to(device)),
                len(self.batches),
            )

        # The last batch may be smaller than the others.
        sizes = torch.tensor([float(len(batch.positions)) for batch in self.batches])
        losses = {}
        for name in results[0].losses:
            losses[name] = _weighted_mean([result.losses[name] for result in results], sizes)
        restored = [result.restored for result in results if result.restored is not None]
        mean_psnr = _weighted_mean([result.psnr for result in results], sizes) if restored else None
        mean_lpips = None
        if restored and self.lpips is not None:
            mean_lpips = _weighted_mean([result.lpips for result in results], sizes)
        return ValidationScore(losses, mean_psnr, mean_lpips, torch.cat(restored) if restored else None)

    def write(self, score: ValidationScore, step: int) -> Float[Tensor, "3 sheet_h sheet_w"] | None:
        """Write a row of scores and a sheet of images; return the sheet, or None without images."""
        self._append(step, score.row())
        if score.restored is None:
            return None
        lq = torch.cat([to_unit(batch.lq) for batch in self.batches])
        gt = torch.cat([to_unit(batch.gt) for batch in self.batches])
        path = self.output_dir / "validation" / f"step_{step}.png"
        return save_sheet(path, [lq, score.restored, gt])

    def _score_batch(self, task: Task, batch: PairBatch) -> _BatchScore:
        losses = task(batch)
        values = {"total": losses.total.item()}
        for name, value in losses.parts.items():
            values[name] = value.item()

        restored = task.restore(batch)
        if restored is None:
            return _BatchScore(values)
        restored = restored.float().clamp(0, 1)
        gt = to_unit(batch.gt)
        lpips = 0.0
        if self.lpips is not None:
            lpips = self.lpips.to(gt.device)(restored * 2 - 1, gt * 2 - 1).mean().item()
        return _BatchScore(values, restored.cpu(), psnr(restored, gt).mean().item(), lpips)

    def _append(self, step: int, row: dict[str, float]) -> None:
        """Add a row. Columns that come or go between starts of a run are left empty where they were not."""
        path = self.output_dir / "validation.csv"
        rows: list[dict[str, str | float]] = []
        if path.exists():
            with path.open(newline="") as file:
                rows = [dict(old) for old in csv.DictReader(file)]
        rows.append({"step": step, **row})

        # In the order in which the columns came up.
        columns: dict[str, None] = {}
        for each in rows:
            columns.update(dict.fromkeys(each))
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())


def psnr(restored: Float[Tensor, "b 3 h w"], gt: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Return the peak signal-to-noise ratio in dB per image, for images in [0, 1]."""
    error = (restored - gt).square().flatten(1).mean(1)
    return -10 * error.clamp(min=1e-10).log10()


def _weighted_mean(values: Sequence[float], weights: Float[Tensor, "n"]) -> float:
    return float((torch.tensor(values) * weights).sum() / weights.sum())


def _load_lpips() -> nn.Module:
    import lpips

    try:
        return lpips.LPIPS(net="alex", verbose=False).eval().requires_grad_(False)
    except OSError as error:
        raise ValueError(
            f"train.validation_lpips=true needs torchvision's AlexNet weights, which can't be had here ({error}): "
            "fetch them where there is a network (they land in torch's hub folder), or leave it false"
        ) from None
