"""The refinement of mini's decoder at the image's full size."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffrestorer.models.blocks import DegradationModulationBlock


class PixelRefinement(nn.Module):
    """A small U-Net of DMBs that compares the decoded with the degraded image at full size and corrects the former.

    For each pixel it predicts a weight w, one number, and a correction c of three channels, and returns

        w (lq - images) + c

    so that pixels which nothing has degraded can be taken from the input as they are (w = 1), which no decoded latents
    reach. Its finest features have half the image's height and width. It returns zeros before it is trained.

    Args:
        channels: widths from fine to coarse; each level halves height and width.
        degradation_dim: width of P_D.
        norm_num_groups: of every GroupNorm; divides every width.
    """

    def __init__(self, channels: Sequence[int], degradation_dim: int, norm_num_groups: int) -> None:
        super().__init__()
        # Three channels of each of the two images, four pixels of each channel.
        self.unshuffle, self.shuffle = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
        self.conv_in = nn.Conv2d(2 * 3 * 4, channels[0], 3, padding=1)

        def block(in_channels: int, out_channels: int, stride: int = 1) -> DegradationModulationBlock:
            return DegradationModulationBlock(
                in_channels, out_channels, degradation_dim, stride, norm_num_groups
            )

        # A block per level on the way down and, but for the coarsest, on the way up.
        pairs = list(zip(channels[:-1], channels[1:], strict=True))
        self.down = nn.ModuleList(
            [block(channels[0], channels[0]), *(block(fine, wide, 2) for fine, wide in pairs)]
        )
        self.widen = nn.ModuleList(nn.Conv2d(wide, 4 * fine, 1) for fine, wide in pairs)
        self.up = nn.ModuleList(block(fine, fine) for fine, _ in pairs)
        # The correction's three channels and the weight, each of four pixels.
        self.conv_out = nn.Conv2d(channels[0], (3 + 1) * 4, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        lq: Float[Tensor, "b 3 h w"],
        degradation_embedding: Float[Tensor, "b d"],
    ) -> Float[Tensor, "b 3 h w"]:
        # Down, keeping what each level hands to its counterpart.
        features = self.conv_in(self.unshuffle(torch.cat([images, lq], dim=1)))
        skips = []
        for block in self.down:
            features = block(features, degradation_embedding)
            skips.append(features)

        # Up again, from the coarsest.
        features = skips.pop()
        for widen, block in zip(reversed(self.widen), reversed(self.up), strict=True):
            features = block(self.shuffle(widen(features)) + skips.pop(), degradation_embedding)
        correction, weight = self.shuffle(self.conv_out(features)).split([3, 1], dim=1)
        return weight * (lq - images) + correction
