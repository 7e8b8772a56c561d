"""Experiment trackers: TensorBoard and Weights & Biases.

Both get the configuration, losses, learning rates, speed, memory, validation scores and sheets; docs/training.md lists
the keys.
"""

import importlib.util
import netrc
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml
from jaxtyping import Float
from torch import Tensor

from diffrestorer.config.schema import RunConfig
from diffrestorer.training.kept_files import read_sealed, write_sealed

PROJECT = "diffrestorer"
PACKAGES = {"wandb": "wandb", "tensorboard": "tensorboard"}
WANDB_HOST = "https://api.wandb.ai"


class Tracker:
    """A place that a run reports to. This one drops everything."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Report numbers of a step."""

    def show(self, name: str, sheet: Float[Tensor, "3 h w"], step: int) -> None:
        """Report a sheet of images in [0, 1]."""

    def finish(self) -> None:
        """Send what is left."""


class TensorBoard(Tracker):
    """Event files in `output_dir/tensorboard`.

    Args:
        config: of the run.
        output_dir: of the run.
        first_step: of this start; what an earlier start reported of later steps is dropped.
    """

    def __init__(self, config: RunConfig, output_dir: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(output_dir / "tensorboard"), purge_step=first_step + 1)
        self.writer.add_text(
            "config", f"```\n{yaml.safe_dump(asdict(config), sort_keys=False)}```", first_step
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Report numbers of a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def show(self, name: str, sheet: Float[Tensor, "3 h w"], step: int) -> None:
        """Report a sheet of images in [0, 1]."""
        self.writer.add_image(name, sheet, step)

    def finish(self) -> None:
        """Close the file."""
        self.writer.close()


class WandB(Tracker):
    """A run of Weights & Biases with its files in `output_dir/wandb`. A resumed run goes on under its id.

    Args:
        config: of the run.
        output_dir: of the run; `tracker.json` keeps the id.
        mode: `online` or `offline`.
    """

    def __init__(self, config: RunConfig, output_dir: Path, mode: str) -> None:
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=PROJECT,
            name=output_dir.name,
            dir=str(output_dir),
            id=_run_id(output_dir / "tracker.json"),
            resume="allow" if mode == "online" else None,
            mode="online" if mode == "online" else "offline",
            config=asdict(config),
            settings=wandb.Settings(silent=True, console="off"),
        )

        # Steps that a resumed run does again are reported again: they have an axis of their own, which may go back.
        self.run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Report numbers of a step."""
        self.run.log({"step": step, **values})

    def show(self, name: str, sheet: Float[Tensor, "3 h w"], step: int) -> None:
        """Report a sheet of images in [0, 1]."""
        pixels = (sheet * 255).round().byte().permute(1, 2, 0).numpy()
        self.run.log({"step": step, name: self.wandb.Image(pixels)})

    def finish(self) -> None:
        """Send what is left."""
        self.run.finish()


def check_tracker(tracker: str, wandb_mode: str | None) -> None:
    """Refuse a tracker that could not report, before anything is loaded.

    Args:
        tracker: `train.tracker`.
        wandb_mode: `train.wandb_mode`.

    Raises:
        ValueError: its package is not installed, or Weights & Biases has no key.
    """
    # Without importing it, which takes seconds.
    package = PACKAGES.get(tracker)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ValueError(
            f"train.tracker={tracker} needs the package {package}: install it, or take another tracker"
        )
    if tracker == "wandb" and _wandb_mode(wandb_mode) == "online" and not _has_wandb_key():
        raise ValueError(
            "train.tracker=wandb has no key to report with: run `wandb login`, set WANDB_API_KEY, or keep the report "
            "in output_dir with train.wandb_mode=offline (`wandb sync` sends it later)"
        )


def open_tracker(config: RunConfig, output_dir: Path, first_step: int) -> Tracker:
    """Return the run's tracker.

    Args:
        config: of the run.
        output_dir: of the run.
        first_step: number of steps done before this start.
    """
    settings = config.train
    if settings.tracker == "tensorboard":
        return TensorBoard(config, output_dir, first_step)
    mode = _wandb_mode(settings.wandb_mode)
    if settings.tracker == "wandb" and mode != "disabled":
        return WandB(config, output_dir, mode)
    return Tracker()


def _wandb_mode(mode: str | None) -> str:
    """Return the mode: the key, or what the environment says."""
    if mode is not None:
        return mode
    named = os.environ.get("WANDB_MODE", "online")
    return {"dryrun": "offline", "run": "online", "shared": "online"}.get(named, named)


def _has_wandb_key() -> bool:
    """Return whether Weights & Biases would find a key: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", WANDB_HOST)).hostname or ""
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(host):
                return True
    return False


def _run_id(path: Path) -> str:
    """Return the id of the run, which its first start draws."""
    with suppress(OSError, ValueError):
        content: dict[str, Any] = read_sealed(path)
        return content["wandb_id"]
    drawn = secrets.token_hex(4)
    write_sealed(path, {"wandb_id": drawn})
    return drawn
