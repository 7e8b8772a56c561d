"""Diff-Restorer: one diffusion model that restores photos with any of eight degradations (arXiv 2407.03636)."""

import logging
import os
from importlib import import_module
from typing import Any

__all__ = ["DiffRestorerPipeline", "__version__"]
__version__ = "0.1.0"

logging.getLogger("bitsandbytes").setLevel(
    logging.ERROR
)  # diffusers imports it if it is there, and it complains


# diffusers imports ONNX Runtime if it is there, and that tells its maker so.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name == "DiffRestorerPipeline":  # imported on first use: it needs torch, which takes seconds
        import_module("diffrestorer.config.installation").check_torchvision()
        return import_module("diffrestorer.inference.pipeline").DiffRestorerPipeline
    raise AttributeError(f"module 'diffrestorer' has no attribute {name!r}")
