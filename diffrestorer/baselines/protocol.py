"""The interface of the compared methods: degraded images in, restored images out."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from jaxtyping import Float
from torch import Tensor

from diffrestorer.models.blocks import pad_to_multiple

Images = Float[Tensor, "_ 3 _ _"]
Pass = Callable[[Callable[..., Images], Sequence[Images]], Images]
"""Applies a network to images, whole or by tiles."""


def whole(network: Callable[..., Images], images: Sequence[Images]) -> Images:
    """Return the network's output for the whole images."""
    return network(*images)


class Baseline(ModelMixin, ConfigMixin):
    """A compared method. Its constructor's arguments are its saved config; images are RGB in [0, 1].

    `forward` is the training pass. It expects images that went through `pad`.

    Attributes:
        authors_names: pairs (ours, theirs) that turn our tensors' names into those of the authors' checkpoint. They are
            replaced one after the other. Empty: the authors' checkpoints can't be read.
        authors_unused: beginnings of names in the authors' checkpoint that their forward pass does not use.
        authors_parts: for checkpoints of several files, a tensor's name that identifies each part.
        own_tensors: beginnings of names that only our network has and restoring does not use.
    """

    authors_names: Sequence[tuple[str, str]] = ()
    authors_unused: tuple[str, ...] = ()
    authors_parts: Mapping[str, str] = {}
    own_tensors: tuple[str, ...] = ()

    @property
    @abstractmethod
    def multiple(self) -> int:
        """Pixels that the sides of an image, and of a tile of it, must be a multiple of."""

    def pad(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 hp wp"]:
        """Pad right and bottom by reflection until both sides are multiples of `multiple`."""
        return pad_to_multiple(images, self.multiple)

    @abstractmethod
    def restore_padded(
        self, lq: Float[Tensor, "b 3 h w"], seed: int, run: Pass
    ) -> Float[Tensor, "b 3 h w"]:
        """Restore images that `pad` returned; the result may leave [0, 1]."""

    @torch.no_grad()
    def restore(
        self, lq: Float[Tensor, "b 3 h w"], seed: int = 0, run: Pass = whole
    ) -> Float[Tensor, "b 3 h w"]:
        """Restore images of any size.

        Args:
            lq: degraded images in [0, 1].
            seed: of the noise, for methods that sample. Every image of the batch gets the same noise, so the result
                does not depend on the batch.
            run: applies the network to the images. By tiles, the batch must be one image.

        Returns:
            Restored images in [0, 1], of the input's size.
        """
        height, width = lq.shape[-2:]
        restored = self.restore_padded(self.pad(lq), seed, run)
        return restored[..., :height, :width].clamp(0, 1)

    @classmethod
    def authors_name(cls, name: str) -> str:
        """Return the name that one of our tensors has in the authors' checkpoint."""
        for ours, theirs in cls.authors_names:
            name = name.replace(ours, theirs)
        return name

    @classmethod
    def of_authors_size(cls, state: Mapping[str, Tensor]) -> "Baseline":
        """Return a network with random weights, of the size that the authors' tensors have.

        Raises:
            ValueError: they are another network's.
        """
        return cls()


class RegressionBaseline(Baseline):
    """A method that restores in one forward pass."""

    @abstractmethod
    def forward(self, lq: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Return the restored images, not clamped."""

    def restore_padded(
        self, lq: Float[Tensor, "b 3 h w"], seed: int, run: Pass
    ) -> Float[Tensor, "b 3 h w"]:
        """Run the network once; nothing is drawn."""
        return run(self, [lq])
