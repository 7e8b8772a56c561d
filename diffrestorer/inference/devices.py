"""Device, precision and memory layout of the networks."""

import torch
from torch import nn

from diffrestorer.inference.choices import Precision
from diffrestorer.inference.memory import keep_freed_memory


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of a name; `auto` is a GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type of the networks' weights and features on a device."""
    if precision != "auto":
        return torch.float32 if precision == "float32" else torch.bfloat16
    return torch.bfloat16 if multiplies_bfloat16_fast(device) else torch.float32


def multiplies_bfloat16_fast(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 numbers faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)

    # AMX alone decides. One core with AMX ran 3x3 convolutions 7 times as fast in bfloat16 as in float32, and mini 1.9
    # times. A CPU with AVX512-BF16 but without AMX was slower: 84 to 87 GFLOP/s against 115 to 170 in float32.
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def lay_out(networks: nn.Module) -> None:
    """Lay the weights of convolutions channels last, as they run fastest on GPUs and CPUs.

    With channels last, a convolution reads its input as it lies. Otherwise it reorders its input and output. Images
    differ by rounding only (3e-6 of 1).
    """
    networks.to(memory_format=torch.channels_last)


def place(networks: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move networks to a device, their weights laid out as its convolutions run fastest."""
    networks.to(device, dtype)
    lay_out(networks)
    if device.type == "cpu":
        keep_freed_memory()
