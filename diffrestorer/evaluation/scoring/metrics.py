"""The table of metrics: which pyiqa metric stands behind a name, its direction, its weights."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric, pinned.

    Attributes:
        name: the column in scores.csv.
        pyiqa_id: its name in pyiqa 0.1.16, whose defaults apply.
        lower_is_better: the direction.
        needs_reference: False for a metric of a single image.
        min_side: smallest side in pixels it is defined on.
        of_sets: True compares two sets of images (FID) instead of two images.
        files: the weights it downloads on first use, relative to torch's hub folder; empty for none.
    """

    name: str
    pyiqa_id: str
    lower_is_better: bool
    needs_reference: bool
    min_side: int
    of_sets: bool = False
    files: tuple[str, ...] = ()

    def best(self, values: Sequence[float]) -> float:
        """Return the best of some scores, or NaN where one of them is NaN and none can be called the best."""
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
luma (Y of YIQ, 0-255; Gaussian window of 11, deviation 1.5; no downsampling). Both are pyiqa's defaults.
`mad` is left out (seconds per image, and 0 against a flat image), and so is `vif` (0 for two equal flat images)."""

OFFLINE_METRICS: tuple[str, ...] = tuple(name for name, metric in METRICS.items() if not metric.files)
"""Metrics that need no download."""

PAPER_METRICS: tuple[str, ...] = ("fid", "lpips", "dists", "niqe", "musiq", "clipiqa")
"""The paper's six, in the order of its Table I."""

DEFAULT_METRICS: tuple[str, ...] = ("psnr", "ssim", "vsi", "gmsd", "nlpd")
"""No download, together a tenth of a second per image of 256 x 256 on a CPU."""


def suite_metrics(suite: str) -> tuple[str, ...]:
    """Return the metrics of a suite: those of the demo need no download, the others add the paper's six."""
    return DEFAULT_METRICS if suite == "demo" else (*DEFAULT_METRICS, *PAPER_METRICS)


def select_metrics(names: Sequence[str]) -> list[Metric]:
    """Return the metrics of these names.

    Raises:
        ValueError: a name is unknown or doubled.
    """
    for name in names:
        if name not in METRICS:
            raise ValueError(f"metrics={name} is not valid; choose from {', '.join(METRICS)}")
        if names.count(name) > 1:
            raise ValueError(f"metrics names {name} twice")
    return [METRICS[name] for name in names]
