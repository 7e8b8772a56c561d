"""Metrics: the identities that their directions promise, and pyiqa's own values."""

import math
import sys
from pathlib import Path

import numpy as np
import pyiqa
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor
from torchvision.io import decode_image, encode_jpeg
from torchvision.transforms.v2.functional import gaussian_blur

from diffrestorer.evaluation.scoring.image_scorer import Scorer
from diffrestorer.evaluation.scoring.metrics import (
    DEFAULT_METRICS,
    EXTRA_METRICS,
    METRICS,
    select_metrics,
    suite_metrics,
)

PHOTO_NAMES = ("astronaut", "coffee")


@pytest.fixture(scope="module")
def gt(photos_dir: Path) -> Float[Tensor, "b 3 h w"]:
    """Two photos, 176 pixels a side: all metrics are defined there."""
    photos = [Image.open(photos_dir / f"{name}.png").resize((176, 176)) for name in PHOTO_NAMES]
    return (
        torch.stack([torch.from_numpy(np.array(photo)) for photo in photos]).permute(0, 3, 1, 2).float()
        / 255
    )


def noisy(gt: Float[Tensor, "b 3 h w"], sigma: float) -> Float[Tensor, "b 3 h w"]:
    noise = torch.randn(gt.shape, generator=torch.Generator().manual_seed(0))
    return (gt + sigma * noise).clamp(0, 1)


def test_identical_is_best_and_more_noise_is_worse(gt: Float[Tensor, "b 3 h w"]) -> None:
    offline = [metric for metric in METRICS.values() if not metric.files and not metric.hub]
    metrics = [metric for metric in offline if metric.pyiqa_id]
    scorer = Scorer(metrics)
    photo = gt[:1]
    same, little, much = (
        scorer(image, photo) for image in (photo, noisy(photo, 0.05), noisy(photo, 0.2))
    )
    for metric in metrics:
        for values in zip(same[metric.name], little[metric.name], much[metric.name], strict=True):
            assert list(values) == sorted(values, reverse=not metric.lower_is_better), metric.name
            assert metric.best(values) == values[0] != values[1], metric.name
            assert values[1] != values[2], metric.name


def test_values_are_pyiqas(gt: Float[Tensor, "b 3 h w"]) -> None:
    lq = noisy(gt, 0.1)
    scores = Scorer([METRICS[name] for name in DEFAULT_METRICS])(lq, gt)
    for name in DEFAULT_METRICS:
        direct = [
            float(pyiqa.create_metric(name, device="cpu")(lq[i : i + 1], gt[i : i + 1]))
            for i in range(len(gt))
        ]
        assert scores[name] == pytest.approx(direct, abs=1e-5), name
    mse = ((lq - gt) ** 2).mean(dim=(1, 2, 3))
    assert scores["psnr"] == pytest.approx((-10 * mse.log10()).tolist(), abs=1e-3)


def test_directions_are_pyiqas() -> None:
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    for metric in (metric for metric in METRICS.values() if metric.pyiqa_id):
        known = DEFAULT_CONFIGS[metric.pyiqa_id]
        assert metric.lower_is_better == known.get("lower_better", False), metric.name
        assert metric.of_sets or metric.needs_reference == (known["metric_mode"] == "FR"), metric.name


def test_channels_are_those_that_the_tables_name(gt: Float[Tensor, "b 3 h w"]) -> None:
    """Luma as papers print it: BT.601, 16 to 235. RGB SSIM is the mean over the channels."""
    lq = noisy(gt, 0.1)
    scores = Scorer([METRICS[name] for name in ("psnr_y", "ssim_rgb", "ssim")])(lq, gt)
    luma = [(65.481 * x[:, 0] + 128.553 * x[:, 1] + 24.966 * x[:, 2] + 16) / 255 for x in (lq, gt)]
    mse = ((luma[0] - luma[1]) ** 2).mean(dim=(1, 2))
    assert scores["psnr_y"] == pytest.approx((-10 * mse.log10()).tolist(), abs=0.01)
    for index in range(len(gt)):
        channels = []
        for channel in range(3):
            one, two = (x[index, channel].numpy().astype(np.float64) for x in (lq, gt))
            channels.append(structural_similarity(
                one, two, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
            ))  # fmt: skip
        assert scores["ssim_rgb"][index] == pytest.approx(np.mean(channels), abs=0.005)
    assert abs(scores["ssim"][0] - scores["ssim_rgb"][0]) > 0.01


def test_extra_metrics_say_what_to_fetch(tmp_path: Path) -> None:
    """Off by default; without their weights each names every file and repository."""
    for metric in (metric for metric in EXTRA_METRICS if not metric.of_sets):
        assert metric.name not in suite_metrics("demo") + suite_metrics("all")
        assert metric.files or metric.hub
        scorer = Scorer([metric], "cpu", tmp_path)
        reason = scorer.unavailable[metric.name]
        assert all(name in reason for name in metric.files or metric.hub)


def test_efficientnet_distance_follows_known_distortions(gt: Float[Tensor, "b 3 h w"]) -> None:
    """Zero for equal images, symmetric, and rising with the strength of noise, blur and JPEG, per photo."""
    distance = Scorer([METRICS["efficientnet_lite0"]])
    assert distance(gt, gt)["efficientnet_lite0"] == pytest.approx([0, 0], abs=1e-6)
    other = noisy(gt, 0.1)
    assert distance(gt, other)["efficientnet_lite0"] == pytest.approx(
        distance(other, gt)["efficientnet_lite0"]
    )
    blurs = [gaussian_blur(gt, [21, 21], [sigma, sigma]) for sigma in (0.8, 1.5, 3, 6)]
    noises = [noisy(gt, sigma) for sigma in (0.02, 0.05, 0.1, 0.3)]
    levels = (gt * 255).round().to(torch.uint8)
    jpegs = [
        torch.stack([decode_image(encode_jpeg(x, q)) for x in levels]) / 255 for q in (90, 50, 20, 5)
    ]
    for images in (blurs, noises, jpegs):
        values = np.array([distance(image, gt)["efficientnet_lite0"] for image in images])
        assert (np.diff(values, axis=0) > 0).all()
    unrelated = distance(gt, gt.flip(0))["efficientnet_lite0"][0]
    assert all(
        distance(images[1], gt)["efficientnet_lite0"][0] < unrelated
        for images in (blurs, noises, jpegs)
    )


def test_nan_is_kept() -> None:
    assert math.isnan(METRICS["psnr"].best([1.0, math.nan, 2.0]))


@pytest.mark.parametrize(
    ("names", "message"), [(["psnrr"], "psnrr is not valid"), (["psnr", "psnr"], "twice")]
)
def test_wrong_choices_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_metrics(names)


def test_wrong_images_are_refused(gt: Float[Tensor, "b 3 h w"]) -> None:
    scorer = Scorer([METRICS["psnr"]])
    with pytest.raises(ValueError, match="differ in size"):
        scorer(gt[:, :, :100], gt)
    with pytest.raises(ValueError, match="there is none"):
        scorer(gt)


def test_missing_pyiqa_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ValueError, match=r"diffrestorer\[eval\]"):
        Scorer([METRICS["psnr"]])
