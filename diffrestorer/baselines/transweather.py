"""TransWeather: a transformer encoder with attention inside its patches, and a decoder with weather queries.

Valanarasu et al., "TransWeather: Transformer-based Restoration of Images Degraded by Adverse Weather Conditions",
CVPR 2022, arXiv 2111.14813. Two layers that the authors' forward pass never uses are left out, and so is stochastic
depth: our training draws by counter only.
"""

from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from diffrestorer.baselines.protocol import RegressionBaseline
from diffrestorer.baselines.transweather_layers import Blocks, PatchEmbedding, ResidualBlock, initialise
from diffrestorer.models.blocks import pad_to_multiple

Images = Float[Tensor, "b 3 h w"]


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


def _double(in_dim: int, dim: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_dim, dim, 4, stride=2, padding=1)


def _crop_to(
    features: Float[Tensor, "b c _ _"], like: Float[Tensor, "b c2 h w"]
) -> Float[Tensor, "b c h w"]:
    """Drop the last row and column where an odd size was halved and doubled again."""
    height, width = like.shape[-2:]
    return features[..., :height, :width]
