"""The precision that models are evaluated in: the type that networks hold, and how GPUs multiply it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Value of `dtype` -> the type that the networks hold."""


def check_precision(name: str, device: torch.device) -> None:
    """Refuse a precision that the device does not have.

    Raises:
        ValueError: `tf32` elsewhere than on a GPU.
    """
    if name == "tf32" and device.type != "cuda":
        raise ValueError(
            f"dtype=tf32 is a mode of NVIDIA's GPUs, there is none on {device.type}: take dtype=float32"
        )


@contextmanager
def gpu_products(name: str) -> Iterator[None]:
    """Let GPUs multiply float32 numbers in TF32 for `tf32`, and with all their digits for any other precision.

    PyTorch's own default is neither: TF32 in cuDNN's convolutions, float32 in matrix products. On CPUs nothing changes.
    """
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = name == "tf32"
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def place_network(network: nn.Module, device: torch.device) -> None:
    """Move a network to a device; on a GPU its convolutions' weights lie channels last, the fastest layout there."""
    network.to(device)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)


def precision_of(name: str, dtype: torch.dtype) -> str:
    """Return the precision that a network of `dtype` ran in, as its outputs and tables record it."""
    held = str(dtype).removeprefix("torch.")
    return name if name == "tf32" and held == "float32" else held
