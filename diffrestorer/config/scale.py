"""Batch, learning rate, warm-up, steps and average of a run by the number of GPUs: `train.scale`.

The paper's batch of 16 cannot feed 64 GPUs. With k times its batch a run takes 1/k of its steps, so it sees as many
samples, and AdamW's learning rate grows by the square root of k (Malladi et al., "On the SDEs and scaling rules for
adaptive gradient algorithms", NeurIPS 2022). Larger rates start with a warm-up, and fewer steps end better with an
average of the weights. No run of these sizes has been made: `8gpu` and `64gpu` are where to start, not what is known.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Scale:
    """One size of run.

    Attributes:
        batch: factor on the samples per step; steps are divided by it.
        lr: factor on the learning rate.
        warmup_steps: over which the rate rises.
        ema_decay: of the average; None: as in the stage's own settings.
    """

    batch: int
    lr: float
    warmup_steps: int
    ema_decay: float | None


SCALES = {
    "paper": Scale(1, 1.0, 0, None),
    "8gpu": Scale(8, 8**0.5, 500, 0.9999),
    "64gpu": Scale(32, 32**0.5, 1000, 0.9995),
}
"""Values of `train.scale`. With stage 1's batch of 16 they make 16, 128 and 512 samples per step."""


def scaled_value(key: str, value: Any, *, _root_: DictConfig) -> Any:
    """Return what a key of `train` is at the scale of the run: `${scaled:KEY,VALUE}` in a stage's config.

    Args:
        key: global_batch_size, max_steps, lr, warmup_steps or ema_decay.
        value: of the key at the paper's scale.
        _root_: config of the run, which OmegaConf gives.
    """
    name = OmegaConf.select(_root_, "train.scale", default="paper")
    scale = SCALES.get(name, SCALES["paper"])  # another name is refused when the config is checked
    match key:
        case "global_batch_size":
            return value * scale.batch
        case "max_steps":
            return value // scale.batch
        case "lr":
            return value * scale.lr
        case "warmup_steps":
            return value or scale.warmup_steps
        case _:
            return scale.ema_decay if scale.ema_decay is not None else value


OmegaConf.register_new_resolver("scaled", scaled_value, replace=True)


def check_scale(composed: DictConfig) -> None:
    """Refuse `train.scale` where it would change nothing.

    Args:
        composed: config of the run, its interpolations not resolved.

    Raises:
        ValueError: the stage or the model has no rule for its scale.
    """
    train = composed.get("train")
    name = train.get("scale", "paper") if train is not None else "paper"
    if name in SCALES and name != "paper" and "${scaled:" not in OmegaConf.to_yaml(train):
        raise ValueError(
            f"train.scale={name} changes nothing here: it is for stage 1 and the decoder stage; "
            "set train.global_batch_size, lr and max_steps"
        )
