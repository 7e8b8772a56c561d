"""What every compared method is to the rest of the code: a degraded image in, a restored one out."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from jaxtyping import Float
from torch import Tensor

from diffrestorer.models.blocks import pad_to_multiple

Images = Float[Tensor, "_ 3 _ _"]
Pass = Callable[[Callable[..., Images], Sequence[Images]], Images]
"""How a network goes over images: what it makes of them, whole or by tiles."""


def whole(network: Callable[..., Images], images: Sequence[Images]) -> Images:
    """The network on the whole images."""
    return network(*images)


class Baseline(ModelMixin, ConfigMixin):
    """A compared method. Its constructor's arguments are its saved config; images are RGB in [0, 1].

    `forward` is what training calls; it wants sides that are multiples of `multiple`.
    """

    @property
    @abstractmethod
    def multiple(self) -> int:
        """What the sides of an image must be multiples of; `restore` pads by reflection and crops again."""

    @abstractmethod
    def restore_padded(self, lq: Float[Tensor, "b 3 h w"], seed: int, run: Pass) -> Float[Tensor, "b 3 h w"]:
        """Restores images whose sides are multiples of `multiple`; the result may leave [0, 1]."""

    @torch.no_grad()
    def restore(self, lq: Float[Tensor, "b 3 h w"], seed: int = 0, run: Pass = whole) -> Float[Tensor, "b 3 h w"]:
        """Restores images of any size.

        Args:
            lq: degraded images in [0, 1].
            seed: of the noise, where the method samples; every image of the batch draws the same, so that batches
                change nothing.
            run: how the network goes over the images; by tiles, it must take one image at a time.

        Returns:
            Restored images in [0, 1], of the input's size.
        """
        height, width = lq.shape[-2:]
        restored = self.restore_padded(pad_to_multiple(lq, self.multiple), seed, run)
        return restored[..., :height, :width].clamp(0, 1)


class RegressionBaseline(Baseline):
    """A method whose forward pass is the restored image."""

    @abstractmethod
    def forward(self, lq: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The restored image, not clamped."""

    def restore_padded(self, lq: Float[Tensor, "b 3 h w"], seed: int, run: Pass) -> Float[Tensor, "b 3 h w"]:
        """One forward pass; nothing is drawn."""
        return run(self, [lq])
