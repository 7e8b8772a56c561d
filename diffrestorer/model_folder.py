"""A model folder is a diffusers pipeline on disk: where it is found, and how it is written."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

from diffrestorer.degradations import CLEAN
from diffrestorer.models.components import ModelFolderError, save_component
from diffrestorer.models.restorer import Restorer
from diffrestorer.one_step import Scheduler


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


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Keeps diffusers' bar of the components it loads off stderr."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_model_folder(
    restorer: Restorer, scheduler: Scheduler, folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Writes a model folder with a card, its weights of `dtype`; `DiffRestorerPipeline.from_pretrained` reads it."""
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
    write_model_card(restorer, folder)


def write_model_card(restorer: Restorer, folder: Path) -> None:
    """Writes README.md, the model card that hubs show, where there is none."""
    path = folder / "README.md"
    if path.exists():
        return
    rows = [
        f"| `{name}` | {type(part).__name__} | {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M |"
        for name, part in restorer.components().items()
    ]
    classes = restorer.prompt_processor.classes
    degradations = ", ".join(name for name in classes if name != CLEAN)
    clean = " It also tells photos that are clean." if CLEAN in classes else ""
    path.write_text(_CARD.format(degradations=degradations, clean=clean, components="\n".join(rows)))


_CARD = """---
license: other
library_name: diffusers
pipeline_tag: image-to-image
tags: [image-restoration, diffusion, diff-restorer]
---
# A Diff-Restorer model

Restores photos with any of these degradations ({degradations}) or several of them, without being told which, after
Diff-Restorer (arXiv 2407.03636).{clean} Its licence is that of the weights and the data it was trained from.

    from diffrestorer import DiffRestorerPipeline
    pipe = DiffRestorerPipeline.from_pretrained("THIS FOLDER")
    pipe(image).images[0].save("restored.png")

| component | class | parameters |
|---|---|---|
{components}
"""
