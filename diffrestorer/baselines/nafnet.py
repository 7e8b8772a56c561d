"""NAFNet: a UNet of blocks without nonlinear activations. Chen et al., ECCV 2022, arXiv 2204.04676.

The network is spandrel's (MIT), whose parameter names are the authors'.
"""

from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from spandrel.architectures.NAFNet import NAFNet as SpandrelNAFNet
from torch import Tensor

from diffrestorer.baselines.protocol import RegressionBaseline


class NAFNet(RegressionBaseline):
    """NAFNet; the defaults are the paper's largest.

    Args:
        width: channels at full size; doubled at each of the lower ones.
        encoder_blocks, decoder_blocks: blocks at each size, one entry a size; as many of the one as of the other.
        middle_blocks: blocks at the lowest size.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 64,
        encoder_blocks: Sequence[int] = (1, 1, 1, 28),
        middle_blocks: int = 1,
        decoder_blocks: Sequence[int] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        if len(encoder_blocks) != len(decoder_blocks):
            raise ValueError(f"encoder_blocks names {len(encoder_blocks)} sizes, decoder_blocks {len(decoder_blocks)}")
        self.network = SpandrelNAFNet(
            width=width,
            enc_blk_nums=list(encoder_blocks),
            middle_blk_num=middle_blocks,
            dec_blk_nums=list(decoder_blocks),
        )

    @property
    def multiple(self) -> int:
        """Every encoder level halves the image."""
        return 2 ** len(self.config.encoder_blocks)

    def forward(self, lq: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return self.network(lq)
