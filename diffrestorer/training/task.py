"""The loop's view of a stage: a task owns models and losses, and turns a batch into numbers."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from diffrestorer.config.schema import TrainConfig
from diffrestorer.data.pairs import PairBatch


@dataclass(frozen=True)
class Losses:
    """The losses of a batch.

    Attributes:
        total: is minimised.
        parts: its unweighted terms by name, for the log.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]


@contextmanager
def evaluating(task: nn.Module) -> Iterator[None]:
    """Run a task without dropout and batch statistics; then every module is in the mode it was in."""
    was_training = [(module, module.training) for module in task.modules()]
    task.eval()
    try:
        yield
    finally:
        for module, training in was_training:
            module.training = training


class Task(nn.Module):
    """A training stage. Its parameters that require gradients train; all of them take part in every forward pass.

    Everything random is drawn by counter from the batch's step and positions (`diffrestorer.data.counter`).
    """

    averaged: Sequence[str] = ()
    """Prefixes of parameters that change without a gradient (a momentum encoder): checkpoints hold them too."""

    @abstractmethod
    def forward(self, batch: PairBatch) -> Losses:
        """Return the losses of one process's share of a global batch.

        In evaluation mode it changes no state and exchanges nothing between processes.
        """

    def encode(self, batch: PairBatch) -> dict[str, Tensor]:
        """Return the frozen encoders' outputs by name, in float32, for `train.cache_dir` to keep. There are none here.

        A step without a cache calls it within its mixed precision, and the cache is written within the same.
        """
        return {}

    def encoders(self) -> tuple[Sequence[nn.Module], dict[str, Any]]:
        """Return the networks and the settings that `encode` depends on. Others make another cache."""
        return (), {}

    def restore(self, batch: PairBatch) -> Float[Tensor, "b 3 h w"] | None:
        """Return the degraded images restored, in [0, 1] but not clamped, for validation; None: nothing to compare."""
        return None

    @abstractmethod
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return optimisers at their peak learning rates. Together they hold every trainable parameter once."""

    def conclude(self) -> None:
        """Set what is measured rather than trained, before the model is saved. Every process calls it."""
        return

    @abstractmethod
    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the stage's result, which `--model`, `stage1=` and `base=` load, into an empty folder."""

    @abstractmethod
    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """Return the columns of a sample sheet, images in [0, 1] for the eye to compare."""


def adamw(
    parameters: Iterable[nn.Parameter] | Sequence[dict[str, Any]],
    settings: TrainConfig,
    lr: float | None = None,
) -> torch.optim.AdamW:
    """Return AdamW with the run's settings.

    Args:
        parameters: or groups of them; a group's `start_step` is the first step at which the loop changes it.
        settings: of the run.
        lr: in place of `train.lr`.
    """
    fused = settings.hardware.fused_adamw or None
    return torch.optim.AdamW(
        parameters, settings.lr if lr is None else lr, weight_decay=settings.weight_decay, fused=fused
    )


def select_unet(unet: UNet2DConditionModel, train_unet: str) -> None:
    """Require gradients of the parameters that `model.train_unet` names: `none`, `cross_attention` or `all`.

    Raises:
        ValueError: it is `lora`, which only the student has.
    """
    if train_unet == "lora":
        raise ValueError(
            "model.train_unet=lora is for `diffrestorer train student`: take none, cross_attention or all here"
        )
    for name, parameter in unet.named_parameters():
        is_cross_attention = ".attn2." in name
        parameter.requires_grad_(
            train_unet == "all" or (train_unet == "cross_attention" and is_cross_attention)
        )


def to_unit(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Convert uint8 images to float in [0, 1]."""
    return images.float() / 255
