"""Which engine runs the networks, and in which precision: the one place where speed is chosen."""

from functools import partial
from typing import Literal, get_args

import torch

from diffrestorer.inference.engines.engine import Engine
from diffrestorer.inference.memory import keep_freed_memory
from diffrestorer.models.restorer import Restorer

EngineName = Literal["eager", "compile", "graphs", "openvino"]
"""`eager`: PyTorch as it is. `compile`: the denoising step through torch.compile. `graphs`: and in CUDA graphs, for
many images of one size on a GPU. `openvino`: for CPUs, an optional extra. All give the same images but for rounding."""


def open_engine(name: EngineName, restorer: Restorer, device: torch.device) -> Engine:
    """The engine of a name, for networks on `device`.

    Raises:
        ValueError: there is no such engine, it can't run there, or it is not installed.
    """
    if name not in get_args(EngineName):
        raise ValueError(f"engine must be one of {', '.join(get_args(EngineName))}, not {name!r}")
    needed = {"graphs": "cuda", "openvino": "cpu"}.get(name, device.type)
    if device.type != needed:
        raise ValueError(f"engine {name} runs on {needed} devices, not on {device}: take eager or compile there")
    if name == "openvino":
        from diffrestorer.inference.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(restorer)
    if name == "compile":
        return Engine(restorer, partial(torch.compile, fullgraph=True))
    if name == "graphs":
        return Engine(restorer, partial(torch.compile, fullgraph=True, dynamic=False, mode="reduce-overhead"))
    return Engine(restorer)


def place(restorer: Restorer, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Moves the networks to a device, in what is fast there: bfloat16 and channels last on GPUs, float32 on CPUs.

    Args:
        dtype: overrides the precision.
    """
    gpu = device.type == "cuda"
    restorer.to(device, dtype or (torch.bfloat16 if gpu else torch.float32))
    if gpu:
        restorer.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        keep_freed_memory()
