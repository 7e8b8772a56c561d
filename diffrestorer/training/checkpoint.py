"""Checkpoints that survive a kill at any moment: written beside, flushed, renamed; verified when read; no pickles.

A checkpoint `step_N` holds the trainable parameters, the state of every optimiser, and the number of steps done.
Nothing random is in it: draws are made by counter. What is frozen is not in it: it is loaded again from where it came.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS, STATE = "weights.safetensors", "state.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which and why."""


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Makes `folder` appear whole or not at all: `write` fills a temporary one, which is flushed and renamed."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    for path in sorted(partial.rglob("*")):
        _flush(path)
    _flush(partial)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    _flush(folder.parent)


def save_checkpoint(
    folder: Path, step: int, task: nn.Module, optimizers: Sequence[torch.optim.Optimizer], keep: int
) -> Path:
    """Writes `folder/step_N` and removes all but the `keep` newest checkpoints."""

    def write(partial: Path) -> None:
        files = {WEIGHTS: _trained_state(task)}
        groups = []
        for i, optimizer in enumerate(optimizers):
            state = optimizer.state_dict()
            files[f"optimizer_{i}.safetensors"] = {
                f"{index}.{name}": value for index, entry in state["state"].items() for name, value in entry.items()
            }
            groups.append(state["param_groups"])
        for name, tensors in files.items():
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, partial / name)
        digests = {name: _digest(partial / name) for name in files}
        (partial / STATE).write_text(json.dumps({"step": step, "param_groups": groups, "sha256": digests}, indent=1))

    checkpoint = folder / f"step_{step}"
    write_folder(checkpoint, write)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return checkpoint


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))


def load_newest(folder: Path, task: nn.Module, optimizers: Sequence[torch.optim.Optimizer], log: logging.Logger) -> int:
    """Restores the newest sound checkpoint in place; damaged ones are passed over with a warning.

    Returns:
        The number of steps it had done; 0: there is none.

    Raises:
        CheckpointError: checkpoints exist and none can be read, or they are another model's.
    """
    damaged: list[CheckpointError] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            state = _verified_state(checkpoint)
        except CheckpointError as error:
            log.warning("%s; going back to an older one", error)
            damaged.append(error)
            continue
        _restore(checkpoint, state, task, optimizers)
        return state["step"]
    if damaged:
        raise CheckpointError(f"{damaged[0]}; no older checkpoint is left: remove {folder} to start again")
    return 0


def _verified_state(checkpoint: Path) -> dict:
    try:
        state = json.loads((checkpoint / STATE).read_text())
        for name, digest in state["sha256"].items():
            if _digest(checkpoint / name) != digest:
                raise CheckpointError(f"checkpoint {checkpoint} is damaged: {name} does not match its checksum")
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: {error}") from None
    return state


def _restore(checkpoint: Path, state: dict, task: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    saved, present = load_file(checkpoint / WEIGHTS), _trained_state(task)
    differing = sorted(
        name
        for name in {*saved, *present}
        if name not in saved or name not in present or saved[name].shape != present[name].shape
    )
    if differing:
        raise CheckpointError(
            f"checkpoint {checkpoint} is of another model: {len(differing)} tensors differ, first {differing[0]}"
        )
    with torch.no_grad():
        for name, parameter in present.items():
            parameter.copy_(saved[name])
    for i, optimizer in enumerate(optimizers):
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(checkpoint / f"optimizer_{i}.safetensors").items():
            index, name = key.split(".", 1)
            entries.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": entries, "param_groups": state["param_groups"][i]})


def _trained_state(task: nn.Module) -> dict[str, Tensor]:
    """Trainable and averaged parameters and all buffers (statistics of a normalisation, say), by name."""
    averaged = tuple(getattr(task, "averaged", ()))
    frozen = {
        name
        for name, parameter in task.named_parameters()
        if not parameter.requires_grad and not name.startswith(averaged)
    }
    return {name: tensor for name, tensor in task.state_dict().items() if name not in frozen}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
