"""Restormer: attention across channels, gated feed-forward, four scales. Zamir et al., CVPR 2022, arXiv 2111.09881."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffrestorer.baselines.protocol import RegressionBaseline

Images = Float[Tensor, "b 3 h w"]
Features = Float[Tensor, "b c h w"]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel."""

    def forward(self, input: Features) -> Features:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TransposedAttention(nn.Module):
    """MDTA: attention across channels, after a depthwise 3x3 convolution that brings in the neighbourhood.

    Source: Eq. 1 of Restormer.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.qkv_depthwise = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=False)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, features: Features) -> Features:
        # Queries, keys and values of each head: channels by pixels.
        qkv = self.qkv_depthwise(self.qkv(features)).flatten(2)
        q, k, v = qkv.unflatten(1, (3, self.num_heads, -1)).unbind(1)

        # Channels attend to channels.
        similarity = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        attended = (similarity * self.temperature).softmax(dim=-1) @ v
        return self.project_out(attended.reshape(features.shape))


class GatedFeedForward(nn.Module):
    """GDFN: two paths of pointwise and depthwise convolution, one of which gates the other through GELU.

    Source: Eq. 2 of Restormer.
    """

    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        hidden = int(dim * expansion)
        self.project_in = nn.Conv2d(dim, 2 * hidden, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, dim, 1, bias=False)

    def forward(self, features: Features) -> Features:
        gate, value = self.depthwise(self.project_in(features)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class TransformerBlock(nn.Module):
    """x + MDTA(LN(x)), then x + GDFN(LN(x))."""

    def __init__(self, dim: int, num_heads: int, expansion: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"a width of {dim} does not divide among {num_heads} heads")
        self.norm1 = ChannelNorm(dim)
        self.attention = TransposedAttention(dim, num_heads)
        self.norm2 = ChannelNorm(dim)
        self.feed_forward = GatedFeedForward(dim, expansion)

    def forward(self, features: Features) -> Features:
        features = features + self.attention(self.norm1(features))
        return features + self.feed_forward(self.norm2(features))


def _downsample(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, dim // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))


def _upsample(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, dim * 2, 3, padding=1, bias=False), nn.PixelShuffle(2))


class RestormerNetwork(nn.Module):
    """Restormer's layout, with room for PromptIR's prompts between the levels of the decoder.

    Args:
        dim: channels at full size; doubled at each lower size.
        num_blocks, num_heads: at each size, the highest first.
        num_refinement_blocks: at full size, after the decoder.
        expansion: of the feed-forward.
        interactions: a module before each upsampling, the lowest size first; none for plain Restormer.
        interaction_dims: output channels of each interaction.
    """

    def __init__(
        self,
        dim: int,
        num_blocks: Sequence[int],
        num_heads: Sequence[int],
        num_refinement_blocks: int,
        expansion: float,
        interactions: Sequence[nn.Module] = (),
        interaction_dims: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if len(num_blocks) != len(num_heads):
            raise ValueError(f"num_blocks names {len(num_blocks)} sizes, num_heads {len(num_heads)}")
        widths = [dim * 2**level for level in range(len(num_blocks))]

        def blocks(width: int, level: int, count: int) -> nn.Sequential:
            return nn.Sequential(
                *(TransformerBlock(width, num_heads[level], expansion) for _ in range(count))
            )

        # Down: each level has half the size and twice the channels.
        self.embed = nn.Conv2d(3, dim, 3, padding=1, bias=False)
        self.encoders = nn.ModuleList(blocks(width, i, num_blocks[i]) for i, width in enumerate(widths))
        self.downsamples = nn.ModuleList(_downsample(width) for width in widths[:-1])

        # Up: the skip joins after the upsampling; at full size the joined channels are kept.
        self.interactions = nn.ModuleList(interactions)
        self.upsamples, self.reductions, self.decoders = (
            nn.ModuleList(),
            nn.ModuleList(),
            nn.ModuleList(),
        )
        for i, level in enumerate(reversed(range(len(widths) - 1))):
            below = interaction_dims[i] if interactions else widths[level + 1]
            joined = below // 2 + widths[level]
            width = widths[level] if level else joined
            self.upsamples.append(_upsample(below))
            self.reductions.append(nn.Conv2d(joined, width, 1, bias=False) if level else nn.Identity())
            self.decoders.append(blocks(width, level, num_blocks[level]))
        self.refinement = blocks(width, 0, num_refinement_blocks)
        self.output = nn.Conv2d(width, 3, 3, padding=1, bias=False)

    def forward(self, lq: Images) -> Images:
        # Down, keeping the features of every level but the lowest.
        features, skips = self.encoders[0](self.embed(lq)), []
        for downsample, encoder in zip(self.downsamples, self.encoders[1:], strict=True):
            skips.append(features)
            features = encoder(downsample(features))

        # Up again.
        levels = zip(self.upsamples, self.reductions, self.decoders, strict=True)
        for i, (upsample, reduce, decoder) in enumerate(levels):
            if self.interactions:
                features = self.interactions[i](features)
            joined = torch.cat([upsample(features), skips.pop()], dim=1)
            features = decoder(reduce(joined))
        return self.output(self.refinement(features)) + lq


class RestormerLike(RegressionBaseline):
    """A method that consists of a `RestormerNetwork`. Its arguments include those of `Restormer`."""

    network: RestormerNetwork

    authors_names = (
        ("network.embed.", "patch_embed.proj."),
        *((f"network.encoders.{level}.", f"encoder_level{level + 1}.") for level in range(3)),
        ("network.encoders.3.", "latent."),
        *((f"network.downsamples.{i}.0.", f"down{i + 1}_{i + 2}.body.0.") for i in range(3)),
        *((f"network.upsamples.{i}.0.", f"up{4 - i}_{3 - i}.body.0.") for i in range(3)),
        *((f"network.reductions.{i}.", f"reduce_chan_level{3 - i}.") for i in range(2)),
        *((f"network.decoders.{i}.", f"decoder_level{3 - i}.") for i in range(3)),
        ("network.", ""),
        (".attention.qkv_depthwise.", ".attn.qkv_dwconv."),
        (".attention.", ".attn."),
        (".feed_forward.depthwise.", ".ffn.dwconv."),
        (".feed_forward.", ".ffn."),
        (".norm1.", ".norm1.body."),
        (".norm2.", ".norm2.body."),
    )

    @property
    def multiple(self) -> int:
        """Two to the number of levels less one: every level but the first halves the image."""
        return 2 ** (len(self.config.num_blocks) - 1)

    def forward(self, lq: Images) -> Images:
        return self.network(lq)


class Restormer(RestormerLike):
    """Restormer; the defaults are the paper's. Arguments: see `RestormerNetwork`."""

    @register_to_config
    def __init__(
        self,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        num_refinement_blocks: int = 4,
        expansion: float = 2.66,
    ) -> None:
        super().__init__()
        self.network = RestormerNetwork(dim, num_blocks, num_heads, num_refinement_blocks, expansion)
