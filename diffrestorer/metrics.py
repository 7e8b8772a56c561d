"""The metrics of the evaluation: which pyiqa metric, which direction, whether a reference is needed; and their scores.

pyiqa (extra `eval`) is imported when the first metric is made, not before: its licence forbids commercial use.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """One metric, pinned.

    Attributes:
        name: the column in scores.csv.
        pyiqa_id: its name in pyiqa 0.1.16, whose defaults apply.
        lower_is_better: the direction.
        needs_reference: False scores an image by itself.
        weights: what it downloads on first use; None: nothing.
        min_side: smallest side in pixels it is defined on.
        of_sets: True compares two folders of images (FID) instead of two images.
    """

    name: str
    pyiqa_id: str
    lower_is_better: bool
    needs_reference: bool
    weights: str | None
    min_side: int
    of_sets: bool = False

    def best(self, values: Sequence[float]) -> float:
        """The best of some scores; NaN where one of them is NaN, for then none can be called the best."""
        if any(value != value for value in values):
            return float("nan")
        return min(values) if self.lower_is_better else max(values)

    @property
    def arrow(self) -> str:
        """The direction as tables show it."""
        return "↓" if self.lower_is_better else "↑"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("psnr", "psnr", False, True, None, 1),
        Metric("ssim", "ssim", False, True, None, 11),
        Metric("ms_ssim", "ms_ssim", False, True, None, 161),
        Metric("fsim", "fsim", False, True, None, 32),
        Metric("vsi", "vsi", False, True, None, 32),
        Metric("gmsd", "gmsd", True, True, None, 32),
        Metric("nlpd", "nlpd", True, True, None, 32),
        Metric("fid", "fid", True, True, "InceptionV3 of clean-fid", 1, of_sets=True),
        Metric("lpips", "lpips", True, True, "AlexNet of torchvision and LPIPS v0.1", 32),
        Metric("dists", "dists", True, True, "VGG16 of torchvision and DISTS", 32),
        Metric("niqe", "niqe", True, False, "NIQE's natural-scene model", 96),
        Metric("musiq", "musiq", False, False, "MUSIQ trained on KonIQ-10k", 32),
        Metric("clipiqa", "clipiqa", False, False, "CLIP RN50", 32),
    )
}
"""Name -> metric. `psnr` (dB) is over the three RGB channels in [0, 1] and ends at 80. `ssim` and `ms_ssim` are over
luma (Y of YIQ, 0-255; Gaussian window of 11, deviation 1.5; no downsampling). Both are what pyiqa calls by these names.
`mad` is left out (seconds an image, and 0 against a flat image), and so is `vif` (0 for two equal flat images)."""

OFFLINE_METRICS: tuple[str, ...] = tuple(name for name, metric in METRICS.items() if metric.weights is None)
"""Those that need no download."""

DEFAULT_METRICS: tuple[str, ...] = ("psnr", "ssim", "vsi", "gmsd", "nlpd")
"""What an empty `metrics` stands for: no download, together a tenth of a second a 256 x 256 image on a CPU."""


def select_metrics(names: Sequence[str], size: int) -> list[Metric]:
    """The metrics of `names` (empty: `DEFAULT_METRICS`), for images whose shorter side is `size` pixels.

    Raises:
        ValueError: a name is unknown, doubled, needs a download, or is not defined on images that small.
    """
    chosen = list(names) or list(DEFAULT_METRICS)
    for name in chosen:
        if name not in METRICS:
            raise ValueError(f"metrics={name} is not valid; choose from {', '.join(OFFLINE_METRICS)}")
        metric = METRICS[name]
        if metric.weights is not None:
            offer = ", ".join(OFFLINE_METRICS)
            raise ValueError(
                f"metrics={name} needs a download ({metric.weights}), which this suite does without: {offer}"
            )
        if size < metric.min_side:
            raise ValueError(f"{name} needs images of at least {metric.min_side} pixels a side, got size={size}")
        if chosen.count(name) > 1:
            raise ValueError(f"metrics names {name} twice")
    return [METRICS[name] for name in chosen]


class Scorer:
    """Scores batches with some metrics.

    Args:
        metrics: which; none of them `of_sets`.
        device: where they run.

    Raises:
        ValueError: pyiqa is not installed.
    """

    def __init__(self, metrics: Sequence[Metric], device: str | torch.device = "cpu") -> None:
        assert not any(metric.of_sets for metric in metrics)
        self.metrics = list(metrics)
        self.device = torch.device(device)
        self._functions = {metric.name: _create(metric, self.device) for metric in metrics}

    def __call__(
        self, restored: Float[Tensor, "b 3 h w"], gt: Float[Tensor, "b2 3 h2 w2"] | None = None
    ) -> dict[str, list[float]]:
        """Scores a batch of one size: metric name -> b values. NaN stays NaN.

        Args:
            restored, gt: RGB in [0, 1], of one shape.

        Raises:
            ValueError: a metric needs the reference and `gt` is None, or its shape is another one.
        """
        if gt is not None and gt.shape != restored.shape:
            raise ValueError(f"image and reference differ in size: {tuple(restored.shape)} and {tuple(gt.shape)}")
        images = restored.to(self.device, torch.float32)
        reference = None if gt is None else gt.to(self.device, torch.float32)
        scores = {}
        for metric in self.metrics:
            if metric.needs_reference and reference is None:
                raise ValueError(f"{metric.name} compares with a reference, and there is none")
            function = self._functions[metric.name]
            values = function(images, reference) if metric.needs_reference else function(images)
            scores[metric.name] = [float(value) for value in values.reshape(len(images)).tolist()]
        return scores


def _create(metric: Metric, device: torch.device) -> Any:
    try:
        import pyiqa
    except ImportError:
        raise ValueError("scores need pyiqa, which is not installed: pip install 'diffrestorer[eval]'") from None
    logging.getLogger("pyiqa").setLevel(logging.WARNING)  # it announces every metric it makes
    return pyiqa.create_metric(metric.pyiqa_id, device=device)
