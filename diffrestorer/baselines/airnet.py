"""AirNet: an encoder learns by contrast what is wrong with an image, its features guide the restoring network.

Li et al., "All-In-One Image Restoration for Unknown Corruption", CVPR 2022.
"""

import copy

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from diffrestorer.baselines.protocol import RegressionBaseline

SLOPE = 0.1
"""Of every LeakyReLU."""


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class NormalisedResBlock(nn.Module):
    """Two 3x3 convolutions and a 1x1 shortcut, each with BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return F.leaky_relu(self.backbone(features) + self.shortcut(features), SLOPE)


class DegradationEncoder(nn.Module):
    """CBDE's encoder: a degradation embedding to contrast, and the full-size features that guide the restoration."""

    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.first = NormalisedResBlock(3, num_features, stride=1)
        self.body = nn.Sequential(
            NormalisedResBlock(num_features, 2 * num_features, stride=2),
            NormalisedResBlock(2 * num_features, embedding_dim, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim), nn.LeakyReLU(SLOPE), nn.Linear(embedding_dim, embedding_dim)
        )

    def guidance(self, lq: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """What DGRN takes: the features of the first block."""
        return self.first(lq)

    def embed(self, guidance: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """What the contrastive loss takes, of unit length."""
        return F.normalize(self.head(self.body(guidance)), dim=-1)


def deformable_convolution(
    features: Float[Tensor, "b c h w"],
    offset: Float[Tensor, "b 18 h w"],
    mask: Float[Tensor, "b 9 h w"],
    weight: Float[Tensor, "d c 3 3"],
) -> Float[Tensor, "b d h w"]:
    """Modulated deformable 3x3 convolution; pixels outside are 0. Zhu et al., CVPR 2019, Eq. 1.

    Args:
        offset: (y, x) in pixels for each of the nine taps, row by row, as torchvision has it.
        mask: factor for each tap.
    """
    if features.is_cuda:
        return deform_conv2d(features, offset, weight, padding=1, mask=mask)
    # torchvision's kernel for CPUs takes several times as long, above all backwards (benchmarks/baselines.py).
    height, width = features.shape[-2:]
    tap = torch.arange(9, device=features.device)
    y = offset[:, 0::2] + (tap // 3 - 1)[:, None, None] + torch.arange(height, device=features.device)[:, None]
    x = offset[:, 1::2] + (tap % 3 - 1)[:, None, None] + torch.arange(width, device=features.device)
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = F.grid_sample(features, grid.flatten(1, 2), align_corners=False).unflatten(2, (9, height))
    return F.conv2d((sampled * mask[:, None]).flatten(1, 2), weight.flatten(1)[:, :, None, None])


class DeformableConvolution(nn.Module):
    """Modulated deformable 3x3 convolution whose offsets and masks come from features and guidance together."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_features, num_features, 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.offset_and_mask = _conv3x3(2 * num_features, 27)
        for parameter in self.offset_and_mask.parameters():
            nn.init.zeros_(parameter)  # starts as half a plain convolution

    def forward(
        self, features: Float[Tensor, "b c h w"], guidance: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        offset, mask = self.offset_and_mask(torch.cat([features, guidance], dim=1)).split((18, 9), dim=1)
        return deformable_convolution(features, offset, mask.sigmoid(), self.weight)


class FeatureTransform(nn.Module):
    """SFT: scale and shift for every pixel and channel, from the guidance."""

    def __init__(self, num_features: int) -> None:
        super().__init__()

        def pointwise() -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(num_features, num_features, 1, bias=False),
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(num_features, num_features, 1, bias=False),
            )

        self.scale, self.shift = pointwise(), pointwise()

    def forward(
        self, features: Float[Tensor, "b c h w"], guidance: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        return features * self.scale(guidance) + self.shift(guidance)


class GuidedModule(nn.Module):
    """DGM: x + deformable convolution + SFT, both guided."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.convolution = DeformableConvolution(num_features)
        self.transform = FeatureTransform(num_features)

    def forward(
        self, features: Float[Tensor, "b c h w"], guidance: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        return features + self.convolution(features, guidance) + self.transform(features, guidance)


class GuidedBlock(nn.Module):
    """DGB: two guided modules and two convolutions around a skip."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.module1, self.module2 = GuidedModule(num_features), GuidedModule(num_features)
        self.conv1, self.conv2 = _conv3x3(num_features, num_features), _conv3x3(num_features, num_features)

    def forward(
        self, features: Float[Tensor, "b c h w"], guidance: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        hidden = F.leaky_relu(self.conv1(F.leaky_relu(self.module1(features, guidance), SLOPE)), SLOPE)
        return features + self.conv2(F.leaky_relu(self.module2(hidden, guidance), SLOPE))


class GuidedGroup(nn.Module):
    """DGG: guided blocks and a convolution around a skip."""

    def __init__(self, num_features: int, num_blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GuidedBlock(num_features) for _ in range(num_blocks))
        self.conv = _conv3x3(num_features, num_features)

    def forward(
        self, features: Float[Tensor, "b c h w"], guidance: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        hidden = features
        for block in self.blocks:
            hidden = block(hidden, guidance)
        return features + self.conv(hidden)


class AirNet(RegressionBaseline):
    """AirNet; the defaults are the paper's.

    `key_encoder` is MoCo's momentum copy of `encoder`: part of the published size, used in training only.

    Args:
        num_features: channels of DGRN and of the guidance.
        num_groups, num_blocks: DGGs, and DGBs in each.
        embedding_dim: of the degradation embedding.
    """

    @register_to_config
    def __init__(
        self, num_features: int = 64, num_groups: int = 5, num_blocks: int = 5, embedding_dim: int = 256
    ) -> None:
        super().__init__()
        self.encoder = DegradationEncoder(num_features, embedding_dim)
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.head = _conv3x3(3, num_features)
        self.groups = nn.ModuleList(GuidedGroup(num_features, num_blocks) for _ in range(num_groups))
        self.conv = _conv3x3(num_features, num_features)
        self.tail = _conv3x3(num_features, 3)

    @property
    def multiple(self) -> int:
        """Any size will do."""
        return 1

    def restore_guided(
        self, lq: Float[Tensor, "b 3 h w"], guidance: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b 3 h w"]:
        """DGRN: the restored image, guided by the encoder's features."""
        first = features = self.head(lq)
        for group in self.groups:
            features = group(features, guidance)
        return self.tail(first + self.conv(features))

    def forward(self, lq: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return self.restore_guided(lq, self.encoder.guidance(lq))


class KeyQueue(nn.Module):
    """MoCo's dictionary of negatives: first in, first out.

    He et al., CVPR 2020, arXiv 1911.05722, algorithm 1.

    Args:
        length: how many keys it holds; a multiple of the keys of one step.
        dim: of a key.
    """

    keys: Float[Tensor, "k d"]
    position: Int[Tensor, ""]

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(length, dim), dim=-1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def logits(
        self, query: Float[Tensor, "b d"], key: Float[Tensor, "b d"], temperature: float
    ) -> Float[Tensor, "b k1"]:
        """Similarities of each query with its key (column 0) and with the queue, over the temperature."""
        positive = (query * key).sum(dim=1, keepdim=True)
        negatives = query @ self.keys.clone().T  # a copy: the queue moves on before the backward pass
        return torch.cat([positive, negatives], dim=1) / temperature

    @torch.no_grad()
    def push(self, keys: Float[Tensor, "n d"]) -> None:
        """Replaces the oldest keys."""
        length, count = len(self.keys), len(keys)
        if length % count:
            raise ValueError(f"a queue of {length} keys can't take {count} at a time: make it a multiple")
        # On the device throughout: to read the position, the host would wait for it at every step.
        oldest = self.position + torch.arange(count, device=self.position.device)
        self.keys.index_copy_(0, oldest, keys.to(self.keys.dtype))
        self.position.add_(count).remainder_(length)


@torch.no_grad()
def update_momentum(key_encoder: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """theta_k <- m theta_k + (1 - m) theta_q. Source: Eq. 2 of MoCo."""
    for key, query in zip(key_encoder.parameters(), encoder.parameters(), strict=True):
        key.lerp_(query, 1 - momentum)
