"""Layers of TransWeather: patches, attention with fewer keys or with weather queries, feed-forward, residual blocks.

Valanarasu et al., "TransWeather: Transformer-based Restoration of Images Degraded by Adverse Weather Conditions",
CVPR 2022, arXiv 2111.14813.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Features = Float[Tensor, "b c h w"]
Tokens = Float[Tensor, "b n c"]

BLOCK_EPS = 1e-6
"""Of the LayerNorms in and after blocks. Those of patch embeddings and reductions keep PyTorch's 1e-5."""


def _tokens(features: Features) -> Tokens:
    return features.flatten(2).transpose(1, 2)


def _features(tokens: Tokens, like: Float[Tensor, "b c0 h w"]) -> Features:
    return tokens.transpose(1, 2).unflatten(2, like.shape[-2:])


def initialise(module: nn.Module) -> None:
    """Draw a module's first weights as the authors do: truncated normal, fan-out convolutions, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


class PatchEmbedding(nn.Module):
    """A strided convolution over overlapping patches, and LayerNorm over channels."""

    def __init__(
        self,
        in_dim: int,
        dim: int,
        kernel_size: int,
        stride: int,
    ) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_dim, dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Features) -> Float[Tensor, "b c2 h2 w2"]:
        features = self.projection(features)
        return _features(self.norm(_tokens(features)), features)


class PatchReduction(nn.Module):
    """A convolution whose kernel is its stride, and LayerNorm: fewer tokens for keys and values."""

    def __init__(
        self,
        dim: int,
        reduction: int,
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(dim, dim, reduction, reduction)
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Features) -> Float[Tensor, "b m c"]:
        return self.norm(_tokens(self.convolution(features)))


class Attention(nn.Module):
    """Attention with keys and values from features of reduced size, and optionally with learned queries.

    Source: sections 3.2 (intra-patch blocks) and 3.3 (weather queries) of TransWeather.

    Args:
        dim, num_heads: of the attention.
        reduction: factor by which keys and values are smaller along each side.
        num_queries: learned weather queries, stretched over the tokens; 0: queries come from the tokens.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        reduction: int,
        num_queries: int,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"a width of {dim} does not divide among {num_heads} heads")
        self.num_heads = num_heads
        self.queries = nn.Parameter(torch.randn(1, num_queries, dim)) if num_queries else None
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.reduce: PatchReduction | None = PatchReduction(dim, reduction) if reduction > 1 else None

    def forward(self, features: Features) -> Tokens:
        tokens = _tokens(features)

        # Each of the 48 weather queries serves a run of neighbouring tokens.
        if self.queries is None:
            q = self.q(tokens)
        else:
            stretched = F.interpolate(self.q(self.queries).transpose(1, 2), tokens.shape[1])
            q = stretched.transpose(1, 2).expand(tokens.shape)

        # Keys and values come from fewer tokens.
        reduced = tokens if self.reduce is None else self.reduce(features)
        k, v = self.kv(reduced).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(self._heads(q), self._heads(k), self._heads(v))
        return self.out(attended.transpose(1, 2).flatten(2))

    def _heads(self, tokens: Tokens) -> Float[Tensor, "b heads n d"]:
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class MixedFeedForward(nn.Module):
    """Linear, depthwise 3x3 convolution, GELU, linear."""

    def __init__(
        self,
        dim: int,
        expansion: int,
    ) -> None:
        super().__init__()
        hidden = dim * expansion
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(
        self,
        tokens: Tokens,
        like: Features,
    ) -> Tokens:
        hidden = self.depthwise(_features(self.linear1(tokens), like))
        return self.linear2(F.gelu(_tokens(hidden)))


class Block(nn.Module):
    """Attention and feed-forward, each after LayerNorm and around a skip."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        expansion: int,
        reduction: int,
        num_queries: int = 0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.attention = Attention(dim, num_heads, reduction, num_queries)
        self.feed_forward = MixedFeedForward(dim, expansion)

    def forward(self, features: Features) -> Features:
        tokens = _tokens(features)
        tokens = tokens + self.attention(_features(self.norm1(tokens), features))
        tokens = tokens + self.feed_forward(self.norm2(tokens), features)
        return _features(tokens, features)


class Blocks(nn.Module):
    """Blocks of one width and the LayerNorm after them."""

    def __init__(
        self,
        count: int,
        dim: int,
        num_heads: int,
        expansion: int,
        reduction: int,
        num_queries: int = 0,
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(Block(dim, num_heads, expansion, reduction, num_queries) for _ in range(count))
        )
        self.norm = nn.LayerNorm(dim, eps=BLOCK_EPS)

    def forward(self, features: Features) -> Features:
        features = self.blocks(features)
        return _features(self.norm(_tokens(features)), features)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip, their output scaled by 0.1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, features: Features) -> Features:
        return features + 0.1 * self.conv2(F.relu(self.conv1(features)))
