"""Images as callers hold them (PIL, arrays, tensors) to float tensors in [0, 1] and back, with few copies."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffrestorer.data.images import as_photo

ImageTensor = Float[Tensor, "3 _ _"]
ImageInput = Image.Image | np.ndarray | Float[Tensor, "..."]
OutputType = Literal["pil", "np", "pt"]

_FULL_SCALE = {"uint8": 255, "uint16": 65535, "float16": 1, "float32": 1, "float64": 1}


def as_tensors(image: Any) -> list[ImageTensor]:
    """Convert images to floats (3, h, w) in [0, 1].

    Args:
        image: one `ImageInput`, several, or a tensor (b, 3, h, w). PIL images follow the rules of `read_photo`:
            orientation, 16 bits, grey, CMYK, profiles.

    Raises:
        ValueError: an image is of another kind; the message says what it may be.
    """
    # One image is a list of one; a batch is a list of its images.
    if isinstance(image, Image.Image | np.ndarray) or (isinstance(image, Tensor) and image.ndim == 3):
        image = [image]
    kinds = (Image.Image, np.ndarray, Tensor)
    for item in image if isinstance(image, list | tuple) else [image]:
        if isinstance(item, str | Path):
            raise ValueError(
                f"{str(item)!r} is a path or an address, not an image: open it with PIL.Image.open, or fetch it with "
                "diffusers.utils.load_image"
            )
        if not isinstance(item, kinds):
            raise ValueError(f"an image must be PIL, an array or a tensor, not {type(item).__name__}")
    return [_as_tensor(item) for item in image]


def _as_tensor(image: ImageInput) -> ImageTensor:
    """Convert one image, and check what it holds."""
    if isinstance(image, Tensor):
        tensor = image
    else:
        array = as_photo(image).pixels if isinstance(image, Image.Image) else image
        scale = _FULL_SCALE.get(array.dtype.name)
        if scale is None:
            raise ValueError(
                f"an image array must be uint8, uint16 or floats in [0, 1], not {array.dtype}"
            )
        if array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"an image array must be (height, width, 3), not {array.shape}")
        tensor = torch.from_numpy(array.astype(np.float32)).div_(scale).permute(2, 0, 1)

    # Whatever it came from: three channels of floats in [0, 1].
    if tensor.ndim != 3 or tensor.shape[0] != 3 or not tensor.is_floating_point():
        raise ValueError(
            f"an image tensor must be floats (3, height, width), not {tensor.dtype} {tuple(tensor.shape)}"
        )
    if not tensor.numel():
        raise ValueError(f"an image must have pixels, and this one is {tuple(tensor.shape)}")
    low, high = (value.item() for value in tensor.aminmax())
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise ValueError(f"an image's floats must lie in [0, 1], and these lie in [{low:g}, {high:g}]")
    return tensor


def from_tensor(
    image: Float[Tensor, "3 h w"], output_type: OutputType
) -> Image.Image | np.ndarray | ImageTensor:
    """Convert a float image in [0, 1] to PIL (which may overwrite it), to an array (h, w, 3), or return it as it is."""
    if output_type == "pt":
        return image
    if output_type == "np":
        return image.permute(1, 2, 0).numpy()
    return Image.fromarray(
        image.mul_(255).round_().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    )
