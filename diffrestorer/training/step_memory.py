"""The memory of a training step: counted before it, measured after it, and advice if there is not enough."""

import logging
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from diffrestorer.config.hardware_presets import GIB, NEEDED, HardwareConfig


@dataclass
class SavedBytes:
    """Number of bytes that a forward pass keeps for its backward pass."""

    total: int = 0


@contextmanager
def count_saved_bytes(module: nn.Module) -> Iterator[SavedBytes]:
    """Count what autograd saves while the context lasts: each storage once, parameters and buffers not at all.

    On a GPU the count is what the allocator has given out meanwhile, which compiled blocks do not hide.
    """
    saved = SavedBytes()
    device = next(module.parameters()).device

    # On a GPU the allocator knows.
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        yield saved
        saved.total = torch.cuda.memory_allocated(device) - before
        return

    # On a CPU autograd reports each tensor that it saves. A storage's identity and not its address tells storages
    # apart, since FakeTensorMode's tensors have no data and no address. What is counted is kept alive, or an identity
    # could be given out twice.
    own = (*module.parameters(), *module.buffers())
    seen = {tensor.untyped_storage()._cdata for tensor in own}
    alive: list[Any] = []

    def pack(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            alive.append(tensor.detach())
            saved.total += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
    alive.clear()


@dataclass(frozen=True)
class MemoryCount:
    """Bytes of a process by purpose."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """Return the sum in bytes."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations

    def __str__(self) -> str:
        parts = [f"{name} {value / GIB:.2f}" for name, value in vars(self).items() if value]
        return f"{' + '.join(parts)} = {self.total / GIB:.2f} GiB"


def count_memory(task: nn.Module, averages: bool, activations: int, shards: int = 1) -> MemoryCount:
    """Count what a step with AdamW holds. AdamW's two moments are each as large as the trainable weights.

    Args:
        task: its parameters and buffers.
        averages: whether an average of the weights is kept.
        activations: bytes that the forward pass keeps.
        shards: processes among which the optimiser's state is divided.
    """
    trained = _num_bytes(parameter for parameter in task.parameters() if parameter.requires_grad)
    return MemoryCount(
        weights=_num_bytes((*task.parameters(), *task.buffers())),
        gradients=trained,
        optimizer=2 * trained // shards,
        average=trained if averages else 0,
        activations=activations,
    )


@contextmanager
def log_expected_memory(
    task: nn.Module, averages: bool, shards: int, micro_batch_size: int, log: logging.Logger
) -> Iterator[None]:
    """Log the memory of a step by purpose, counted in the forward pass that runs while the context lasts.

    Args:
        task: that trains.
        averages: whether an average of the weights is kept.
        shards: processes among which the optimiser's state is divided.
        micro_batch_size: samples of that forward pass.
        log: of the run.
    """
    with count_saved_bytes(task) as saved:
        yield
    expected = count_memory(task, averages, saved.total, shards)
    log.info(
        "memory expected for micro batches of %d: %s, and the libraries", micro_batch_size, expected
    )


def _num_bytes(tensors: Iterable[Shaped[Tensor, "..."]]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_memory(device: torch.device) -> int:
    """Return the peak bytes so far: allocated on a GPU; on a CPU the process's resident set, libraries included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def explain_out_of_memory(
    hardware: HardwareConfig, micro_batch_size: int, processes: int
) -> Iterator[None]:
    """Turn an allocator's failure into a sentence that says which preset to take.

    Args:
        hardware: the run's preset.
        micro_batch_size: samples that a process computes at once.
        processes: of the run.

    Raises:
        ValueError: in place of the failure.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)

        # A CPU's allocator raises a plain RuntimeError.
        if (
            not isinstance(error, torch.OutOfMemoryError | MemoryError)
            and "allocate memory" not in text
        ):
            raise

        advice = " or ".join(_smaller(hardware, micro_batch_size, processes))
        if not advice:
            advice = f"more processes (now {processes}), a smaller data.size or a larger device"

        # The first line, without the place in PyTorch's sources before it.
        reason = text.splitlines()[0].split("]", 1)[-1].strip() if text else "the allocator gave up"
        raise ValueError(f"out of memory ({reason}): take {advice}") from None


def _smaller(hardware: HardwareConfig, micro_batch_size: int, processes: int) -> Sequence[str]:
    """Return the settings, as on the command line, that need less memory."""
    advice = []
    smaller_presets = dict(pairwise(NEEDED))
    if hardware.name in smaller_presets:
        advice.append(f"hardware={smaller_presets[hardware.name]}")
    elif hardware.checkpointing == "none":
        advice.append("train.hardware.checkpointing=blocks")
    if processes > 1 and not hardware.shard_optimizer:
        advice.append("train.hardware.shard_optimizer=true")
    if micro_batch_size > 1:
        smaller = max(n for n in range(1, micro_batch_size) if micro_batch_size % n == 0)
        advice.append(f"train.micro_batch_size={smaller} (now {micro_batch_size})")
    return advice
