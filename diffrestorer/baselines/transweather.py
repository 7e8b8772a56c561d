"""TransWeather: a transformer encoder with attention inside its patches, and a decoder with weather queries.

Valanarasu et al., "TransWeather: Transformer-based Restoration of Images Degraded by Adverse Weather Conditions",
CVPR 2022, arXiv 2111.14813. Two layers that the authors' forward pass never uses are left out, and so is stochastic
depth: our training draws by counter only.
"""

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffrestorer.baselines.protocol import RegressionBaseline
from diffrestorer.models.blocks import pad_to_multiple

Images = Float[Tensor, "b 3 h w"]
Features = Float[Tensor, "b c h w"]
Tokens = Float[Tensor, "b n c"]

BLOCK_EPS = 1e-6
"""Of the LayerNorms in and after blocks. Those of patch embeddings and reductions keep PyTorch's 1e-5."""


def _tokens(features: Features) -> Tokens:
    return features.flatten(2).transpose(1, 2)


def _features(tokens: Tokens, like: Float[Tensor, "b c0 h w"]) -> Features:
    return tokens.transpose(1, 2).unflatten(2, like.shape[-2:])


def _crop_to(features: Float[Tensor, "b c _ _"], like: Float[Tensor, "b c2 h w"]) -> Features:
    """Drop the last row and column where an odd size was halved and doubled again."""
    height, width = like.shape[-2:]
    return features[..., :height, :width]


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


def _double(in_dim: int, dim: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_dim, dim, 4, stride=2, padding=1)


class TransWeather(RegressionBaseline):
    """TransWeather; the defaults are the paper's.

    Args:
        dims, num_heads, reductions: of the four encoder stages, at 1/4, 1/8, 1/16 and 1/32.
        inner_heads: heads of the three intra-patch blocks.
        depths: blocks of each encoder stage.
        decoder_depth, decoder_heads, num_queries: of the transformer decoder at 1/64.
        expansion, decoder_expansion: of the feed-forwards of encoder and decoder.
        tail_dims: channels of the last two doublings, to 1/2 and to full size.
    """

    authors_names = (
        *((f"inner_embeddings.{i}.", f"Tenc.mini_patch_embed{i + 1}.") for i in range(3)),
        *((f"inner_stages.{i}.blocks.", f"Tenc.patch_block{i + 1}.") for i in range(3)),
        *((f"inner_stages.{i}.norm.", f"Tenc.pnorm{i + 1}.") for i in range(3)),
        *((f"embeddings.{i}.", f"Tenc.patch_embed{i + 1}.") for i in range(4)),
        *((f"stages.{i}.blocks.", f"Tenc.block{i + 1}.") for i in range(4)),
        *((f"stages.{i}.norm.", f"Tenc.norm{i + 1}.") for i in range(4)),
        ("query_embedding.", "Tdec.patch_embed1."),
        ("query_decoder.blocks.", "Tdec.block1."),
        ("query_decoder.norm.", "Tdec.norm1."),
        ("double_lowest.", "convtail.convd32x.conv2d."),
        *((f"doubles.{i}.", f"convtail.convd{16 >> i}x.conv2d.") for i in range(4)),
        ("double_last.", "convtail.convd1x.conv2d."),
        *((f"residuals.{i}.conv", f"convtail.dense_{4 - i}.0.conv") for i in range(4)),
        (".0.conv1.", ".0.conv1.conv2d."),
        (".0.conv2.", ".0.conv2.conv2d."),
        ("output.", "clean.conv2d."),
        (".projection.", ".proj."),
        (".attention.queries", ".attn.task_query"),
        (".attention.out.", ".attn.proj."),
        (".attention.reduce.convolution.", ".attn.sr."),
        (".attention.reduce.norm.", ".attn.norm."),
        (".attention.", ".attn."),
        (".feed_forward.linear", ".mlp.fc"),
        (".feed_forward.depthwise.", ".mlp.dwconv.dwconv."),
    )
    authors_unused = ("Tenc.mini_patch_embed4.", "convtail.conv_output.")

    @register_to_config
    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 4, 4),
        inner_heads: Sequence[int] = (1, 2, 2),
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
            raise ValueError(
                "dims, num_heads, reductions and depths need an entry for each of four stages"
            )
        if len(inner_heads) != 3:
            raise ValueError("inner_heads needs an entry for each of three intra-patch blocks")

        # The encoder: four stages, and between each two of them a block inside the patches.
        self.embeddings, self.stages = nn.ModuleList(), nn.ModuleList()
        self.inner_embeddings, self.inner_stages = nn.ModuleList(), nn.ModuleList()
        for i, dim in enumerate(dims):
            embedding = PatchEmbedding(dims[i - 1], dim, 3, 2) if i else PatchEmbedding(3, dim, 7, 4)
            self.embeddings.append(embedding)
            self.stages.append(Blocks(depths[i], dim, num_heads[i], expansion, reductions[i]))
        for i, dim in enumerate(dims[1:]):
            self.inner_embeddings.append(PatchEmbedding(dims[i], dim, 3, 2))
            self.inner_stages.append(Blocks(1, dim, inner_heads[i], expansion, reductions[i]))

        # The transformer decoder.
        self.query_embedding = PatchEmbedding(dims[3], dims[3], 3, 2)
        self.query_decoder = Blocks(
            decoder_depth, dims[3], decoder_heads, decoder_expansion, 1, num_queries
        )

        # Only what follows keeps PyTorch's initialisation.
        self.apply(initialise)

        # The convolutional tail: six doublings, from 1/64 to full size.
        widths = [dims[3], dims[2], dims[1], dims[0], tail_dims[0]]
        self.double_lowest = _double(dims[3], dims[3])
        self.doubles = nn.ModuleList(
            _double(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.residuals = nn.ModuleList(ResidualBlock(width) for width in widths[1:])
        self.double_last = _double(tail_dims[0], tail_dims[1])
        self.output = nn.Conv2d(tail_dims[1], 3, 3, padding=1)

    @property
    def multiple(self) -> int:
        """Pixels down to 1/16; below that, sizes are rounded up and cropped again."""
        return 16

    def pad(self, images: Images) -> Float[Tensor, "b 3 hp wp"]:
        """Pad by reflection to multiples of 16, and of 64 where a side has 32 pixels or fewer.

        The last reduction needs two tokens at 1/32: on such sides the authors' network fails.
        """
        small = min(images.shape[-2:]) <= 32
        return pad_to_multiple(images, 64 if small else self.multiple)

    def encode(self, images: Images) -> list[Float[Tensor, "b _ _ _"]]:
        """Return features at 1/4, 1/8, 1/16 and 1/32. The intra-patch features join the next stage.

        Args:
            images: in [-1, 1].
        """
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

    def forward(self, lq: Images) -> Images:
        encoded = self.encode(2 * lq - 1)
        queried = self.query_decoder(self.query_embedding(encoded[-1]))

        # Up again, with the encoder's features as skips.
        features = _crop_to(self.double_lowest(queried), encoded[3]) + encoded[3]
        for i, (double, residual) in enumerate(zip(self.doubles, self.residuals, strict=True)):
            features = double(features)
            if i < 3:
                skip = encoded[2 - i]
                features = residual(_crop_to(features, skip)) + skip
            else:
                features = residual(features)
        return self.output(self.double_last(features)).tanh()
