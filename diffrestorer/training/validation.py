"""Validation on a fixed set: photos that are not trained on, degraded once for all, restored at intervals."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.utils import make_grid, save_image

from diffrestorer.config.classes import trained_classes
from diffrestorer.config.degradations import is_synthesised
from diffrestorer.config.schema import RunConfig
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs, collate_pairs
from diffrestorer.data.storage import whole_file
from diffrestorer.training.task import Task, to_unit

VALIDATION_SEED = 1_000_003
"""Apart from every run's own seed, so that runs of different seeds see the same set."""


@dataclass(frozen=True)
class ValidationScore:
    """Means over the set: the task's losses, PSNR in dB (None where the task restores nothing), LPIPS if asked for."""

    losses: dict[str, float]
    psnr: float | None
    lpips: float | None

    def row(self) -> dict[str, float]:
        """What goes into validation.csv."""
        scores = {name: value for name, value in (("psnr", self.psnr), ("lpips", self.lpips)) if value is not None}
        return {**self.losses, **scores}


class Validation:
    """The fixed set of a run, and the folder and file its results go to.

    Args:
        output_dir: gets `validation.csv` and `validation/step_N.png`: degraded, restored, clean.

    Raises:
        ValueError: `data.validation_root` is missing or unusable, no class that is trained on can be made from its
            photos, or LPIPS' weights can't be had.
    """

    def __init__(self, config: RunConfig, output_dir: Path) -> None:
        settings = config.train
        if config.data.validation_root is None:
            raise ValueError("train.validate_every needs data.validation_root=FOLDER of photos that are not trained on")
        classes = [name for name in trained_classes(config.data) if is_synthesised(name)]
        if not classes:
            raise ValueError(
                "train.validate_every degrades the photos of data.validation_root, and none of the classes that are "
                "trained on can be made from photos: leave it null"
            )
        data = replace(config.data, name="photos", root=config.data.validation_root, degradations=classes)
        pairs = SynthesisedPairs(data, VALIDATION_SEED, settings.validation_images)
        num_images = min(settings.validation_images, len(pairs.paths))
        size = settings.micro_batch_size or settings.hardware.max_micro_batch or settings.global_batch_size
        self.batches = [
            collate_pairs([pairs.fixed(i) for i in range(start, min(start + size, num_images))])
            for start in range(0, num_images, size)
        ]
        self.output_dir = output_dir
        self.lpips = _load_lpips() if settings.validation_lpips else None

    @torch.no_grad()
    def __call__(self, task: Task, step: int, device: torch.device) -> ValidationScore:
        """Scores the task as it stands and writes row and sheet."""
        was_training = [(module, module.training) for module in task.modules()]
        task.eval()
        try:
            results = [self._batch(task, batch.to(device)) for batch in self.batches]
        finally:
            for module, training in was_training:
                module.training = training
        sizes = torch.tensor([float(len(batch.positions)) for batch in self.batches])
        mean = lambda values: float((torch.tensor(values) * sizes).sum() / sizes.sum())  # noqa: E731
        losses = {name: mean([result[0][name] for result in results]) for name in results[0][0]}
        restored = [image for _, image, _, _ in results if image is not None]
        score = ValidationScore(
            losses,
            mean([psnr for _, _, psnr, _ in results]) if restored else None,
            mean([lpips for _, _, _, lpips in results]) if restored and self.lpips else None,
        )
        if restored:
            self._save_sheet(torch.cat(restored), step)
        self._append(step, score.row())
        return score

    def _batch(
        self, task: Task, batch: PairBatch
    ) -> tuple[dict[str, float], Float[Tensor, "b 3 h w"] | None, float, float]:
        losses = task(batch)
        values = {"total": losses.total.item(), **{name: value.item() for name, value in losses.parts.items()}}
        restored = task.restore(batch)
        if restored is None:
            return values, None, 0.0, 0.0
        restored, gt = restored.float().clamp(0, 1), to_unit(batch.gt)
        lpips = 0.0
        if self.lpips is not None:
            lpips = self.lpips.to(gt.device)(restored * 2 - 1, gt * 2 - 1).mean().item()
        return values, restored.cpu(), psnr(restored, gt).mean().item(), lpips

    def _save_sheet(self, restored: Float[Tensor, "b 3 h w"], step: int) -> None:
        lq, gt = (torch.cat([to_unit(getattr(batch, name)) for batch in self.batches]) for name in ("lq", "gt"))
        path = self.output_dir / "validation" / f"step_{step}.png"
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as file:
            save_image(make_grid(torch.stack([lq, restored, gt], dim=1).flatten(0, 1), nrow=3), file, format="png")

    def _append(self, step: int, row: dict[str, float]) -> None:
        """Adds a row, in place of one that a resumed run does again."""
        path = self.output_dir / "validation.csv"
        rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                rows = [old for old in csv.DictReader(file) if int(old["step"]) < step]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *row], lineterminator="\n")
            writer.writeheader()
            writer.writerows([*rows, {"step": step, **row}])


def psnr(restored: Float[Tensor, "b 3 h w"], gt: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio of images in [0, 1], in dB, an image each."""
    return -10 * (restored - gt).square().flatten(1).mean(1).clamp(min=1e-10).log10()


def _load_lpips() -> nn.Module:
    import lpips

    try:
        return lpips.LPIPS(net="alex", verbose=False).eval().requires_grad_(False)
    except OSError as error:
        raise ValueError(
            f"train.validation_lpips=true needs torchvision's AlexNet weights, which can't be had here ({error}): "
            "fetch them where there is a network (they land in torch's hub folder), or leave it false"
        ) from None
