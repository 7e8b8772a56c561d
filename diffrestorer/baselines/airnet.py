"""AirNet: an encoder learns degradations by contrast, and its features guide the restoring network.

Li et al., "All-In-One Image Restoration for Unknown Corruption", CVPR 2022.
"""

import copy

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from diffrestorer.baselines.protocol import RegressionBaseline

Images = Float[Tensor, "b 3 h w"]
Features = Float[Tensor, "b c h w"]

SLOPE = 0.1
"""Negative slope of every LeakyReLU."""


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class NormalisedResBlock(nn.Module):
    """Two 3x3 convolutions and a 1x1 shortcut, each with BatchNorm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
    ) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, features: Features) -> Float[Tensor, "b c2 h2 w2"]:
        return F.leaky_relu(self.backbone(features) + self.shortcut(features), SLOPE)


class DegradationEncoder(nn.Module):
    """CBDE's encoder: full-size features that guide the restoration, and an embedding for the contrastive loss."""

    def __init__(
        self,
        num_features: int,
        embedding_dim: int,
    ) -> None:
        super().__init__()
        self.first = NormalisedResBlock(3, num_features, stride=1)
        self.body = nn.Sequential(
            NormalisedResBlock(num_features, 2 * num_features, stride=2),
            NormalisedResBlock(2 * num_features, embedding_dim, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim),
            nn.LeakyReLU(SLOPE),
            nn.Linear(embedding_dim, embedding_dim),
        )

    def guidance(self, lq: Images) -> Features:
        """Return the features of the first block, which guide DGRN."""
        return self.first(lq)

    def embed(self, guidance: Features) -> Float[Tensor, "b d"]:
        """Return the degradation embedding, of unit length."""
        return F.normalize(self.head(self.body(guidance)), dim=-1)


def deformable_convolution(
    features: Features,
    offset: Float[Tensor, "b 18 h w"],
    mask: Float[Tensor, "b 9 h w"],
    weight: Float[Tensor, "d c 3 3"],
) -> Float[Tensor, "b d h w"]:
    """Convolve 3x3 at displaced positions; pixels outside are 0. Source: Zhu et al., CVPR 2019, Eq. 1.

    Args:
        offset: (y, x) in pixels for each of the nine taps, row by row, in torchvision's order.
        mask: factor for each tap.
    """
    if features.is_cuda:
        return deform_conv2d(features, offset, weight, padding=1, mask=mask)

    # torchvision's kernel for CPUs is several times slower, above all backwards (benchmarks/baselines.py). Here each
    # tap's pixels are sampled first, at these positions.
    height, width = features.shape[-2:]
    device = features.device
    tap = torch.arange(9, device=device)
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    y = offset[:, 0::2] + (tap // 3 - 1)[:, None, None] + rows[:, None]
    x = offset[:, 1::2] + (tap % 3 - 1)[:, None, None] + columns

    # Then the nine taps are channels of a pointwise convolution.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = F.grid_sample(features, grid.flatten(1, 2), align_corners=False)
    sampled = sampled.unflatten(2, (9, height)) * mask[:, None]
    return F.conv2d(sampled.flatten(1, 2), weight.flatten(1)[:, :, None, None])


class DeformableConvolution(nn.Module):
    """Modulated deformable 3x3 convolution with offsets and masks from features and guidance."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_features, num_features, 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.offset_and_mask = _conv3x3(2 * num_features, 27)

        # No offset and a mask of sigmoid(0): the layer starts as half a plain convolution.
        for parameter in self.offset_and_mask.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        features: Features,
        guidance: Features,
    ) -> Features:
        both = torch.cat([features, guidance], dim=1)
        offset, mask = self.offset_and_mask(both).split((18, 9), dim=1)
        return deformable_convolution(features, offset, mask.sigmoid(), self.weight)


class FeatureTransform(nn.Module):
    """SFT: scale and shift of every pixel and channel, from the guidance."""

    def __init__(self, num_features: int) -> None:
        super().__init__()

        def pointwise() -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(num_features, num_features, 1, bias=False),
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(num_features, num_features, 1, bias=False),
            )

        self.scale = pointwise()
        self.shift = pointwise()

    def forward(
        self,
        features: Features,
        guidance: Features,
    ) -> Features:
        return features * self.scale(guidance) + self.shift(guidance)


class GuidedModule(nn.Module):
    """DGM: the sum of a skip, a guided deformable convolution and a guided SFT."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.convolution = DeformableConvolution(num_features)
        self.transform = FeatureTransform(num_features)

    def forward(
        self,
        features: Features,
        guidance: Features,
    ) -> Features:
        return features + self.convolution(features, guidance) + self.transform(features, guidance)


class GuidedBlock(nn.Module):
    """DGB: two guided modules and two convolutions around a skip."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.module1 = GuidedModule(num_features)
        self.module2 = GuidedModule(num_features)
        self.conv1 = _conv3x3(num_features, num_features)
        self.conv2 = _conv3x3(num_features, num_features)

    def forward(
        self,
        features: Features,
        guidance: Features,
    ) -> Features:
        hidden = F.leaky_relu(self.module1(features, guidance), SLOPE)
        hidden = F.leaky_relu(self.conv1(hidden), SLOPE)
        hidden = F.leaky_relu(self.module2(hidden, guidance), SLOPE)
        return features + self.conv2(hidden)


class GuidedGroup(nn.Module):
    """DGG: guided blocks and a convolution around a skip."""

    def __init__(
        self,
        num_features: int,
        num_blocks: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GuidedBlock(num_features) for _ in range(num_blocks))
        self.conv = _conv3x3(num_features, num_features)

    def forward(
        self,
        features: Features,
        guidance: Features,
    ) -> Features:
        hidden = features
        for block in self.blocks:
            hidden = block(hidden, guidance)
        return features + self.conv(hidden)


class AirNet(RegressionBaseline):
    """AirNet; the defaults are the paper's.

    `key_encoder` is MoCo's momentum copy of `encoder`. It counts towards the published size and is used in training
    only.

    Args:
        num_features: channels of DGRN and of the guidance.
        num_groups, num_blocks: number of DGGs, and of DGBs in each.
        embedding_dim: width of the degradation embedding.
    """

    authors_names = (
        ("key_encoder.", "E.E.encoder_k."),
        ("encoder.", "E.E.encoder_q."),
        ("_q.first.", "_q.E_pre."),
        ("_k.first.", "_k.E_pre."),
        ("_q.body.", "_q.E."),
        ("_k.body.", "_k.E."),
        ("_q.head.", "_q.mlp."),
        ("_k.head.", "_k.mlp."),
        ("groups.", "R.body."),
        *((f".blocks.{i}.", f".body.{i}.") for i in range(5)),
        (".module", ".dgm"),
        (".convolution.offset_and_mask.", ".dcn.conv_offset_mask."),
        (".convolution.", ".dcn."),
        (".transform.scale.", ".sft.conv_gamma."),
        (".transform.shift.", ".sft.conv_beta."),
        *((f"R.body.{i}.conv.", f"R.body.{i}.body.5.") for i in range(5)),
    )
    authors_unused = ("E.E.queue",)

    @register_to_config
    def __init__(
        self,
        num_features: int = 64,
        num_groups: int = 5,
        num_blocks: int = 5,
        embedding_dim: int = 256,
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
        """1: images of any size."""
        return 1

    @classmethod
    def authors_name(cls, name: str) -> str:
        """Return the name that one of our tensors has in the authors' checkpoint."""
        # Three layers are named like parts of others, so their names change as a whole.
        layer, _, kind = name.rpartition(".")
        whole = {"head": "R.head.0", "conv": "R.body.5", "tail": "R.tail.0"}
        return f"{whole[layer]}.{kind}" if layer in whole else super().authors_name(name)

    def restore_guided(
        self,
        lq: Images,
        guidance: Features,
    ) -> Images:
        """Restore with DGRN, guided by the encoder's features; the result is not clamped."""
        first = features = self.head(lq)
        for group in self.groups:
            features = group(features, guidance)
        return self.tail(first + self.conv(features))

    def forward(self, lq: Images) -> Images:
        return self.restore_guided(lq, self.encoder.guidance(lq))
