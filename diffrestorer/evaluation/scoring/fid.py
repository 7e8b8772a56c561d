"""FID between two sets of images, with pyiqa's network and formula (its "clean" mode); each set is read once."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffrestorer.data.counter import counter_rng
from diffrestorer.evaluation.scoring.metrics import METRICS
from diffrestorer.evaluation.scoring.pyiqa_networks import create

BATCH_SIZE = 8
"""As in pyiqa: the batch moves the last digits of a feature."""

FID_DRAWS = 100
"""Bootstrap draws behind the interval of a FID: each costs a singular value decomposition of side n images."""

ADVISED_IMAGES = 2048
"""The covariance of 2,048 features is singular with fewer images."""


class FidScorer:
    """FID as pyiqa computes it in mode `clean`.

    Raises:
        WeightsError: InceptionV3's weights can't be had.
    """

    def __init__(self, device: torch.device, weights: Path | None = None) -> None:
        self.device = device
        self._network = create(METRICS["fid"], device, weights).net.model

    @torch.no_grad()
    def features(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Return the features (n, 2048) of images, uint8 (h, w, 3) of any size."""
        batch: list[np.ndarray] = []
        found: list[np.ndarray] = []
        for image in images:
            batch.append(_resize(image))
            if len(batch) == BATCH_SIZE:
                found.append(self._forward(batch))
                batch = []
        return np.concatenate([*found, self._forward(batch)] if batch else found)

    def distance(self, features: np.ndarray, reference: np.ndarray) -> float:
        """Return the Fréchet distance between two sets of features, NaN without a real root of the covariances."""
        from pyiqa.archs.fid_arch import frechet_distance

        statistics = [(np.mean(f, axis=0), np.cov(f, rowvar=False)) for f in (features, reference)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scipy's, of singular matrices: `fid_warning` says it in plain words
                return float(frechet_distance(*statistics[0], *statistics[1]))
        except ValueError:
            return float("nan")

    def draws(self, features: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return the distances (FID_DRAWS,) of sets drawn with replacement, the same images from both.

        The draws of a task are the same for every method. The root of the covariances' product is taken through the
        singular values of the centred features' product, of side n images, which is exact and fast for few images.
        """
        size = len(features)
        pair = [torch.from_numpy(x.astype(np.float64)).to(self.device) for x in (features, reference)]
        distances = []
        for draw in range(FID_DRAWS):
            chosen = counter_rng(0, f"fid/{size}", draw).integers(size, size=size)
            distances.append(frechet(*(x[torch.from_numpy(chosen).to(self.device)] for x in pair)))
        return np.array(distances)

    def _forward(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        images = (torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2) - 128) / 128
        features = self._network(images.to(self.device), False, False)[0]
        return features.flatten(1).cpu().numpy()


def frechet(one: Float[Tensor, "n d"], two: Float[Tensor, "n2 d"]) -> float:
    """Return the Fréchet distance between normal distributions fitted to two sets of features (Heusel et al., 2017).

    With centred features A and B over sqrt(n - 1), tr (A'A B'B)^(1/2) is the sum of the singular values of A B'.
    """
    means = [x.mean(dim=0) for x in (one, two)]
    centred = [(x - mean) / (len(x) - 1) ** 0.5 for x, mean in zip((one, two), means, strict=True)]
    shared = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    spread = centred[0].square().sum() + centred[1].square().sum() - 2 * shared
    return float((means[0] - means[1]).square().sum() + spread)


def _resize(image: np.ndarray) -> np.ndarray:
    """Resize an image to float32 (299, 299, 3), bicubic with antialiasing and without rounding."""
    size = (299, 299)
    channels = [
        Image.fromarray(image[..., c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC) for c in range(3)
    ]
    return np.stack([np.asarray(channel).clip(0, 255) for channel in channels], axis=-1)


def fid_warning(n: int, floor: int) -> str:
    """Return the caution about a FID on n images; it begins with `refused` where n is below the floor."""
    if n < floor:
        return f"refused: FID on N = {n} images says nothing (fid_floor={floor}; set it to at most {n} to insist)"
    return f"FID on N = {n} images, fewer than {ADVISED_IMAGES}: biased upwards" if n < ADVISED_IMAGES else ""
