"""A model folder is a diffusers pipeline on disk: where it is found, and how it is written."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler

from diffrestorer.models.components import ModelFolderError, save_component
from diffrestorer.models.restorer import Restorer


def find_model(name: str | Path) -> Path:
    """The folder behind `mini`, a model folder, a training run's output folder, or a hub id (downloaded).

    Raises:
        ModelFolderError: nothing is there.
    """
    if str(name) == "mini":
        return Path(str(files("diffrestorer") / "weights" / "mini"))
    folder = Path(name)
    if (folder / "model" / "model_index.json").exists():
        return folder / "model"
    if folder.is_dir():
        return folder
    try:
        return Path(DiffusionPipeline.download(str(name)))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFolderError(f"no model at {name!r}: it is no folder, and as a hub id: {reason}") from None


def save_model_folder(
    restorer: Restorer, scheduler: UniPCMultistepScheduler, folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Writes a model folder whose weights are of `dtype`; `DiffRestorerPipeline.from_pretrained` reads it."""
    components = restorer.components()
    index: dict[str, Any] = {"_class_name": "DiffRestorerPipeline", "_diffusers_version": diffusers.__version__}
    for name, part in {**components, "scheduler": scheduler}.items():
        module, name_of_class = type(part).__module__, type(part).__name__
        index[name] = ["diffusers" if module.startswith("diffusers.") else module, name_of_class]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    scheduler.save_config(folder / "scheduler")
    for name, component in components.items():
        save_component(component, folder / name, dtype)
