"""The numbers of a step: samples per micro batch and learning rates."""

import math
from collections.abc import Sequence

import torch

from diffrestorer.config.schema import TrainConfig


def choose_micro_batch(settings: TrainConfig, num_processes: int) -> int | None:
    """Return the samples that a process computes at once: the key, or the largest divisor that the preset allows.

    Args:
        settings: of the run.
        num_processes: that share the global batch.

    Returns:
        None stands for a process's whole share of the global batch.
    """
    allowed = settings.hardware.max_micro_batch
    if settings.micro_batch_size is not None or allowed is None:
        return settings.micro_batch_size
    share = settings.global_batch_size // num_processes
    divisors = [n for n in range(1, min(share, allowed) + 1) if share % n == 0]
    return max(divisors, default=None)


def learning_rate_factor(step: int, settings: TrainConfig) -> float:
    """Return the factor on the peak learning rate at a step: linear warm-up, then as `lr_schedule` says."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps

    # Share of the steps after the warm-up.
    progress = (step - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps)
    match settings.lr_schedule:
        case "cosine":
            falling = max(0.0, progress - settings.lr_hold) / (1 - settings.lr_hold)
            floor = settings.lr_floor / settings.lr if settings.lr_floor else 0.0
            return floor + (1 - floor) * (1 + math.cos(math.pi * falling)) / 2
        case "steps":
            reached = [share for share in settings.lr_milestones if share <= progress]
            return settings.lr_milestones[max(reached)] if reached else 1.0
        case _:
            return 1.0


def set_learning_rates(
    optimizers: Sequence[torch.optim.Optimizer],
    peak_rates: Sequence[float],
    settings: TrainConfig,
    step: int,
) -> None:
    """Set every group's learning rate for a step; 0 before a group's `start_step`."""
    factor = learning_rate_factor(step, settings)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group, peak in zip(groups, peak_rates, strict=True):
        group["lr"] = peak * factor if step >= group.get("start_step", 0) else 0.0


def skip_unstarted(optimizers: Sequence[torch.optim.Optimizer], step: int) -> None:
    """Drop the gradients of groups before their `start_step`.

    AdamW would count steps of zero gradients, and then start at several times the learning rate; and gradients that
    are not used would count in the norm that is clipped.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if step < group.get("start_step", 0):
                for parameter in group["params"]:
                    parameter.grad = None
