"""NAFNet: a UNet of blocks without nonlinear activations. Chen et al., ECCV 2022, arXiv 2204.04676.

The network is spandrel's (MIT), with the authors' parameter names.
"""

from collections.abc import Mapping, Sequence

from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from spandrel.architectures.NAFNet import NAFNet as SpandrelNAFNet
from spandrel.util import get_seq_len
from torch import Tensor
from torch.nn import functional as F

from diffrestorer.baselines.protocol import RegressionBaseline


class NAFNet(RegressionBaseline):
    """NAFNet; the defaults are the paper's largest.

    Args:
        width: channels at full size; doubled at each lower size.
        encoder_blocks, decoder_blocks: number of blocks at each size, one entry per size in both.
        middle_blocks: number of blocks at the lowest size.
    """

    authors_names = (("network.", ""),)

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
            raise ValueError(
                f"encoder_blocks names {len(encoder_blocks)} sizes, decoder_blocks {len(decoder_blocks)}"
            )
        self.network = SpandrelNAFNet(
            width=width,
            enc_blk_nums=list(encoder_blocks),
            middle_blk_num=middle_blocks,
            dec_blk_nums=list(decoder_blocks),
        )

    @property
    def multiple(self) -> int:
        """Two to the number of encoder levels, each of which halves the image."""
        return 2 ** len(self.config.encoder_blocks)

    def pad(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 hp wp"]:
        """Pad right and bottom with zeros, as the authors do."""
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))

    def forward(self, lq: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return self.network(lq)

    @classmethod
    def of_authors_size(cls, state: Mapping[str, Tensor]) -> "NAFNet":
        """Return a network of the size that the authors' tensors have; they published several."""
        if "intro.weight" not in state:
            raise ValueError("intro.weight is missing")
        counts = {}
        for part in ("encoders", "decoders"):
            levels = range(get_seq_len(state, part))
            counts[part] = [get_seq_len(state, f"{part}.{level}") for level in levels]
        return cls(
            width=state["intro.weight"].shape[0],
            encoder_blocks=counts["encoders"],
            middle_blocks=get_seq_len(state, "middle_blks"),
            decoder_blocks=counts["decoders"],
        )
