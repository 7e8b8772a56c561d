"""How much memory a step needs: by count before it, by measure after it; and what to do where it is not there."""

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from diffrestorer.config.hardware_presets import GIB, NEEDED
from diffrestorer.config.schema import TrainConfig


@dataclass
class SavedBytes:
    """Bytes that a forward pass keeps for its backward pass."""

    total: int = 0


@contextmanager
def count_saved_bytes(module: nn.Module) -> Iterator[SavedBytes]:
    """Counts what autograd saves within it: every storage once, a module's parameters and buffers not at all.

    On a GPU it is what the allocator has given out meanwhile, which compiled blocks do not hide.
    """
    saved = SavedBytes()
    device = next(module.parameters()).device
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        yield saved
        saved.total = torch.cuda.memory_allocated(device) - before
        return
    seen = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    alive: list[Any] = []  # keeps identities from being given out twice

    def pack(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:  # not its address: tensors without data, of FakeTensorMode, have none
            seen.add(storage._cdata)
            alive.append(tensor.detach())
            saved.total += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
    alive.clear()


@dataclass(frozen=True)
class MemoryCount:
    """Bytes of a process, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations

    def __str__(self) -> str:
        parts = {name: value for name, value in vars(self).items() if value}
        return (
            " + ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items()) + f" = {self.total / GIB:.2f} GiB"
        )


def count_memory(task: nn.Module, averages: bool, activations: int) -> MemoryCount:
    """What a task's step holds with AdamW, whose two moments are as large as the trainable weights."""
    size = lambda tensors: sum(tensor.numel() * tensor.element_size() for tensor in tensors)  # noqa: E731
    trained = size(parameter for parameter in task.parameters() if parameter.requires_grad)
    weights = size((*task.parameters(), *task.buffers()))
    return MemoryCount(weights, trained, 2 * trained, trained if averages else 0, activations)


def peak_memory(device: torch.device) -> int:
    """Peak bytes so far: allocated on a GPU; on a CPU the process's resident set, libraries included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def explain_out_of_memory(settings: TrainConfig, micro_batch_size: int, processes: int) -> Iterator[None]:
    """Turns an allocator's failure into a sentence that says which preset to take.

    Raises:
        ValueError: in place of the failure.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in text:
            raise
        advice = " or ".join(_smaller(settings, micro_batch_size)) or (
            f"more processes (now {processes}), a smaller data.size or a larger device"
        )
        reason = text.splitlines()[0].split("]", 1)[-1].strip() if text else "the allocator gave up"
        raise ValueError(f"out of memory ({reason}): take {advice}; the losses stay the same") from None


def _smaller(settings: TrainConfig, micro_batch_size: int) -> Sequence[str]:
    advice = []
    smaller_presets = dict(pairwise(NEEDED))
    if settings.hardware.name in smaller_presets:
        advice.append(f"hardware={smaller_presets[settings.hardware.name]}")
    elif settings.hardware.checkpointing == "none":
        advice.append("train.hardware.checkpointing=blocks")
    if micro_batch_size > 1:
        smaller = max(n for n in range(1, micro_batch_size) if micro_batch_size % n == 0)
        advice.append(f"train.micro_batch_size={smaller} (now {micro_batch_size})")
    return advice
