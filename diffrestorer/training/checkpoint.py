"""Checkpoints that survive a kill at any moment: written beside, flushed, renamed; verified when read; no pickles.

A checkpoint `step_N` holds the trainable parameters, their average if one is kept, the state of every optimiser, and
the number of steps done, which is also the place in the order of samples. It also holds copies of the run's small
files. Nothing random is in it, since draws are made by counter. Frozen networks are loaded again from where they came.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from diffrestorer.models.weight_files import save_tensors
from diffrestorer.training.averaging import WeightAverage
from diffrestorer.training.kept_files import KEPT, seal, unseal

WEIGHTS, AVERAGE, STATE = "weights.safetensors", "average.safetensors", "state.json"
NAME = re.compile(r"step_(0|[1-9]\d*)")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written; the message says which and why."""


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Make `folder` appear whole or not at all: `write` fills a temporary one, which is flushed and renamed.

    Args:
        folder: replaces an older one of its name.
        write: takes the temporary folder.

    Raises:
        CheckpointError: the disk is full, say; what was there before is untouched, and the temporary folder is gone.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)

    # Everything is on the disk before anything has its name.
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

    # An older folder steps aside whole, too: a kill while it is removed must not leave half of it under its name.
    retired = _retire(folder) if folder.exists() else None
    os.replace(partial, folder)
    _flush(folder.parent)
    if retired is not None:
        shutil.rmtree(retired, ignore_errors=True)


def _retire(folder: Path) -> Path:
    """Give a folder a hidden name, under which it may be removed file by file."""
    retired = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    os.replace(folder, retired)
    return retired


@dataclass(frozen=True)
class Snapshot:
    """A run after `step` steps, copied to the host.

    Attributes:
        step: number of steps done.
        files: tensors of a checkpoint's files, by file and name.
        param_groups: options of each optimiser's groups.
        copies: the run's small files.
    """

    step: int
    files: dict[str, dict[str, Tensor]]
    param_groups: list[list[dict[str, Any]]]
    copies: dict[str, bytes]


def take_snapshot(
    step: int,
    task: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: WeightAverage | None = None,
    copies: Mapping[str, bytes] | None = None,
) -> Snapshot:
    """Copy everything a checkpoint holds, so that training may go on while it is written.

    Args:
        step: number of steps done.
        task: its trainable parameters and buffers are copied.
        optimizers: of the run.
        average: of the weights, if one is kept.
        copies: the run's small files.
    """
    files = {WEIGHTS: trained_state(task)}
    if average is not None:
        files[AVERAGE] = average.state()

    # An optimiser's state has a name per parameter and kind, as `3.exp_avg`.
    groups = []
    for i, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        tensors = {}
        for index, entry in state["state"].items():
            for name, value in entry.items():
                tensors[f"{index}.{name}"] = value
        files[f"optimizer_{i}.safetensors"] = tensors
        groups.append(state["param_groups"])

    on_host = {}
    for file, tensors in files.items():
        on_host[file] = {name: _host_copy(value) for name, value in tensors.items()}
    return Snapshot(step, on_host, groups, dict(copies or {}))


def save_checkpoint(folder: Path, snapshot: Snapshot, keep: int) -> Path:
    """Write `folder/step_N` and remove all but the `keep` newest checkpoints up to it.

    Raises:
        CheckpointError: it could not be written; the older ones are all there.
    """

    # The state goes last: it has the checksums of all the others.
    def write(partial: Path) -> None:
        for name, tensors in snapshot.files.items():
            save_tensors(tensors, partial / name)
        for name, data in snapshot.copies.items():
            (partial / name).write_bytes(data)
        names = (*snapshot.files, *snapshot.copies)
        state = {
            "step": snapshot.step,
            "param_groups": snapshot.param_groups,
            "sha256": {name: _digest(partial / name) for name in names},
        }
        (partial / STATE).write_text(seal(state))

    checkpoint = folder / f"step_{snapshot.step}"
    write_folder(checkpoint, write)

    # Later ones were passed over as damaged when this run resumed: they must not take the new one's place.
    found = list_checkpoints(folder)
    earlier = [old for old in found if step_of(old) <= snapshot.step]
    later = [old for old in found if step_of(old) > snapshot.step]
    for old in [*earlier[:-keep], *later]:
        shutil.rmtree(_retire(old), ignore_errors=True)
    return checkpoint


class CheckpointWriter:
    """A thread that writes checkpoints one at a time. A step waits for the copy, not for the disk.

    Args:
        folder: of the checkpoints.
        keep: number of checkpoints that stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._running: Future[Path] | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Start to write, once the checkpoint before is finished."""
        self.wait()
        self._running = self._thread.submit(save_checkpoint, self.folder, snapshot, self.keep)

    def wait(self) -> None:
        """Return when everything is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def check(self) -> None:
        """Raise what went wrong, if anything has by now, without waiting."""
        if self._running is not None and self._running.done():
            self.wait()


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints in `folder`, oldest first. Other names (`step_15 (copy)`) are none."""
    found = [path for path in folder.glob("step_*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the number of steps done, by a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step_"))


def newest_copies(folder: Path) -> tuple[Path | None, dict[str, bytes]]:
    """Return the newest checkpoint whose state is sound, and its sound copies of the run's small files.

    Tensors are not verified, since the checkpoints of a folder are of one run.
    """
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            digests = read_state(checkpoint)["sha256"]
        except (OSError, ValueError):
            continue
        return checkpoint, _sound_copies(checkpoint, digests)
    return None, {}


def copies_of(checkpoint: Path) -> dict[str, bytes]:
    """Return a verified checkpoint's copies of the run's small files, by name."""
    return _sound_copies(checkpoint, read_state(checkpoint)["sha256"])


def _sound_copies(checkpoint: Path, digests: Mapping[str, str]) -> dict[str, bytes]:
    copies = {}
    for name in KEPT:
        path = checkpoint / name
        if name in digests and path.is_file() and _digest(path) == digests[name]:
            copies[name] = path.read_bytes()
    return copies


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's step, options and checksums.

    Raises:
        OSError, ValueError: it cannot be read, or is not what was written.
    """
    data = (checkpoint / STATE).read_bytes()
    try:
        state = unseal(data)
    except ValueError as error:
        # Earlier versions wrote no checksum of the state itself.
        state = json.loads(data.decode())
        if not isinstance(state, dict) or set(state) != {"step", "param_groups", "sha256"}:
            raise ValueError(f"{STATE}: {error}") from None
    if state["step"] != step_of(checkpoint):
        raise ValueError(f"{STATE} is of step {state['step']}")
    return state


def verify(checkpoint: Path) -> None:
    """Compare a checkpoint's tensors with their checksums. Damage to a copy of a small file costs only that copy.

    Raises:
        CheckpointError: one is missing or differs.
    """
    try:
        digests = read_state(checkpoint)["sha256"]
        for name, digest in digests.items():
            if name not in KEPT and _digest(checkpoint / name) != digest:
                raise CheckpointError(
                    f"checkpoint {checkpoint} is damaged: {name} does not match its checksum"
                )
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: {error}") from None


def trained_state(task: nn.Module) -> dict[str, Tensor]:
    """Return trainable and averaged parameters and all buffers (statistics of a normalisation, say), by name."""
    averaged = tuple(getattr(task, "averaged", ()))
    frozen = {
        name
        for name, parameter in task.named_parameters()
        if not parameter.requires_grad and not name.startswith(averaged)
    }
    return {name: tensor for name, tensor in task.state_dict().items() if name not in frozen}


def _host_copy(
    tensor: Float[Tensor, "..."] | Int[Tensor, "..."],
) -> Float[Tensor, "..."] | Int[Tensor, "..."]:
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
