"""The table of metrics: what stands behind a name, its direction, the weights that it needs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric, pinned.

    Attributes:
        name: the column in scores.csv.
        pyiqa_id: its name in pyiqa 0.1.16, whose defaults apply but for `options`; empty for a metric of this package.
        lower_is_better: the direction.
        needs_reference: False for a metric of a single image.
        min_side: smallest side in pixels it is defined on.
        of_sets: True compares two sets of images (FID) instead of two images.
        files: the weights it downloads on first use, relative to torch's hub folder; empty for none.
        hub: the repositories on Hugging Face that it loads, from that library's own cache.
        of_input: True compares with the degraded input instead of the clean image.
        detail: what tables add to its name, such as the channels it is computed on.
        runs_code: whether a program that comes with its weights is executed.
    """

    name: str
    pyiqa_id: str
    lower_is_better: bool
    needs_reference: bool
    min_side: int
    of_sets: bool = False
    files: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    of_input: bool = False
    detail: str = ""
    options: tuple[tuple[str, str], ...] = ()
    runs_code: bool = False

    def best(self, values: Sequence[float]) -> float:
        """Return the best of some scores; NaN where there is none, or where one is NaN and might be the best."""
        if not values or any(math.isnan(value) for value in values):
            return float("nan")
        return min(values) if self.lower_is_better else max(values)

    @property
    def arrow(self) -> str:
        """The direction as tables show it."""
        return "↓" if self.lower_is_better else "↑"


_ALEXNET = "checkpoints/alexnet-owt-7be5be79.pth"
_VGG16 = "checkpoints/vgg16-397923af.pth"
_RESNET50 = "timm/resnet50.a1_in1k"
_VIT_B8 = "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"
_QUALICLIP = ("clip/RN50.pt", "pyiqa/QualiCLIP.pth", "pyiqa/QualiCLIP+_koniq.pth")
_DINOV2 = ("facebookresearch_dinov2_main/hubconf.py", "checkpoints/dinov2_vitl14_pretrain.pth")
_ARNIQA = (
    "checkpoints/resnet50-0676ba61.pth",
    "checkpoints/ARNIQA.pth",
    "pyiqa/regressor_koniq10k.pth",
)

EXTRA_METRICS: tuple[Metric, ...] = (
    Metric(
        "topiq_nr", "topiq_nr", False, False, 32, files=("pyiqa/cfanet_nr_koniq_res50-9a73138b.pth",), hub=(_RESNET50,)
    ),
    Metric(
        "topiq_fr", "topiq_fr", False, True, 32, files=("pyiqa/cfanet_fr_kadid_res50-2c4cc61d.pth",), hub=(_RESNET50,)
    ),
    Metric("maniqa", "maniqa", False, False, 224, files=("pyiqa/ckpt_koniq10k.pt",), hub=(_VIT_B8,)),
    Metric("liqe", "liqe", False, False, 224, files=("clip/ViT-B-32.pt", "pyiqa/liqe_koniq.pt")),
    Metric("afine", "afine_all", True, True, 32, files=("pyiqa/afine.pth",), detail="with ~/.cache/clip/ViT-B-32.pt"),
    Metric(
        "fgresq", "fgresq", False, False, 32, files=("pyiqa/FGResQ.pth", "pyiqa/FGResQ_Degradation.pth"),
        hub=("openai/clip-vit-base-patch16",),
    ),
    Metric("qalign_4bit", "qalign_4bit", False, False, 32, hub=("q-future/one-align",)),
    Metric("fid_dinov2", "fid_dinov2", True, True, 1, of_sets=True, files=_DINOV2, runs_code=True),
    Metric("stlpips", "stlpips", True, True, 64, files=("pyiqa/alex_shift_tolerant.pth",)),
    Metric("qualiclip+", "qualiclip+", False, False, 32, files=_QUALICLIP),
    Metric("arniqa", "arniqa", False, False, 64, files=_ARNIQA, runs_code=True),
)  # fmt: skip
"""Metrics of recent papers, off by default: `metrics=[topiq_nr,...]`. Higher is better but for `afine`, `stlpips` and
`fid_dinov2`, a FID on DINOv2's features (2306.04675).
TOPIQ (arXiv 2308.03060) and MANIQA (2204.08958) give about 0 to 1, LIQE (2303.14968) and Q-Align (2312.17090) 1 to 5;
Q-Align needs a GPU and 8 GB of it. A-FINE (2503.11221) and ST-LPIPS (2207.13686) compare with a reference; QualiCLIP+
(2403.11176), ARNIQA (2310.14918) and FGResQ (2508.14475) do not."""

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("psnr", "psnr", False, True, 1, detail="RGB, dB"),
        Metric(
            "psnr_y",
            "psnry",
            False,
            True,
            1,
            detail="Y of YCbCr, dB",
            options=(("color_space", "ycbcr"),),
        ),
        Metric("ssim", "ssim", False, True, 11, detail="Y of YIQ"),
        Metric("ssim_rgb", "ssimc", False, True, 11, detail="RGB"),
        Metric("ms_ssim", "ms_ssim", False, True, 161, detail="Y of YIQ"),
        Metric("fsim", "fsim", False, True, 32),
        Metric("vsi", "vsi", False, True, 32),
        Metric("gmsd", "gmsd", True, True, 32),
        Metric("nlpd", "nlpd", True, True, 32),
        Metric(
            "fid",
            "fid",
            True,
            True,
            1,
            of_sets=True,
            files=("pyiqa/pt_inception-2015-12-05-6726825d.pth",),
        ),
        Metric(
            "lpips", "lpips", True, True, 32, files=(_ALEXNET, "pyiqa/LPIPS_v0.1_alex-df73285e.pth")
        ),
        Metric("dists", "dists", True, True, 32, files=(_VGG16, "pyiqa/DISTS_weights-f5e65c96.pth")),
        Metric("niqe", "niqe", True, False, 96, files=("pyiqa/niqe_modelparameters.mat",)),
        Metric("musiq", "musiq", False, False, 32, files=("pyiqa/musiq_koniq_ckpt-e95806b9.pth",)),
        Metric("clipiqa", "clipiqa", False, False, 32, files=("clip/RN50.pt",)),
        Metric("consistency", "", True, False, 1, of_input=True, detail="RMSE of 255 levels"),
        Metric("efficientnet_lite0", "", True, True, 32),
        *EXTRA_METRICS,
    )
}
"""Name -> metric. `psnr` is over the three RGB channels in [0, 1] and ends at 80 dB. `psnr_y` is over luma as papers
print it (BT.601, 16 to 235; pyiqa's own default is Y of YIQ, 1.3 dB lower). `ssim` and `ms_ssim` are over luma (Y of
YIQ, 0-255; Gaussian window of 11, deviation 1.5; no downsampling), pyiqa's defaults; `ssim_rgb` is the mean over the
three channels. `mad` is left out (seconds per image, and 0 against a flat image), and so is `vif` (0 for two equal flat
images)."""

PAPER_METRICS: tuple[str, ...] = ("fid", "lpips", "dists", "niqe", "musiq", "clipiqa")
"""The paper's six, in the order of its Table I."""

DEFAULT_METRICS: tuple[str, ...] = ("psnr", "ssim", "vsi", "gmsd", "nlpd")
"""No download, together a tenth of a second per image of 256 x 256 on a CPU."""


def suite_metrics(suite: str) -> tuple[str, ...]:
    """Return the metrics of a suite: those of the demo need no download, others add the paper's six."""
    return (*DEFAULT_METRICS, "consistency") if suite == "demo" else (*DEFAULT_METRICS, *PAPER_METRICS)


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
