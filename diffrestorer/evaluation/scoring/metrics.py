"""The metrics of the evaluation: which pyiqa metric, which direction, whether a reference is needed; and their scores.

pyiqa (extra `eval`) is imported when the first metric is made, not before: its licence forbids commercial use.
"""

import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Metric:
    """One metric, pinned.

    Attributes:
        name: the column in scores.csv.
        pyiqa_id: its name in pyiqa 0.1.16, whose defaults apply.
        lower_is_better: the direction.
        needs_reference: False scores an image by itself.
        min_side: smallest side in pixels it is defined on.
        of_sets: True compares two sets of images (FID) instead of two images.
        files: the weights it downloads on first use, as they lie in torch's hub folder; empty: none.
    """

    name: str
    pyiqa_id: str
    lower_is_better: bool
    needs_reference: bool
    min_side: int
    of_sets: bool = False
    files: tuple[str, ...] = ()

    def best(self, values: Sequence[float]) -> float:
        """The best of some scores; NaN where one of them is NaN, for then none can be called the best."""
        if any(value != value for value in values):
            return float("nan")
        return min(values) if self.lower_is_better else max(values)

    @property
    def arrow(self) -> str:
        """The direction as tables show it."""
        return "↓" if self.lower_is_better else "↑"


_ALEXNET = "checkpoints/alexnet-owt-7be5be79.pth"
_VGG16 = "checkpoints/vgg16-397923af.pth"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("psnr", "psnr", False, True, 1),
        Metric("ssim", "ssim", False, True, 11),
        Metric("ms_ssim", "ms_ssim", False, True, 161),
        Metric("fsim", "fsim", False, True, 32),
        Metric("vsi", "vsi", False, True, 32),
        Metric("gmsd", "gmsd", True, True, 32),
        Metric("nlpd", "nlpd", True, True, 32),
        Metric("fid", "fid", True, True, 1, of_sets=True, files=("pyiqa/pt_inception-2015-12-05-6726825d.pth",)),
        Metric("lpips", "lpips", True, True, 32, files=(_ALEXNET, "pyiqa/LPIPS_v0.1_alex-df73285e.pth")),
        Metric("dists", "dists", True, True, 32, files=(_VGG16, "pyiqa/DISTS_weights-f5e65c96.pth")),
        Metric("niqe", "niqe", True, False, 96, files=("pyiqa/niqe_modelparameters.mat",)),
        Metric("musiq", "musiq", False, False, 32, files=("pyiqa/musiq_koniq_ckpt-e95806b9.pth",)),
        Metric("clipiqa", "clipiqa", False, False, 32, files=("clip/RN50.pt",)),
    )
}
"""Name -> metric. `psnr` (dB) is over the three RGB channels in [0, 1] and ends at 80. `ssim` and `ms_ssim` are over
luma (Y of YIQ, 0-255; Gaussian window of 11, deviation 1.5; no downsampling). Both are what pyiqa calls by these names.
`mad` is left out (seconds an image, and 0 against a flat image), and so is `vif` (0 for two equal flat images)."""

OFFLINE_METRICS: tuple[str, ...] = tuple(name for name, metric in METRICS.items() if not metric.files)
"""Those that need no download."""

PAPER_METRICS: tuple[str, ...] = ("fid", "lpips", "dists", "niqe", "musiq", "clipiqa")
"""The paper's six, in the order of its Table I."""

DEFAULT_METRICS: tuple[str, ...] = ("psnr", "ssim", "vsi", "gmsd", "nlpd")
"""No download, together a tenth of a second a 256 x 256 image on a CPU."""


def select_metrics(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names.

    Raises:
        ValueError: a name is unknown or doubled.
    """
    for name in names:
        if name not in METRICS:
            raise ValueError(f"metrics={name} is not valid; choose from {', '.join(METRICS)}")
        if names.count(name) > 1:
            raise ValueError(f"metrics names {name} twice")
    return [METRICS[name] for name in names]


class Scorer:
    """Scores batches with some metrics.

    A metric whose weights can't be had takes no part: `unavailable` gives the reason. LPIPS and DISTS ask their
    backbone about the same reference once, not once a method, when the methods' outputs come one after the other.

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
        self, metrics: Sequence[Metric], device: str | torch.device = "cpu", weights: Path | None = None
    ) -> None:
        assert not any(metric.of_sets for metric in metrics)
        self.device = torch.device(device)
        self.unavailable: dict[str, str] = {}
        self._functions: dict[str, Any] = {}
        for metric in metrics:
            try:
                self._functions[metric.name] = create(metric, self.device, weights)
            except WeightsError as error:
                self.unavailable[metric.name] = str(error)
        self.metrics = [metric for metric in metrics if metric.name in self._functions]

    def __call__(
        self,
        restored: Float[Tensor, "b 3 h w"],
        gt: Float[Tensor, "b2 3 h2 w2"] | None = None,
        metrics: Sequence[Metric] | None = None,
    ) -> dict[str, list[float]]:
        """Scores a batch of one size: metric name -> b values. NaN stays NaN.

        Args:
            restored, gt: RGB in [0, 1], of one shape.
            metrics: some of the scorer's; None: all.

        Raises:
            ValueError: a metric needs the reference and `gt` is None, or its shape is another one.
        """
        if gt is not None and gt.shape != restored.shape:
            raise ValueError(f"image and reference differ in size: {tuple(restored.shape)} and {tuple(gt.shape)}")
        images = restored.to(self.device, torch.float32)
        reference = None if gt is None else gt.to(self.device, torch.float32)
        scores = {}
        for metric in self.metrics if metrics is None else metrics:
            if metric.needs_reference and reference is None:
                raise ValueError(f"{metric.name} compares with a reference, and there is none")
            scores[metric.name] = self._score(metric, images, reference if metric.needs_reference else None)
        return scores

    def _score(
        self, metric: Metric, images: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"] | None
    ) -> list[float]:
        """NaN for an image on which the metric breaks down (NIQE of a flat one has no finite covariance)."""
        inputs = (images,) if reference is None else (images, reference)
        try:
            with _separable_filters():
                values = self._functions[metric.name](*inputs)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            if len(images) == 1:
                return [float("nan")]
            references = [None] * len(images) if reference is None else reference.split(1)
            return [self._score(metric, *pair)[0] for pair in zip(images.split(1), references, strict=True)]
        return [float(value) for value in values.reshape(len(images)).tolist()]


class WeightsError(ValueError):
    """A metric's weights can't be had; the message says why and what to do."""


def create(metric: Metric, device: torch.device, weights: Path | None = None) -> Any:
    """The metric as pyiqa makes it, with weights from a folder or from torch's hub folder (see `Scorer`).

    Raises:
        ValueError: pyiqa is not installed.
        WeightsError: the weights can't be had.
    """
    try:
        import pyiqa
    except ImportError:
        raise ValueError("scores need pyiqa, which is not installed: pip install 'diffrestorer[eval]'") from None
    logging.getLogger("pyiqa").setLevel(logging.WARNING)  # it announces every metric it makes
    missing = [name for name in metric.files if weights is not None and not (weights / name).is_file()]
    if missing:
        raise WeightsError(f"metric_weights={weights} lacks {' and '.join(missing)}")
    try:
        with _hub_folder(weights), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's, of pyiqa's calls
            model = pyiqa.create_metric(metric.pyiqa_id, device=device)
    except Exception as error:  # whatever stops a download or a file from loading
        if not metric.files:
            raise
        reason = str(getattr(error, "reason", error)).splitlines()[0]
        files = " and ".join(metric.files)
        raise WeightsError(f"its weights can't be had ({reason}); give metric_weights=FOLDER with {files}") from None
    if metric.name == "lpips":
        model.net.net.forward = _Remembering(model.net.net.forward)
    elif metric.name == "dists":
        model.net.forward_once = _Remembering(model.net.forward_once)
    return model


def metric_version(metric: Metric, weights: Path | None = None) -> str:
    """What a score depends on: `pyiqa 0.1.16 lpips`, and the digests of the weights."""
    folder = Path(torch.hub.get_dir()) if weights is None else weights
    digests = []
    for name in metric.files:
        with (folder / name).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest()[:12])
    return " ".join(["pyiqa", version("pyiqa"), metric.pyiqa_id, *digests])


@contextmanager
def _hub_folder(folder: Path | None) -> Iterator[None]:
    """Lets torchvision, CLIP and pyiqa look for weights in `folder`."""
    from pyiqa.utils import download_util

    before = torch.hub.get_dir(), download_util.DEFAULT_CACHE_DIR
    if folder is not None:
        torch.hub.set_dir(str(folder))
        download_util.DEFAULT_CACHE_DIR = str(folder / "pyiqa")
    try:
        yield
    finally:
        torch.hub.set_dir(before[0])
        download_util.DEFAULT_CACHE_DIR = before[1]


@contextmanager
def _separable_filters() -> Iterator[None]:
    """Lets pyiqa's SSIM filter with two one-dimensional windows instead of their product: a quarter of the time.

    Its window is a normalised Gaussian, so that both are the same to rounding, in float64.
    """
    from pyiqa.archs import ssim_arch

    def filter_twice(
        images: Float[Tensor, "b c h w"], window: Float[Tensor, "c 1 k k"], shape: str
    ) -> Float[Tensor, "b c h2 w2"]:
        assert shape == "valid"
        for side in (3, 2):
            images = F.conv2d(images, window.sum(dim=side, keepdim=True), groups=images.shape[1])
        return images

    before, ssim_arch.filter2 = ssim_arch.filter2, filter_twice
    try:
        yield
    finally:
        ssim_arch.filter2 = before


class _Remembering:
    """A network that keeps its last two answers, so that it sees the reference of several outputs once."""

    def __init__(self, network: Callable[..., Any]) -> None:
        self.network = network
        self.kept: list[tuple[Float[Tensor, "b 3 h w"], Any]] = []

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Any:
        for index, (known, answer) in enumerate(self.kept):
            if known.shape == images.shape and torch.equal(known, images):
                self.kept.insert(0, self.kept.pop(index))
                return answer
        answer = self.network(images)
        self.kept = [(images, answer), *self.kept[:1]]
        return answer
