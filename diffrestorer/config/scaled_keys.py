"""`${scaled:KEY,VALUE}` in a stage's config, the value of a key at `train.scale`. Imported where configs are composed.

Restoring photos reads the names of the scales (scale.py) and has no OmegaConf, which comes with the extras.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffrestorer.config.scale import SCALES


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
