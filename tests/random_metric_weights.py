"""Random weights for the metrics' networks, laid out like torch's hub folder.

For tests and benchmarks where the real ones can't be had: pyiqa loads them on its own path, and only the values mean
nothing.
"""

import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import scipy.io
import torch
from jaxtyping import Num
from torch import Tensor
from torchvision import models

from diffrestorer.evaluation.scoring.metrics import METRICS

RANDOM_METRICS: tuple[str, ...] = ("fid", "lpips", "dists", "niqe")
"""Metrics that `write_random_weights` serves."""

_DISTS_CHANNELS = 3 + 64 + 128 + 256 + 512 + 512


def write_random_weights(folder: Path, seed: int = 0) -> None:
    """Writes the files of `RANDOM_METRICS` below `folder`, 160 MB; LPIPS' linear layers are the real ones."""
    generator = torch.Generator().manual_seed(seed)
    alexnet, lpips_layers = (folder / name for name in METRICS["lpips"].files)
    vgg16, dists = (folder / name for name in METRICS["dists"].files)
    (inception,) = (folder / name for name in METRICS["fid"].files)
    (niqe,) = (folder / name for name in METRICS["niqe"].files)
    for file in (alexnet, inception):
        file.parent.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        networks = {
            alexnet: models.alexnet(),
            vgg16: models.vgg16(),
            inception: models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False),
        }
    for file, network in networks.items():
        torch.save(
            {key: _random(key, value, generator) for key, value in network.state_dict().items()}, file
        )
    lpips_layers.write_bytes((files("lpips") / "weights" / "v0.1" / "alex.pth").read_bytes())
    torch.save(
        {key: torch.rand(1, _DISTS_CHANNELS, 1, 1, generator=generator) for key in ("alpha", "beta")},
        dists,
    )
    rng = np.random.default_rng(seed)
    spread = rng.standard_normal((36, 36))
    scipy.io.savemat(
        niqe,
        {
            "mu_prisparam": rng.standard_normal((1, 36)),
            "cov_prisparam": spread @ spread.T / 36 + np.eye(36),
        },
    )


def _random(key: str, like: Num[Tensor, "..."], generator: torch.Generator) -> Num[Tensor, "..."]:
    """He's initialisation for convolutions; the classifiers, which no metric uses, are one repeated zero."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    if key.startswith(("classifier", "fc")):
        return torch.zeros(1).expand(like.shape)
    if like.ndim == 4:
        return torch.randn(like.shape, generator=generator) * math.sqrt(2 / like[0].numel())
    return (
        torch.ones(like.shape)
        if key.endswith(("running_var", "bn.weight"))
        else torch.zeros(like.shape)
    )
