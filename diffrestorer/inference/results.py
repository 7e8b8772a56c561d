"""The results of sampling and of restoring."""

from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput
from jaxtyping import Float
from torch import Tensor

from diffrestorer.models.restorer import Conditioning


@dataclass
class DiffRestorerOutput(BaseOutput):
    """The result of a call of the pipeline.

    Attributes:
        images: restored images in the order and of the sizes of the input: PIL, or float arrays (h, w, 3) in [0, 1],
            or float tensors (3, h, w) in [0, 1], or latents (l, h8, w8) of the padded images, by `output_type`.
        degradation_probabilities: the classifier's softmax, in the order of the pipeline's `classes`.
    """

    images: list[Any]
    degradation_probabilities: Float[Tensor, "b k"]


@dataclass(frozen=True)
class SampledLatents:
    """Restored latents before they are decoded, so that one sampling can serve both decoders.

    Attributes:
        lq: the degraded images, padded.
        height, width: before they were padded.
        side: of the largest tile in pixels; None: the images are taken whole.
        tile_batch_size: tiles that go through a network at a time.
        shrink: whether smaller tiles may be taken where memory falls short.
    """

    latents: Float[Tensor, "b l h8 w8"]
    condition: Conditioning
    lq: Float[Tensor, "b 3 hp wp"]
    height: int
    width: int
    side: int | None = None
    tile_batch_size: int | None = None
    shrink: bool = False


def mark_infinite(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Turn infinities into NaN, in place: clamping to [0, 1] makes white or black of them, and keeps NaN."""
    return images.masked_fill_(images.isinf(), float("nan"))
