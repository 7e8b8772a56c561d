"""The blocks the method is built from: residual, degradation modulation (DMB), degradation-aware refinement (DRB)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ResBlock(nn.Module):
    """Pre-activation residual block: GroupNorm, SiLU, 3x3 convolution, twice, around a skip.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; the skip becomes a 1x1 convolution when they differ or `stride` > 1.
        stride: of the first convolution and the skip.
        num_groups: of both GroupNorms; divides both channel counts.
        zero_init: start the last convolution at zero, so that the block is its own skip at step 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        num_groups: int = 32,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
        self.norm2 = nn.GroupNorm(num_groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride)
        if zero_init:
            for parameter in self.conv2.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        hidden = self.conv1(F.silu(self.norm1(features)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.skip(features) + hidden


class DegradationGate(nn.Module):
    """f = sigmoid(Linear(P_D)): one factor in (0, 1) per channel, multiplied onto the features."""

    def __init__(self, degradation_dim: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(degradation_dim, channels)

    def forward(
        self, features: Float[Tensor, "b c h w"], degradation_embedding: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b c h w"]:
        return features * self.linear(degradation_embedding).sigmoid()[:, :, None, None]


class DegradationModulationBlock(nn.Module):
    """F' = ResBlock(F); f = sigmoid(Linear(P_D)); out = ResBlock(F' * f).

    Paper: Eq. 3, DMB (Fig. 5).

    Args:
        modulate: False leaves the gate out (ablation `no_dmb`: plain residual blocks).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        degradation_dim: int,
        stride: int = 1,
        num_groups: int = 32,
        modulate: bool = True,
    ) -> None:
        super().__init__()
        self.block1 = ResBlock(in_channels, out_channels, stride, num_groups)
        self.gate = DegradationGate(degradation_dim, out_channels) if modulate else None
        self.block2 = ResBlock(out_channels, out_channels, num_groups=num_groups)

    def forward(
        self, features: Float[Tensor, "b c h w"], degradation_embedding: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b c2 h2 w2"]:
        features = self.block1(features)
        if self.gate is not None:
            features = self.gate(features, degradation_embedding)
        return self.block2(features)


class DegradationAwareRefinementBlock(nn.Module):
    """z' = Conv(Concat(z, z_lq)); f = sigmoid(Linear(P_D)); out = ResBlock(z' * f) + z.

    The merging convolution and the residual block's last convolution start at zero, so that the block returns `z` at
    step 0 and the decoder it sits in equals the plain one.

    Paper: Eq. 5, DRB (Fig. 6).

    Args:
        channels: of the decoder's features z.
        lq_channels: of the encoder's features z_lq, at the same height and width.
    """

    def __init__(
        self, channels: int, lq_channels: int, degradation_dim: int, num_groups: int = 32
    ) -> None:
        super().__init__()
        self.merge = nn.Conv2d(channels + lq_channels, channels, 3, padding=1)
        for parameter in self.merge.parameters():
            nn.init.zeros_(parameter)
        self.gate = DegradationGate(degradation_dim, channels)
        self.block = ResBlock(channels, channels, num_groups=num_groups, zero_init=True)

    def forward(
        self,
        features: Float[Tensor, "b c h w"],
        lq_features: Float[Tensor, "b c2 h w"],
        degradation_embedding: Float[Tensor, "b d"],
        fidelity: float | Float[Tensor, ""] = 1.0,
    ) -> Float[Tensor, "b c h w"]:
        """`fidelity` in [0, 1] weighs the refinement: 1 is the paper's block, 0 leaves the features as they are."""
        refined = self.merge(torch.cat([features, lq_features], dim=1))
        refined = self.block(self.gate(refined, degradation_embedding))
        return features + fidelity * refined


def pad_to_multiple(images: Float[Tensor, "b 3 h w"], multiple: int) -> Float[Tensor, "b 3 hp wp"]:
    """Pad right and bottom by reflection until both sides are multiples of `multiple`.

    Returns the images themselves where nothing is missing.
    """
    height, width = images.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not (bottom or right):
        return images

    # A reflection needs more pixels than it adds; the rest of a tiny image repeats its edge.
    first = (min(right, width - 1), min(bottom, height - 1))
    images = F.pad(images, (0, first[0], 0, first[1]), mode="reflect")
    rest = (0, right - first[0], 0, bottom - first[1])
    return F.pad(images, rest, mode="replicate") if any(rest) else images
