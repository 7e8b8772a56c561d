"""The compared methods by name: build and load them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffrestorer.baselines.airnet import AirNet
from diffrestorer.baselines.da_clip.model import DaClip
from diffrestorer.baselines.nafnet import NAFNet
from diffrestorer.baselines.promptir import PromptIR
from diffrestorer.baselines.protocol import Baseline
from diffrestorer.baselines.published import load_published
from diffrestorer.baselines.restormer import Restormer
from diffrestorer.baselines.transweather import TransWeather
from diffrestorer.models.components import ModelFolderError, build_component, load_folder

BASELINES: dict[str, type[Baseline]] = {
    "airnet": AirNet,
    "transweather": TransWeather,
    "nafnet": NAFNet,
    "restormer": Restormer,
    "promptir": PromptIR,
    "da_clip": DaClip,
}
"""Method name -> class, in the order of the paper's Table I."""


def build_baseline(method: str, arguments: Mapping[str, Any]) -> Baseline:
    """Build a method with random weights.

    Raises:
        ValueError: an unknown method or argument, or values that do not fit one another.
    """
    if method not in BASELINES:
        raise ValueError(f"method={method} is unknown; choose one of {', '.join(BASELINES)}")
    return build_component(BASELINES[method], arguments, "network")


def find_baseline(folder: Path) -> str | None:
    """Return the name of the method that a model folder holds, or None if it holds none."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    names = {cls.__name__: name for name, cls in BASELINES.items()}
    return names.get(str(config.get("_class_name"))) if isinstance(config, dict) else None


def load_baseline(folder: Path, method: str | None = None) -> Baseline:
    """Load a trained method, strictly.

    Args:
        folder: a model folder, the output folder of a training run, or the authors' checkpoint (with `method`).
        method: the method it must be; None accepts any.

    Raises:
        ModelFolderError: it is another method's, or a file is missing, damaged, or does not fit.
    """
    if method is not None and folder.is_file():
        if method not in BASELINES:
            raise ModelFolderError(f"{folder}: {method} is none of the methods {', '.join(BASELINES)}")
        return load_published(BASELINES[method], method, folder)

    # A training run keeps its finished network in model/.
    folder = folder / "model" if (folder / "model").is_dir() else folder
    found = find_baseline(folder)
    if found is None:
        raise ModelFolderError(
            f"{folder} holds none of the methods {', '.join(BASELINES)} (config.json says which)"
        )
    if method is not None and method != found:
        raise ModelFolderError(f"{folder} holds {found}, not {method}")
    model = load_folder(folder, (BASELINES[found],))
    assert isinstance(model, Baseline)
    return model
