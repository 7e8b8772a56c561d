"""`efficientnet_lite0`: the distance between two images in the stages of EfficientNet-Lite0.

Its ImageNet weights ship in a package (extra `train`), so that nothing is downloaded. It is built like LPIPS, without
weights learned from people's judgements: its values are not LPIPS's.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffrestorer.evaluation.scoring.pyiqa_networks import WeightsError
from diffrestorer.models.normalisation import normalise
from diffrestorer.training.perceptual import IMAGENET_MEAN, IMAGENET_STD, EfficientNetLite0Features


class FeatureDistance(nn.Module):
    """Mean over four stages of the squared distance between features, normalised over the channels: 0 to 4."""

    def __init__(self) -> None:
        super().__init__()
        self.features = EfficientNetLite0Features().requires_grad_(False).eval()

    @torch.no_grad()
    def forward(
        self,
        restored: Float[Tensor, "b 3 h w"],
        gt: Float[Tensor, "b 3 h w"],
    ) -> Float[Tensor, "b"]:
        """Return the distance per image, for images in [0, 1]."""
        distances = []
        for found, wanted in zip(self._stages(restored), self._stages(gt), strict=True):
            squared = (found - wanted).square().sum(dim=1)
            distances.append(squared.mean(dim=(1, 2)))
        return torch.stack(distances).mean(dim=0)

    def _stages(
        self,
        images: Float[Tensor, "b 3 h w"],
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Return the features at 1/2, 1/4, 1/8 and 1/16, each position's of length 1."""
        features = self.features(normalise(images, IMAGENET_MEAN, IMAGENET_STD))
        return [F.normalize(stage, dim=1) for stage in features]


def open_feature_distance(device: torch.device) -> FeatureDistance:
    """Open the metric on a device.

    Raises:
        WeightsError: the packages with network and weights are not installed.
    """
    try:
        return FeatureDistance().to(device)
    except ImportError as error:
        raise WeightsError(f"it needs {error.name}: pip install 'diffrestorer[train]'") from None
