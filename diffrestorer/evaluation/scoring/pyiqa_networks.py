"""Metrics as pyiqa makes them, with weights from a folder, and two ways to spare them work.

pyiqa (extra `eval`) is imported when the first metric is made, not before: its licence forbids commercial use.
"""

import hashlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffrestorer.evaluation.scoring.metrics import Metric
from diffrestorer.models.hub_files import cache_without_network
from diffrestorer.models.weight_files import explain_unreadable, is_torchscript, read_torchscript

OWN_VERSION: dict[str, int] = {"consistency": 1, "efficientnet_lite0": 1}
"""Metric of this package -> version of its definition: scores of another one are computed again."""


class WeightsError(ValueError):
    """A metric whose weights can't be had; the message says why and what to do."""


def create(
    metric: Metric,
    device: torch.device,
    weights: Path | None = None,
) -> Any:
    """Create a metric through pyiqa, with weights from a folder or from torch's hub folder.

    Args:
        metric: the metric to create.
        device: where it runs.
        weights: a folder laid out like torch's hub folder, where nothing is downloaded; None uses torch's own.

    Raises:
        ValueError: pyiqa is not installed.
        WeightsError: the weights can't be had.
    """
    try:
        import pyiqa
    except ImportError:
        raise ValueError(
            "scores need pyiqa, which is not installed: pip install 'diffrestorer[eval]'"
        ) from None
    logging.getLogger("pyiqa").setLevel(logging.WARNING)  # it announces every metric it makes

    # A folder of weights may come from anybody: no program in it is executed.
    if metric.runs_code and weights is not None:
        raise WeightsError(
            f"it runs a program that comes with its weights, and none is run from metric_weights={weights}; if you "
            f"trust {' and '.join(metric.files)}, put them into {torch.hub.get_dir()} and leave metric_weights out"
        )

    # It is taken as it is: what it lacks is not downloaded.
    missing = [name for name in metric.files if weights is not None and not (weights / name).is_file()]
    if missing:
        raise WeightsError(f"metric_weights={weights} lacks {' and '.join(missing)}")

    # Whatever stops a download or a file from loading, the reader needs to know which files to supply.
    try:
        with (
            _hub_folder(weights),
            _tensors_only(metric),
            cache_without_network() if metric.hub else nullcontext(),
            redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # torchvision's, of pyiqa's calls
            model = pyiqa.create_metric(metric.pyiqa_id, device=device, **dict(metric.options))
    except Exception as error:
        if not metric.files and not metric.hub:
            raise
        reason = explain_unreadable(error)
        raise WeightsError(f"its weights can't be had ({reason}); {_advice(metric)}") from None

    # Both networks meet the same reference once per method: they remember it.
    if metric.name == "lpips":
        model.net.net.forward = _Remembering(model.net.net.forward)
    elif metric.name == "dists":
        model.net.forward_once = _Remembering(model.net.forward_once)
    return model


def _advice(metric: Metric) -> str:
    """Return how to supply a metric's weights."""
    ways = []
    if metric.files:
        ways.append(f"give metric_weights=FOLDER with {' and '.join(metric.files)}")
    if metric.hub:
        ways.append(f"fetch {' and '.join(metric.hub)} into Hugging Face's cache")
    return "; ".join(ways)


def metric_version(metric: Metric, weights: Path | None = None) -> str:
    """Return what a score depends on: `pyiqa 0.1.16 lpips`, and the digests of the weights."""
    if not metric.pyiqa_id:
        return f"diffrestorer {OWN_VERSION[metric.name]} {metric.name}"
    folder = Path(torch.hub.get_dir()) if weights is None else weights
    digests = []
    for name in metric.files:
        with (folder / name).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest()[:12])
    options = [f"{key}={value}" for key, value in metric.options]
    return " ".join(["pyiqa", version("pyiqa"), metric.pyiqa_id, *options, *digests])


@contextmanager
def _hub_folder(folder: Path | None) -> Iterator[None]:
    """Let torchvision, CLIP and pyiqa look for weights in `folder`."""
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
def _tensors_only(metric: Metric) -> Iterator[None]:
    """Let pyiqa read tensors from files and execute nothing in them.

    Its loaders call `torch.load(weights_only=False)`, which PyTorch overrules by an environment variable. CLIP's files
    are TorchScript archives, whose program is not needed.
    """
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    load_script = torch.jit.load
    if not metric.runs_code:
        torch.jit.load = _StoredModule  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.jit.load = load_script
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class _StoredModule:
    """The weights of a TorchScript archive, for callers that want its state dict.

    Args:
        file: an open file or a path.

    Raises:
        RuntimeError: it is no such archive; this is PyTorch's own error there.
    """

    def __init__(self, file: Any, **_: Any) -> None:
        path = Path(getattr(file, "name", file))
        if not is_torchscript(path):
            raise RuntimeError(f"{path} is no TorchScript archive")
        self.tensors = read_torchscript(path)

    def eval(self) -> "_StoredModule":
        """Return the same."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors by name."""
        return self.tensors


@contextmanager
def separable_filters() -> Iterator[None]:
    """Let pyiqa's SSIM filter with two one-dimensional windows instead of their product: a quarter of the time.

    Its window is a normalised Gaussian, so that both are the same to rounding, in float64.
    """
    from pyiqa.archs import ssim_arch

    before, ssim_arch.filter2 = ssim_arch.filter2, _filter_twice
    try:
        yield
    finally:
        ssim_arch.filter2 = before


def _filter_twice(
    images: Float[Tensor, "b c h w"], window: Float[Tensor, "c 1 k k"], shape: str
) -> Float[Tensor, "b c h2 w2"]:
    assert shape == "valid"
    for side in (3, 2):
        images = F.conv2d(images, window.sum(dim=side, keepdim=True), groups=images.shape[1])
    return images


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
