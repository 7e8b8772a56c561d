"""MoCo, which AirNet's encoder learns by: a queue of negatives and a momentum copy of the encoder.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, arXiv 1911.05722.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class KeyQueue(nn.Module):
    """MoCo's dictionary of negatives: first in, first out.

    Source: algorithm 1 of MoCo.

    Args:
        length: number of keys; a multiple of the keys of one step.
        dim: width of a key.
    """

    keys: Float[Tensor, "k d"]
    position: Int[Tensor, ""]

    def __init__(
        self,
        length: int,
        dim: int,
    ) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(length, dim), dim=-1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def logits(
        self, query: Float[Tensor, "b d"], key: Float[Tensor, "b d"], temperature: float
    ) -> Float[Tensor, "b k1"]:
        """Return each query's similarity to its key (column 0) and to the queue, divided by the temperature."""
        positive = (query * key).sum(dim=1, keepdim=True)

        # Of a copy, since the queue moves on before the backward pass.
        negatives = query @ self.keys.clone().T
        return torch.cat([positive, negatives], dim=1) / temperature

    @torch.no_grad()
    def push(self, keys: Float[Tensor, "n d"]) -> None:
        """Replace the oldest keys."""
        length, count = len(self.keys), len(keys)
        if length % count:
            raise ValueError(
                f"a queue of {length} keys can't take {count} at a time: make it a multiple"
            )

        # The position stays on the device. Reading it would make the host wait at every step.
        oldest = self.position + torch.arange(count, device=self.position.device)
        self.keys.index_copy_(0, oldest, keys.to(self.keys.dtype))
        self.position.add_(count).remainder_(length)


@torch.no_grad()
def update_momentum(
    key_encoder: nn.Module,
    encoder: nn.Module,
    momentum: float,
) -> None:
    """Set theta_k to m theta_k + (1 - m) theta_q. Source: Eq. 2 of MoCo."""
    for key, query in zip(key_encoder.parameters(), encoder.parameters(), strict=True):
        key.lerp_(query, 1 - momentum)
