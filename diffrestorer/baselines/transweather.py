"""TransWeather: a transformer encoder that also looks inside its patches, and a decoder asked by weather queries.

Valanarasu et al., "TransWeather: Transformer-based Restoration of Images Degraded by Adverse Weather Conditions",
CVPR 2022, arXiv 2111.14813. Stochastic depth is left out: nothing of our training is drawn but by counter.
"""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffrestorer.baselines.protocol import RegressionBaseline


def _tokens(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    return features.flatten(2).transpose(1, 2)


def _features(tokens: Float[Tensor, "b n c"], like: Float[Tensor, "b c0 h w"]) -> Float[Tensor, "b c h w"]:
    return tokens.transpose(1, 2).unflatten(2, like.shape[-2:])


class PatchEmbedding(nn.Module):
    """Overlapping patches to normalised features: a strided convolution and LayerNorm over channels."""

    def __init__(self, in_dim: int, dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_dim, dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        features = self.projection(features)
        return _features(self.norm(_tokens(features)), features)


class Attention(nn.Module):
    """Attention whose keys and values come from features reduced in size, and whose queries may be learned.

    Args:
        dim, num_heads: of the attention.
        reduction: factor by which keys and values are smaller.
        num_queries: learned weather queries, stretched over the tokens; 0: the tokens ask for themselves.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int, num_queries: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"a width of {dim} does not divide among {num_heads} heads")
        self.num_heads = num_heads
        self.queries = nn.Parameter(torch.randn(1, num_queries, dim)) if num_queries else None
        self.q, self.kv, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.reduce: PatchReduction | None = PatchReduction(dim, reduction) if reduction > 1 else None

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
        tokens = _tokens(features)
        q = self.q(tokens if self.queries is None else self.queries)
        if self.queries is not None:  # 48 queries for n tokens: each asks for a run of them
            q = F.interpolate(q.transpose(1, 2), tokens.shape[1]).transpose(1, 2).expand(tokens.shape)
        k, v = self.kv(tokens if self.reduce is None else self.reduce(features)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out(attended.transpose(1, 2).flatten(2))


class PatchReduction(nn.Module):
    """Features to fewer tokens: a convolution of the reduction's size, and LayerNorm."""

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(dim, dim, reduction, reduction)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b m c"]:
        return self.norm(_tokens(self.convolution(features)))


class MixedFeedForward(nn.Module):
    """Linear, depthwise 3x3 convolution, GELU, linear."""

    def __init__(self, dim: int, expansion: int) -> None:
        super().__init__()
        hidden = dim * expansion
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, tokens: Float[Tensor, "b n c"], like: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
        return self.linear2(F.gelu(_tokens(self.depthwise(_features(self.linear1(tokens), like)))))


class Block(nn.Module):
    """Attention and feed-forward, each after LayerNorm and around a skip."""

    def __init__(self, dim: int, num_heads: int, expansion: int, reduction: int, num_queries: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, num_heads, reduction, num_queries)
        self.feed_forward = MixedFeedForward(dim, expansion)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        tokens = _tokens(features)
        tokens = tokens + self.attention(_features(self.norm1(tokens), features))
        tokens = tokens + self.feed_forward(self.norm2(tokens), features)
        return _features(tokens, features)


class Blocks(nn.Module):
    """Blocks of one width and the LayerNorm after them."""

    def __init__(
        self, count: int, dim: int, num_heads: int, expansion: int, reduction: int, num_queries: int = 0
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(dim, num_heads, expansion, reduction, num_queries) for _ in range(count)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        features = self.blocks(features)
        return _features(self.norm(_tokens(features)), features)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, their sum scaled by a tenth, around a skip."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(dim, dim, 3, padding=1), nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return features + 0.1 * self.conv2(F.relu(self.conv1(features)))


def _double(in_dim: int, dim: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_dim, dim, 4, stride=2, padding=1)


class TransWeather(RegressionBaseline):
    """TransWeather; the defaults are the paper's.

    Args:
        dims, num_heads, reductions: of the four encoder stages, at 1/4, 1/8, 1/16 and 1/32.
        depths: blocks of each encoder stage.
        decoder_depth, decoder_heads, num_queries: of the transformer decoder at 1/64.
        expansion, decoder_expansion: of the feed-forwards of encoder and decoder.
        tail_dims: channels of the last two doublings, to 1/2 and to full size.
    """

    @register_to_config
    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 4, 4),
        reductions: Sequence[int] = (4, 2, 2, 1),
        depths: Sequence[int] = (2, 2, 2, 2),
        decoder_depth: int = 3,
        decoder_heads: int = 8,
        num_queries: int = 48,
        expansion: int = 2,
        decoder_expansion: int = 4,
        tail_dims: Sequence[int] = (16, 8),
    ) -> None:
        super().__init__()
        if not len(dims) == len(num_heads) == len(reductions) == len(depths) == 4:
            raise ValueError("dims, num_heads, reductions and depths need an entry for each of four stages")
        stages = list(zip(dims, num_heads, reductions, depths, strict=True))
        self.embeddings = nn.ModuleList(
            PatchEmbedding(dims[i - 1] if i else 3, dim, 3 if i else 7, 2 if i else 4) for i, dim in enumerate(dims)
        )
        self.stages = nn.ModuleList(
            Blocks(depth, dim, heads, expansion, reduction) for dim, heads, reduction, depth in stages
        )
        self.inner_embeddings = nn.ModuleList(PatchEmbedding(dims[i], dims[i + 1], 3, 2) for i in range(3))
        self.inner_stages = nn.ModuleList(
            Blocks(1, dims[i + 1], num_heads[i], expansion, reductions[i]) for i in range(3)
        )
        self.query_embedding = PatchEmbedding(dims[3], dims[3], 3, 2)
        self.query_decoder = Blocks(decoder_depth, dims[3], decoder_heads, decoder_expansion, 1, num_queries)
        self.double_lowest = _double(dims[3], dims[3])
        widths = [dims[3], dims[2], dims[1], dims[0], tail_dims[0]]
        self.doubles = nn.ModuleList(_double(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.residuals = nn.ModuleList(ResidualBlock(width) for width in widths[1:])
        self.double_last = _double(tail_dims[0], tail_dims[1])
        self.output = nn.Conv2d(tail_dims[1], 3, 3, padding=1)

    @property
    def multiple(self) -> int:
        """The decoder works at 1/64."""
        return 64

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Features at 1/4, 1/8, 1/16 and 1/32; what is seen inside the patches joins the next stage."""
        features, inner, found = images, None, []
        for i, (embed, stage) in enumerate(zip(self.embeddings, self.stages, strict=True)):
            features = embed(features)
            if inner is not None:
                features = features + inner
            if i < 3:
                inner = self.inner_stages[i](self.inner_embeddings[i](features))
            features = stage(features)
            found.append(features)
        return found

    def forward(self, lq: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        encoded = self.encode(2 * lq - 1)
        asked = self.query_decoder(self.query_embedding(encoded[-1]))
        features = self.double_lowest(asked) + encoded[3]
        for i, (double, residual) in enumerate(zip(self.doubles, self.residuals, strict=True)):
            features = residual(double(features))
            if i < 3:
                features = features + encoded[2 - i]
        return self.output(self.double_last(features)).tanh()
