"""What the tests of evaluation share: small settings, a silent console, the files of a run."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from diffrestorer.config.evaluating import EvaluateConfig, TestDataConfig


def settings(folder: Path, method: list[str], **keys: Any) -> EvaluateConfig:
    """One photo of 64 pixels, one step and one seed, two metrics that need no download."""
    small = {
        "size": 64,
        "images": 1,
        "steps": 1,
        "seeds": 1,
        "batch_size": 8,
        "device": "cpu",
        "metrics": ["psnr", "ssim"],
    }
    if "data" in keys:
        keys["data"] = TestDataConfig(**keys["data"])
    return EvaluateConfig(output_dir=str(folder), method=method, **{**small, **keys})


def quiet() -> Console:
    """Takes everything and shows nothing."""
    return Console(file=io.StringIO(), width=120)


def restored(folder: Path) -> dict[str, bytes]:
    """`METHOD/DEGRADATION/IMAGE.png` -> content."""
    root = folder / "restored"
    return {
        file.relative_to(root).as_posix(): file.read_bytes() for file in sorted(root.rglob("*.png"))
    }
