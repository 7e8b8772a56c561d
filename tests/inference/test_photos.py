"""What the commands and the page do with one photo."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from soaking import some_now

from diffrestorer.data.images import ImageError, Photo
from diffrestorer.inference import photos
from diffrestorer.inference.choices import Decoder
from diffrestorer.inference.pipeline import DiffRestorerPipeline


@pytest.mark.parametrize(
    ("decoder", "number", "side"),
    some_now(product(["refined", "sd"], [math.inf, math.nan], [40, 320]), 2),  # whole, and by tiles
)
def test_numbers_that_are_not_finite_are_refused(
    decoder: Decoder, number: float, side: int, pipe: DiffRestorerPipeline
) -> None:
    """One pixel of the decoders' output suffices; clamped to [0, 1], an infinity would be white or black."""

    def spoil(_: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        output[..., 3, 5] = number
        return output

    last = pipe.decoder if decoder == "refined" else pipe.vae.decoder
    photo = Photo(np.full((side, side, 3), 90, np.uint8))
    options = photos.Options(steps=1, decoder=decoder, tile="auto" if side == 40 else 256)
    photos.restore(pipe, [photo], options)
    last.register_forward_hook(spoil)
    with pytest.raises(ImageError, match="the model turned it into invalid numbers"):
        photos.restore(pipe, [photo], options)
