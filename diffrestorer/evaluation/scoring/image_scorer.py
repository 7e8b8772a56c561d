"""Scores of batches of images, with whichever metrics can be had."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffrestorer.evaluation.scoring.feature_distance import open_feature_distance
from diffrestorer.evaluation.scoring.metrics import Metric
from diffrestorer.evaluation.scoring.pyiqa_networks import WeightsError, create, separable_filters


class Scorer:
    """Scores of batches under several metrics; those that compare with the input are `consistency`'s matter.

    A metric whose weights can't be had takes no part: `unavailable` gives the reason. LPIPS and DISTS run their
    backbone on a reference once, not once per method, when the methods' outputs come one after the other.

    Args:
        metrics: which; none of them `of_sets`.
        device: where they run.
        weights: a folder laid out like torch's hub folder, where nothing is downloaded; None: torch's own, where
            pyiqa downloads what is missing.

    Attributes:
        metrics: those that work.
        unavailable: metric name -> why it does not, and how to supply its weights.

    Raises:
        ValueError: pyiqa is not installed.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        device: str | torch.device = "cpu",
        weights: Path | None = None,
    ) -> None:
        assert not any(metric.of_sets or metric.of_input for metric in metrics)
        self.device = torch.device(device)
        self.unavailable: dict[str, str] = {}

        # What can't be opened is left out, with the reason.
        self._functions: dict[str, Any] = {}
        for metric in metrics:
            try:
                self._functions[metric.name] = _open(metric, self.device, weights)
            except WeightsError as error:
                self.unavailable[metric.name] = str(error)
        self.metrics = [metric for metric in metrics if metric.name in self._functions]

    def __call__(
        self,
        restored: Float[Tensor, "b 3 h w"],
        gt: Float[Tensor, "b2 3 h2 w2"] | None = None,
        metrics: Sequence[Metric] | None = None,
    ) -> dict[str, list[float]]:
        """Score a batch of one size: metric name -> b values. NaN stays NaN.

        Args:
            restored: RGB in [0, 1].
            gt: the clean images, of the same shape.
            metrics: some of the scorer's; None for all.

        Raises:
            ValueError: a metric needs the reference and `gt` is None, or its shape is another one.
        """
        if gt is not None and gt.shape != restored.shape:
            raise ValueError(
                f"image and reference differ in size: {tuple(restored.shape)} and {tuple(gt.shape)}"
            )
        images = restored.to(self.device, torch.float32)
        reference = None if gt is None else gt.to(self.device, torch.float32)
        scores = {}
        for metric in self.metrics if metrics is None else metrics:
            if metric.needs_reference and reference is None:
                raise ValueError(f"{metric.name} compares with a reference, and there is none")
            scores[metric.name] = self._score(
                metric, images, reference if metric.needs_reference else None
            )
        return scores

    def _score(
        self,
        metric: Metric,
        images: Float[Tensor, "b 3 h w"],
        reference: Float[Tensor, "b 3 h w"] | None,
    ) -> list[float]:
        """Score one metric; NaN for an image on which it breaks down (a flat image has no finite NIQE)."""
        inputs = (images,) if reference is None else (images, reference)
        try:
            with separable_filters():
                values = self._functions[metric.name](*inputs)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            if len(images) == 1:
                return [float("nan")]
            # One image of the batch is to blame: each is scored alone.
            references = [None] * len(images) if reference is None else reference.split(1)
            return [
                self._score(metric, *pair)[0] for pair in zip(images.split(1), references, strict=True)
            ]
        return [float(value) for value in values.reshape(len(images)).tolist()]


def _open(
    metric: Metric,
    device: torch.device,
    weights: Path | None,
) -> Any:
    """Open the function of a metric: pyiqa's, or this package's."""
    if metric.pyiqa_id:
        return create(metric, device, weights)
    return open_feature_distance(device)
