"""Resuming: the newest sound checkpoint is loaded, the same one by all processes of a run."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import safe_open
from torch import Tensor, nn

from diffrestorer.training.averaging import WeightAverage
from diffrestorer.training.checkpoint import (
    AVERAGE,
    WEIGHTS,
    CheckpointError,
    list_checkpoints,
    read_state,
    trained_state,
    verify,
)

OF_THE_MACHINE = ("fused", "foreach", "capturable")
"""Options of an optimiser that belong to the machine it runs on, and not to the run."""


def load_newest(
    folder: Path,
    task: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    log: logging.Logger,
    average: WeightAverage | None = None,
    accelerator: Accelerator | None = None,
) -> int:
    """Restore the newest sound checkpoint in place; damaged ones are passed over with a warning.

    A node's first process verifies for all of them. Each then maps the files, whose pages the node's processes share,
    and copies tensor by tensor to where its own lie: no process holds a second copy.

    Args:
        folder: of the checkpoints.
        task: takes the weights.
        optimizers: take their states.
        log: of the run.
        average: of the weights, if one is kept.
        accelerator: the processes that resume together; None: this one alone.

    Returns:
        The number of steps it had done; 0: there is none.

    Raises:
        CheckpointError: checkpoints exist and none can be read, they are another model's, or the nodes of a run do not
            see the same ones.
    """
    # One process of a node looks for all of them.
    verifies = accelerator is None or accelerator.is_local_main_process
    found = _newest_sound(folder, log) if verifies else None
    if accelerator is not None:
        found = _outcome_of_the_node(found, folder, accelerator)
    assert found is not None, "a node's first process looks"
    if found.error:
        raise CheckpointError(found.error)
    if not found.name:
        return 0

    # Every process loads the same checkpoint.
    checkpoint = folder / found.name
    state = read_state(checkpoint)
    _restore_weights(checkpoint, task)
    for i, optimizer in enumerate(optimizers):
        _restore_optimizer(
            checkpoint / f"optimizer_{i}.safetensors", state["param_groups"][i], optimizer
        )
    if average is not None:
        with safe_open(checkpoint / AVERAGE, "pt") as file:
            average.load(file.get_tensor, state["step"])
    return state["step"]


@dataclass(frozen=True)
class _Found:
    """The newest sound checkpoint's name, empty if there is none; or why a run cannot go on."""

    name: str = ""
    error: str = ""


def _newest_sound(folder: Path, log: logging.Logger) -> _Found:
    damaged: list[CheckpointError] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            log.warning("%s; going back to an older one", error)
            damaged.append(error)
            continue
        return _Found(checkpoint.name)
    if damaged:
        return _Found(
            error=f"{damaged[0]}; no older checkpoint is left: remove {folder} to start again"
        )
    return _Found()


def _outcome_of_the_node(found: _Found | None, folder: Path, accelerator: Accelerator) -> _Found:
    """Return what this node's first process found. The nodes must agree, or some would train from other weights."""
    outcomes: list[_Found | None] = gather_object([found])
    if len({outcome for outcome in outcomes if outcome is not None}) > 1:
        raise CheckpointError(
            f"the nodes of this run see different checkpoints in {folder}: output_dir must be a folder that all share"
        )
    own = outcomes[accelerator.process_index - accelerator.local_process_index]
    assert own is not None, "local process 0 verified"
    return own


def _restore_weights(checkpoint: Path, task: nn.Module) -> None:
    present = trained_state(task)
    with safe_open(checkpoint / WEIGHTS, "pt") as file:
        # Compare names and shapes before anything is copied.
        saved = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
        wanted = {name: list(tensor.shape) for name, tensor in present.items()}
        differing = sorted(name for name in {*saved, *wanted} if saved.get(name) != wanted.get(name))
        if differing:
            raise CheckpointError(
                f"checkpoint {checkpoint} is of another model: {len(differing)} tensors differ, first {differing[0]}"
            )

        with torch.no_grad():
            for name, parameter in present.items():
                parameter.copy_(file.get_tensor(name))


def _restore_optimizer(
    path: Path, saved_groups: list[dict[str, Any]], optimizer: torch.optim.Optimizer
) -> None:
    # Options that belong to this machine stay as they are.
    groups = []
    for saved, own in zip(saved_groups, optimizer.param_groups, strict=True):
        options = {name: own[name] for name in OF_THE_MACHINE if name in own}
        groups.append({**saved, **options})

    with safe_open(path, "pt") as file:
        # On a CPU these are views of the mapped file, which the loop below replaces one by one.
        entries: dict[int, dict[str, Tensor]] = {}
        for key in file.keys():  # noqa: SIM118 - no dict
            index, name = key.split(".", 1)
            entries.setdefault(int(index), {})[name] = file.get_tensor(key)
        optimizer.load_state_dict({"state": entries, "param_groups": groups})

        # In the parameter's own memory layout: a fused kernel assumes it.
        for parameter, entry in optimizer.state.items():
            for name, value in entry.items():
                like = parameter if value.shape == parameter.shape else value
                entry[name] = torch.empty_like(like, dtype=value.dtype).copy_(value)
