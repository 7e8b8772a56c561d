"""Channel means and deviations of the images that pretrained towers were trained on."""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def normalise(
    images: Float[Tensor, "b c h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "b c h w"]:
    """Subtract the mean of each channel and divide by its standard deviation.

    The two constants stay on the images' device. Torchvision's function copies them there at every call, and each copy
    waits for the device.
    """
    centred = images - _constant(tuple(mean), images.device, images.dtype)
    return centred.div_(_constant(tuple(std), images.device, images.dtype))


@functools.lru_cache(maxsize=32)
def _constant(
    values: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "c 1 1"]:
    with torch.inference_mode(False):  # or a later training step could not use what an evaluation made
        return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)
