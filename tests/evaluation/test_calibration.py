"""Calibration: our metrics on the images for which pyiqa publishes the official implementations' values.

Images and values come in pyiqa's source archive, NIQE's parameters in the wheel of iqa-torch. pip fetches both; without
a network CALIBRATION_ARCHIVES names a folder that holds them.
"""

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import scipy.io
import skimage.data
import torch
from jaxtyping import Float
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from diffrestorer.data.images import read_photo
from diffrestorer.evaluation.restoring.outputs import as_batch
from diffrestorer.evaluation.scoring.image_scorer import Scorer
from diffrestorer.evaluation.scoring.metrics import METRICS, Metric

PYIQA = f"pyiqa-{version('pyiqa')}"
NIQE_WHEEL = "iqa_torch-1.2.1-py3-none-any.whl"

PUBLISHED = (
    "psnr", "ssim", "ms_ssim", "fsim", "vsi", "gmsd", "nlpd", "lpips", "dists", "niqe", "musiq"
)  # fmt: skip
"""Our metrics with published values."""

TOLERANCES = {"niqe": 6e-2, "musiq": 3e-2}
"""pyiqa's relative tolerances (tests/test_metric_general.py of its archive); 1e-2 for all others, 1e-2 absolute."""

PIQ = {
    "psnr": 22.71212,
    "ssim": 0.52440,
    "ssim_rgb": 0.40105,
    "ms_ssim": 0.92570,
    "fsim": 0.93102,
    "vsi": 0.97590,
    "gmsd": 0.08682,
}
"""Values of piq 0.8.0, another implementation, for `noisy_astronaut`: SSIM and MS-SSIM on Y of YIQ, SSIM without
downsampling."""


@dataclass(frozen=True)
class Calibration:
    """The calibration set.

    Attributes:
        restored, gt: the distorted and the clean images.
        official: name in pyiqa -> a value per image.
        weights: a folder laid out like torch's hub folder.
    """

    restored: Float[Tensor, "b 3 h w"]
    gt: Float[Tensor, "b 3 h w"]
    official: dict[str, list[float]]
    weights: Path


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    folder = tmp_path_factory.mktemp("calibration")
    archives = Path(os.environ.get("CALIBRATION_ARCHIVES", folder))
    source, wheel = archives / f"{PYIQA}.tar.gz", archives / NIQE_WHEEL
    if "CALIBRATION_ARCHIVES" not in os.environ:
        fetch(PYIQA.replace("-", "=="), folder, "--no-binary=:all:")
        fetch("iqa-torch==1.2.1", folder)

    # The images and the table of official values.
    if not source.is_file():
        pytest.skip(f"{source.name} holds the calibration images, and pip could not fetch it")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    images = folder / PYIQA / "ResultsCalibra"
    table = pd.read_csv(images / "results_official.csv", index_col="Method")
    official = {str(name): row.tolist() for name, row in table.iterrows()}

    # NIQE's parameters, under the names that pyiqa reads.
    weights = folder / "hub"
    if wheel.is_file():
        with zipfile.ZipFile(wheel) as packed:
            parameters = np.load(packed.open("iqa/niqe/niqe_pris_params.npz"))
        (file,) = METRICS["niqe"].files
        (weights / file).parent.mkdir(parents=True)
        values = {f"{name}_prisparam": parameters[f"{name}_pris_param"] for name in ("mu", "cov")}
        scipy.io.savemat(weights / file, values)

    return Calibration(read(images / "dist_dir"), read(images / "ref_dir"), official, weights)


def fetch(requirement: str, folder: Path, *options: str) -> None:
    """Fetch a package's archive with pip; where that fails it is missing."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", *options, "-d", str(folder)]
    subprocess.run([*command, requirement], capture_output=True, timeout=300, check=False)


def read(folder: Path) -> Float[Tensor, "b 3 h w"]:
    return as_batch([read_photo(file).pixels for file in sorted(folder.iterdir())])


def hub_with(metric: Metric, folder: Path) -> Path | None:
    """Return the folder with all of a metric's files: torch's own or this one."""
    for hub in (Path(torch.hub.get_dir()), folder):
        if all((hub / name).is_file() for name in metric.files):
            return hub
    return None


@pytest.mark.soak
@pytest.mark.parametrize("name", [metric.name for metric in METRICS.values() if metric.pyiqa_id])
def test_published_values_are_reproduced(name: str, calibration: Calibration) -> None:
    """Within pyiqa's own tolerances, on every calibration image."""
    metric = METRICS[name]
    if name not in PUBLISHED:
        pytest.skip(f"pyiqa publishes no value of {metric.pyiqa_id}")
    hub = hub_with(metric, calibration.weights)
    if hub is None:
        pytest.skip(f"its weights are not at hand: {' and '.join(metric.files)}")

    scorer = Scorer([metric], "cpu", hub)
    assert not scorer.unavailable
    scores = scorer(calibration.restored, calibration.gt)[name]

    official = calibration.official[metric.pyiqa_id]
    assert len(scores) == len(official) == 5
    np.testing.assert_allclose(scores, official, rtol=TOLERANCES.get(name, 1e-2), atol=1e-2)


@pytest.mark.soak
def test_no_published_value_is_overlooked(calibration: Calibration) -> None:
    """Those that are published are those that are compared."""
    known = [metric.name for metric in METRICS.values() if metric.pyiqa_id in calibration.official]
    assert sorted(known) == sorted(PUBLISHED)


@pytest.fixture(scope="module")
def noisy_astronaut() -> tuple[np.ndarray, np.ndarray]:
    """scikit-image's astronaut with Gaussian noise of 20 levels, and without."""
    photo = skimage.data.astronaut()
    noise = np.rint(np.random.default_rng(0).normal(0, 20, photo.shape))
    return np.clip(photo + noise, 0, 255).astype(np.uint8), photo


def test_values_are_those_of_other_implementations(
    noisy_astronaut: tuple[np.ndarray, np.ndarray],
) -> None:
    """piq's recorded values, OpenCV's PSNR, and scikit-image's PSNR of Y; these need no download."""
    restored, gt = noisy_astronaut
    scorer = Scorer([METRICS[name] for name in (*PIQ, "psnr_y")])
    scores = scorer(as_batch([restored]), as_batch([gt]))

    for name, value in PIQ.items():
        assert scores[name] == pytest.approx([value], abs=1e-3), name
    assert scores["psnr"] == pytest.approx([cv2.PSNR(restored, gt)], abs=1e-3)
    luma = [rgb2ycbcr(image)[..., 0] for image in (restored, gt)]
    psnr_y = peak_signal_noise_ratio(luma[1], luma[0], data_range=255)
    assert scores["psnr_y"] == pytest.approx([psnr_y], abs=1e-2)
