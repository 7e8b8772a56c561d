"""Sheets of images: a row per sample, a column per kind."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.utils import make_grid, save_image

from diffrestorer.data.storage import whole_file


def save_sheet(
    path: Path, columns: Sequence[Float[Tensor, "b 3 h w"]]
) -> Float[Tensor, "3 sheet_h sheet_w"]:
    """Write columns of images in [0, 1] as one PNG, whole or not at all, and return its pixels."""
    rows = torch.stack(list(columns), dim=1).flatten(0, 1)
    sheet = make_grid(rows, nrow=len(columns))
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as file:
        save_image(sheet, file, format="png")
    return sheet
