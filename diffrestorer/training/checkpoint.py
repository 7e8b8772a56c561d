"""Checkpoints that survive a kill at any moment: written beside, flushed, renamed; verified when read; no pickles.

A checkpoint `step_N` holds the trainable parameters, their average if one is kept, the state of every optimiser, and
the number of steps done, which is also the place in the order of samples. Nothing random is in it: draws are made by
counter. What is frozen is not in it: it is loaded again from where it came.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffrestorer.training.averaging import WeightAverage

WEIGHTS, AVERAGE, STATE = "weights.safetensors", "average.safetensors", "state.json"
OF_THE_MACHINE = ("fused", "foreach", "capturable")
"""Options of an optimiser that belong to the machine it runs on, and not to the run."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written; the message says which and why."""


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Makes `folder` appear whole or not at all: `write` fills a temporary one, which is flushed and renamed.

    Raises:
        CheckpointError: the disk is full, say; what was there before is untouched, and the temporary folder is gone.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        for path in sorted(partial.rglob("*")):
            _flush(path)
        _flush(partial)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{folder} could not be written ({error}); what was saved before is intact: make room and give the same "
            "command again"
        ) from None
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    _flush(folder.parent)


@dataclass(frozen=True)
class Snapshot:
    """A run after `step` steps, copied to the host: a checkpoint's files by name, and the options of optimisers."""

    step: int
    files: dict[str, dict[str, Tensor]]
    param_groups: list[list[dict[str, Any]]]


def take_snapshot(
    step: int, task: nn.Module, optimizers: Sequence[torch.optim.Optimizer], average: WeightAverage | None = None
) -> Snapshot:
    """Copies everything a checkpoint holds, so that training may go on while it is written."""
    files, groups = {WEIGHTS: _trained_state(task)}, []
    if average is not None:
        files[AVERAGE] = average.state()
    for i, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        files[f"optimizer_{i}.safetensors"] = {
            f"{index}.{name}": value for index, entry in state["state"].items() for name, value in entry.items()
        }
        groups.append(state["param_groups"])
    copies = {name: {key: _host_copy(value) for key, value in tensors.items()} for name, tensors in files.items()}
    return Snapshot(step, copies, groups)


def save_checkpoint(folder: Path, snapshot: Snapshot, keep: int) -> Path:
    """Writes `folder/step_N` and removes all but the `keep` newest checkpoints.

    Raises:
        CheckpointError: it could not be written; the older ones are all there.
    """

    def write(partial: Path) -> None:
        for name, tensors in snapshot.files.items():
            save_file(tensors, partial / name)
        state = {
            "step": snapshot.step,
            "param_groups": snapshot.param_groups,
            "sha256": {name: _digest(partial / name) for name in snapshot.files},
        }
        (partial / STATE).write_text(json.dumps(state, indent=1))

    checkpoint = folder / f"step_{snapshot.step}"
    write_folder(checkpoint, write)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return checkpoint


class CheckpointWriter:
    """Writes checkpoints in a thread of its own, one at a time: a step waits for the copy, not for the disk."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._running: Future[Path] | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Starts writing, after the checkpoint before is finished."""
        self.wait()
        self._running = self._thread.submit(save_checkpoint, self.folder, snapshot, self.keep)

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def check(self) -> None:
        """Raises what went wrong, if anything has by now; waits for nothing."""
        if self._running is not None and self._running.done():
            self.wait()


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))


def load_newest(
    folder: Path,
    task: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    log: logging.Logger,
    average: WeightAverage | None = None,
    accelerator: Accelerator | None = None,
) -> int:
    """Restores the newest sound checkpoint in place; damaged ones are passed over with a warning.

    A node's first process verifies for all of them. Each then maps the files, whose pages the node's processes share,
    and copies tensor by tensor to where its own lie: no process holds a second copy.

    Args:
        accelerator: the processes that resume together; None: this one alone.

    Returns:
        The number of steps it had done; 0: there is none.

    Raises:
        CheckpointError: checkpoints exist and none can be read, they are another model's, or the nodes of a run do not
            see the same ones.
    """
    verifies = accelerator is None or accelerator.is_local_main_process
    found = _newest_sound(folder, log) if verifies else None
    if accelerator is not None:
        found = _outcome_of_the_node(found, folder, accelerator)
    assert found is not None, "a node's first process looks"
    if found.error:
        raise CheckpointError(found.error)
    if not found.name:
        return 0

    checkpoint = folder / found.name
    state = _read_state(checkpoint)
    _restore_weights(checkpoint, task)
    for i, optimizer in enumerate(optimizers):
        _restore_optimizer(checkpoint / f"optimizer_{i}.safetensors", state["param_groups"][i], optimizer)
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
            _verify(checkpoint)
        except CheckpointError as error:
            log.warning("%s; going back to an older one", error)
            damaged.append(error)
            continue
        return _Found(checkpoint.name)
    if damaged:
        return _Found(error=f"{damaged[0]}; no older checkpoint is left: remove {folder} to start again")
    return _Found()


def _outcome_of_the_node(found: _Found | None, folder: Path, accelerator: Accelerator) -> _Found:
    """What this node's first process found; the nodes must agree, or some would train from other weights."""
    outcomes: list[_Found | None] = gather_object([found])
    if len({outcome for outcome in outcomes if outcome is not None}) > 1:
        raise CheckpointError(
            f"the nodes of this run see different checkpoints in {folder}: output_dir must be a folder that all share"
        )
    own = outcomes[accelerator.process_index - accelerator.local_process_index]
    assert own is not None, "local process 0 verified"
    return own


def _read_state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / STATE).read_text())


def _verify(checkpoint: Path) -> None:
    try:
        for name, digest in _read_state(checkpoint)["sha256"].items():
            if _digest(checkpoint / name) != digest:
                raise CheckpointError(f"checkpoint {checkpoint} is damaged: {name} does not match its checksum")
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: {error}") from None


def _restore_weights(checkpoint: Path, task: nn.Module) -> None:
    present = _trained_state(task)
    with safe_open(checkpoint / WEIGHTS, "pt") as file:
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


def _restore_optimizer(path: Path, saved_groups: list[dict[str, Any]], optimizer: torch.optim.Optimizer) -> None:
    own = [{name: group[name] for name in OF_THE_MACHINE if name in group} for group in optimizer.param_groups]
    groups = [{**group, **options} for group, options in zip(saved_groups, own, strict=True)]
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


def _trained_state(task: nn.Module) -> dict[str, Tensor]:
    """Trainable and averaged parameters and all buffers (statistics of a normalisation, say), by name."""
    averaged = tuple(getattr(task, "averaged", ()))
    frozen = {
        name
        for name, parameter in task.named_parameters()
        if not parameter.requires_grad and not name.startswith(averaged)
    }
    return {name: tensor for name, tensor in task.state_dict().items() if name not in frozen}


def _host_copy(tensor: Float[Tensor, "..."] | Int[Tensor, "..."]) -> Float[Tensor, "..."] | Int[Tensor, "..."]:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
