"""FID between two sets of images, with pyiqa's networks and resizing (its "clean" mode); each set is read once."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffrestorer.data.counter import counter_rng
from diffrestorer.evaluation.scoring.metrics import METRICS, Metric
from diffrestorer.evaluation.scoring.pyiqa_networks import create

BATCH_SIZE = 8
"""As in pyiqa: the batch moves the last digits of a feature."""

FID_DRAWS = 100
"""Bootstrap draws behind the interval of a FID: each costs a singular value decomposition of at most side n images."""

ADVISED_IMAGES = 2048
"""The covariance of 2,048 features is singular with fewer images."""


class FidScorer:
    """FID on the features of pyiqa's mode `clean`: of InceptionV3 (`fid`) or DINOv2 (`fid_dinov2`).

    Raises:
        WeightsError: the network's weights can't be had.
    """

    def __init__(
        self,
        device: torch.device,
        weights: Path | None = None,
        metric: Metric | None = None,
    ) -> None:
        self.device = device
        self.metric = METRICS["fid"] if metric is None else metric
        network = create(self.metric, device, weights).net
        self._network = network.model
        self._size: tuple[int, int] = network.test_img_size

    @torch.no_grad()
    def features(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Return the features (n, d) of images, uint8 (h, w, 3) of any size; d is 2048, DINOv2's 1024."""
        found: list[np.ndarray] = []
        waiting = iter(images)
        while batch := list(islice(waiting, BATCH_SIZE)):
            resized = [_resize(image, self._size) for image in batch]
            found.append(self._forward(resized))
        return np.concatenate(found)

    def distance(self, features: np.ndarray, reference: np.ndarray) -> float:
        """Return the Fréchet distance between two sets of features (n, d) and (n2, d)."""
        return frechet(*self._on_device(features, reference))

    def draws(
        self,
        features: np.ndarray,
        reference: np.ndarray,
    ) -> np.ndarray:
        """Return the distances (FID_DRAWS,) of sets drawn with replacement, the same images from both.

        The draws of a task are the same for every method.
        """
        size = len(features)
        one, two = self._on_device(features, reference)
        distances = []
        for draw in range(FID_DRAWS):
            rng = counter_rng(0, f"fid/{size}", draw)
            chosen = torch.from_numpy(rng.integers(size, size=size))
            chosen = chosen.to(self.device)
            distances.append(frechet(one[chosen], two[chosen]))
        return np.array(distances)

    def _on_device(self, *features: np.ndarray) -> list[Float[Tensor, "_ d"]]:
        return [torch.from_numpy(each).to(self.device, torch.float64) for each in features]

    def _forward(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        images = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
        images = images.to(self.device)
        if self.metric.name == "fid":
            features = self._network((images - 128) / 128, False, False)[0]
        else:
            features = self._network(images)
        return features.flatten(1).cpu().numpy()


def frechet(
    one: Float[Tensor, "n d"],
    two: Float[Tensor, "n2 d"],
) -> float:
    """Return the Fréchet distance between normal distributions fitted to two sets of features (Heusel et al., 2017).

    With centred features A and B over sqrt(n - 1), tr (A'A B'B)^(1/2) is the sum of the singular values of A B'. This
    stays exact for fewer images than features, whose covariances are singular: a matrix root there turns the last
    digits of the features, which depend on threads and batches, into the sixth digit of the distance.
    """
    means = one.mean(dim=0), two.mean(dim=0)
    a = (one - means[0]) / (len(one) - 1) ** 0.5
    b = (two - means[1]) / (len(two) - 1) ** 0.5

    # Of many images the triangles of A and B have the same singular values, and no more rows than features.
    triangles = [x if len(x) <= x.shape[1] else torch.linalg.qr(x, mode="r").R for x in (a, b)]
    shared = torch.linalg.svdvals(triangles[0] @ triangles[1].T).sum()
    spread = a.square().sum() + b.square().sum() - 2 * shared
    apart = (means[0] - means[1]).square().sum()
    return float(apart + spread)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image to float32 (h, w, 3), bicubic with antialiasing and without rounding."""
    channels = []
    for channel in image.transpose(2, 0, 1).astype(np.float32):
        resized = Image.fromarray(channel).resize(size, Image.Resampling.BICUBIC)
        channels.append(np.asarray(resized).clip(0, 255))
    return np.stack(channels, axis=-1)


def fid_warning(n: int, floor: int) -> str:
    """Return the caution about a FID on n images; it begins with `refused` where n is below the floor."""
    if n < floor:
        return f"refused: FID on N = {n} images says nothing (fid_floor={floor}; set it to at most {n} to insist)"
    if n < ADVISED_IMAGES:
        return f"FID on N = {n} images, fewer than {ADVISED_IMAGES}: biased upwards"
    return ""
