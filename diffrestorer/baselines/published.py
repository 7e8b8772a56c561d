"""The authors' own checkpoints, read into our networks.

Files are read as weights only. Names are translated, tensors are copied, and a file that does not fit is refused whole.
The translation itself stands in each method's class.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from diffrestorer.baselines.protocol import Baseline
from diffrestorer.models.components import ModelFolderError

WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "net", "model")
"""Keys under which the authors keep their weights, beside the state of the optimiser, say."""

PREFIXES = ("module.", "net.")
"""Beginnings that training scripts put before the names of a network's tensors."""

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def load_published(cls: type[Baseline], method: str, path: Path) -> Baseline:
    """Read the authors' checkpoint of a method into a network in evaluation mode.

    Args:
        cls: the method's class.
        method: its name, for messages.
        path: the checkpoint, or one of its files where it has several. The others are found beside it.

    Raises:
        ModelFolderError: the method's names are not known; the file can't be read; it is another network's or another
            size's. The first tensors that differ are listed.
    """
    if not cls.authors_names:
        raise ModelFolderError(
            f"{path}: the authors' checkpoints of {method} can't be read here; give a model folder"
        )
    theirs = _with_other_parts(cls, method, path, read_state(path))
    try:
        model = cls.of_authors_size(theirs)
    except ValueError as error:
        raise ModelFolderError(f"{path} is not {method}'s: {error}") from None

    # Every tensor that restoring uses must be there, in its shape.
    state, differing, wanted = {}, [], set()
    for name, value in model.state_dict().items():
        if name.startswith(cls.own_tensors):
            state[name] = value
            continue
        own = cls.authors_name(name)
        wanted.add(own)
        tensor = _in_shape(theirs.get(own), value)
        if tensor is None:
            differing.append(f"{own} ({_difference(theirs.get(own), value)})")
        else:
            state[name] = tensor

    # And nothing may be left over, but what their own forward pass leaves out.
    for name in theirs:
        if name not in wanted and not name.startswith(cls.authors_unused):
            differing.append(f"{name} (unexpected)")
    if differing:
        raise ModelFolderError(
            f"{path} is not {method}'s: {len(differing)} tensors differ: {', '.join(differing[:5])}"
        )
    model.load_state_dict(state)
    return model.eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, without what the authors wrapped them in.

    Raises:
        ModelFolderError: it is damaged, holds more than weights, or is no checkpoint at all. The message says what to
            do.
    """
    _refuse_text(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        raise ModelFolderError(_why_unreadable(path, error)) from None

    # Wrappers may be nested: a Lightning file's state_dict in a params entry, say.
    while isinstance(content, Mapping):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]

    if not isinstance(content, Mapping) or not content:
        raise ModelFolderError(f"{path} holds no state dict; give the file with the network's weights")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) < len(content):
        other = next(name for name in content if name not in tensors)
        raise ModelFolderError(
            f"{path} holds no state dict: {other} is no tensor; give the file with the weights"
        )
    return {_without_prefixes(name): value for name, value in tensors.items()}


def _without_prefixes(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _refuse_text(path: Path) -> None:
    """Refuse files that a download link may give in place of weights."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith(b"<"):
        raise ModelFolderError(
            f"{path} is a web page and not weights: its link leads to a page first, so download it with a browser"
        )
    if start.startswith(b"version https://git-lfs"):
        raise ModelFolderError(
            f"{path} is a Git LFS pointer and not weights: fetch the file itself with git lfs pull"
        )


def _why_unreadable(path: Path, error: Exception) -> str:
    """Return one sentence for an error of torch.load, which writes paragraphs with escape codes."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return f"{path} can't be read as weights: it is damaged or no checkpoint, so download it again"
    return (
        f"{path} holds {found[1]} beside its weights, which only unpickling could read: where you trust its source, "
        "load it with torch.load(FILE, weights_only=False) and save its state dict alone with torch.save"
    )


def _with_other_parts(
    cls: type[Baseline], method: str, path: Path, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint and of its other parts, which are found beside it."""
    missing = {part: mark for part, mark in cls.authors_parts.items() if mark not in state}
    if not missing or len(missing) == len(cls.authors_parts):
        return state

    # The authors' files have no fixed names: contents tell.
    state = dict(state)
    for part, mark in missing.items():
        holders = [other for other in _neighbours(path) if mark in other]
        if len(holders) != 1:
            many = "is not beside it" if not holders else f"is beside it {len(holders)} times"
            raise ModelFolderError(
                f"{path} is only a part of {method}: the file of {part} {many}; put the two files into one folder"
            )
        state |= holders[0]
    return state


def _neighbours(path: Path) -> list[dict[str, Tensor]]:
    """Return the tensors of the other readable checkpoints in a file's folder."""
    states = []
    for neighbour in sorted(path.parent.iterdir()):
        if neighbour.suffix in SUFFIXES and neighbour.name != path.name:
            try:
                states.append(read_state(neighbour))
            except ModelFolderError:
                continue  # not a checkpoint: none of ours
    return states


def _in_shape(
    tensor: Shaped[Tensor, "..."] | None, like: Shaped[Tensor, "..."]
) -> Shaped[Tensor, "..."] | None:
    """Return a tensor in the shape of ours, or None. The authors keep some axes of length 1 that we don't."""
    if tensor is None or tensor.squeeze().shape != like.squeeze().shape:
        return None
    return tensor.reshape(like.shape)


def _difference(tensor: Shaped[Tensor, "..."] | None, like: Shaped[Tensor, "..."]) -> str:
    return "missing" if tensor is None else f"of shape {tuple(tensor.shape)}, not {tuple(like.shape)}"
