"""Model folders, which are diffusers pipelines on disk: finding and writing them."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.utils import logging

from diffrestorer.config.degradations import CLEAN
from diffrestorer.inference.one_step import OneStepScheduler
from diffrestorer.models.components import COMPONENTS, ModelFolderError, load_component, save_component
from diffrestorer.models.hub_files import HubError, find_snapshot
from diffrestorer.models.lora import merged
from diffrestorer.models.restorer import DecodingNetworks, Restorer

CARD, DEFAULT_TITLE = "README.md", "# A Diff-Restorer model\n"
"""Name of a folder's card, and the line by which one that nobody edited is known."""

_FETCHED = ("*.json", "*/*.json", "*/*.safetensors")
"""Files of a model on the hub."""


def find_model(name: str | Path) -> Path:
    """Return the folder behind `mini`, a model folder, a training run's output folder, or a hub id (downloaded).

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
        return find_snapshot(str(name), _FETCHED)
    except HubError as error:
        raise ModelFolderError(
            f"no model at {name!r}: it is no folder, and as a hub id: {error}"
        ) from None


def load_scheduler(folder: Path) -> SchedulerMixin:
    """Load the scheduler of a model folder, as the class that its file names: a student's, or one of diffusers'.

    Raises:
        ModelFolderError: it is of another class.
    """
    name = json.loads((folder / "scheduler" / "scheduler_config.json").read_text()).get("_class_name")
    known = {OneStepScheduler.__name__: OneStepScheduler}
    scheduler_class: Any = known.get(name) or getattr(diffusers, str(name), None)
    ours_or_theirs = isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)
    if not ours_or_theirs:
        raise ModelFolderError(
            f"{folder}: its scheduler is a {name}, which is neither diffusers' nor a student's"
        )
    scheduler: SchedulerMixin = scheduler_class.from_pretrained(folder, subfolder="scheduler")
    return scheduler


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Keep diffusers' bar of the components it loads off stderr."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_model_folder(
    networks: DecodingNetworks,
    scheduler: SchedulerMixin,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    rest: Path | None = None,
) -> None:
    """Write a model folder with a card, its weights of `dtype`; `DiffRestorerPipeline.from_pretrained` reads it.

    Args:
        rest: model folder from which the networks that are not there are read, one at a time.

    Raises:
        ModelFolderError: one of those is missing or damaged.
    """
    # The scheduler, and the index that names every part's class.
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {
        "_class_name": "DiffRestorerPipeline",
        "_diffusers_version": diffusers.__version__,
    }
    index["scheduler"] = _class_entry(scheduler)
    index["relative_prediction"] = networks.relative_prediction
    scheduler.save_config(folder / "scheduler")

    # The networks: those at hand, the others from `rest`.
    held, rows = networks.components(), []
    for name in COMPONENTS:
        if name in held:
            component = held[name]
        elif rest is not None:
            component = load_component(rest / name)
        else:
            raise ValueError(
                f"a model folder needs its {name}: there is none, and no folder to take it from"
            )
        index[name] = _class_entry(component)
        save_component(component, folder / name, dtype)
        rows.append(_card_row(name, component))

    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    name_pipeline_class(folder)
    _write_card(folder, networks.prompt_processor.classes, rows)


def keep_own_files(before: Path, folder: Path) -> None:
    """Copy into a model folder what its owner laid into the one that it replaces: a card of their own, a licence.

    Args:
        before: the folder that goes; it need not exist.
        folder: the new one, already written.
    """
    files = [path for path in before.iterdir() if path.is_file()] if before.is_dir() else []
    for path in files:
        own_card = path.name == CARD and DEFAULT_TITLE not in path.read_text(errors="replace")
        if own_card or not (folder / path.name).exists():
            shutil.copy2(path, folder)


def name_pipeline_class(folder: Path) -> None:
    """Let diffusers find the pipeline's class: `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`.

    Diffusers looks for a class that is not its own in a file of the folder. This one imports the installed package.
    """
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index["_class_name"] = [_CLASS_MODULE, "DiffRestorerPipeline"]
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    (folder / f"{_CLASS_MODULE}.py").write_text(_CLASS_FILE)


def plain_components(components: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pipeline's components as a model folder holds them: LoRA adapters merged into copies of the weights."""
    adapted = {
        name for name, component in components.items() if getattr(component, "peft_config", None)
    }
    return {name: merged(part) if name in adapted else part for name, part in components.items()}


def write_model_card(restorer: Restorer, folder: Path) -> None:
    """Write README.md, the model card that hubs show, where there is none."""
    rows = [_card_row(name, part) for name, part in restorer.components().items()]
    _write_card(folder, restorer.prompt_processor.classes, rows)


def _class_entry(part: Any) -> list[str]:
    """Return the library or module in which diffusers finds a part's class, and its name."""
    module, name = type(part).__module__, type(part).__name__
    return ["diffusers" if module.startswith("diffusers.") else module, name]


def _card_row(name: str, part: ModelMixin) -> str:
    return f"| `{name}` | {type(part).__name__} | {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M |"


def _write_card(folder: Path, classes: Sequence[str], rows: Sequence[str]) -> None:
    path = folder / CARD
    if path.exists():
        return
    degradations = ", ".join(name for name in classes if name != CLEAN)
    clean = " It also tells photos that are clean." if CLEAN in classes else ""
    path.write_text(_CARD.format(degradations=degradations, clean=clean, components="\n".join(rows)))


_CLASS_MODULE = "pipeline"

_CLASS_FILE = """# Diffusers finds the class of this model here; it is part of the package diffrestorer.
from diffrestorer import DiffRestorerPipeline  # noqa: F401
"""

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

Diffusers alone reads `unet`, `scheduler` and, of Stable Diffusion's kind, `vae`. With diffrestorer installed, it reads
all: `DiffusionPipeline.from_pretrained("THIS FOLDER", trust_remote_code=True)`.

| component | class | parameters |
|---|---|---|
{components}
"""
