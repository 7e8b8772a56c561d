"""What the loop knows of a stage: a task owns models and losses, and turns a batch into numbers."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from diffrestorer.data.pairs import PairBatch


@dataclass(frozen=True)
class Losses:
    """`total` is what is minimised; `parts` are its unweighted terms, for the log."""

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]


class Task(nn.Module):
    """A training stage. Its parameters that require gradients train; all of them take part in every forward pass.

    Everything random is drawn by counter from the batch's step and positions (`diffrestorer.data.counter`).
    """

    averaged: Sequence[str] = ()
    """Prefixes of parameters that change without a gradient (a momentum encoder): checkpoints hold them too."""

    @abstractmethod
    def forward(self, batch: PairBatch) -> Losses:
        """The losses of one process's share of a global batch."""

    @abstractmethod
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """One or more optimisers, at their peak learning rates; together they hold every trainable parameter once."""

    @abstractmethod
    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes what the stage is for (what `--model`, `stage1=` and `base=` load) into an empty folder."""

    @abstractmethod
    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """Columns of a sample sheet, images in [0, 1]: what the eye compares."""


def to_unit(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """uint8 images to float in [0, 1]."""
    return images.float() / 255
