"""Use of the machine by a run, and the preset of configs/hardware that fits the one at hand."""

import functools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from diffrestorer.config.options import option

GIB = 2**30

LIBRARIES = 4 * GIB
"""Bytes of a process beside its tensors: CUDA's context, workspaces of kernels, fragments between blocks."""

NEEDED = {
    "gpu80": {"bf16": 58.1, "no": 70.8},
    "gpu40": {"bf16": 32.6, "no": 38.9},
    "gpu24": {"bf16": 18.1, "no": 20.2},
}
"""GiB of tensors that a step of sd15 holds by preset, largest first, and precision; counted by
benchmarks/training_memory.py, the larger of both stages at the preset's micro batch."""


@dataclass
class HardwareConfig:
    """Use of the machine (`hardware=cpu|gpu24|gpu40|gpu80|auto` sets all of it).

    Nothing here changes what is learned. Tolerances on the losses are in docs/training.md and tested.
    """

    name: str = "cpu"
    """Name of the preset in configs/hardware/."""
    max_micro_batch: int | None = option(None, ge=1)
    """Samples a process computes at once, at most, where `train.micro_batch_size` is null; null: all of its share."""
    channels_last: bool = False
    """Compute convolutions in the memory layout that tensor cores read."""
    sdpa: bool = True
    """Use fused attention; false: the plain products and softmax, which keep the attention matrix."""
    one_token_attention: bool = True
    """Compute cross-attention to a single token as the constant it is; false: queries, keys and a softmax over one."""
    fused_adamw: bool = False
    """Run AdamW in one kernel."""
    shard_optimizer: bool = False
    """Divide the optimiser's state among the processes of a run (ZeRO-1); with one process nothing changes."""
    compile_blocks: bool = False
    """Compile each repeated block by itself: once per shape rather than once per network."""
    checkpointing: str = option("none", choices=("none", "blocks"))
    """`blocks` computes activations inside a block again in the backward pass instead of keeping them."""


@dataclass(frozen=True)
class Detected:
    """The preset that fits this process's device, and the precision if not the preset's own."""

    preset: str
    mixed_precision: str | None = None


def choose_preset(free: int, has_bf16: bool) -> Detected:
    """Return the largest preset whose counted need and the libraries fit; the smallest where none does.

    A GPU without bf16 (before NVIDIA's Ampere: T4, V100) computes in float32, whose activations are larger.

    Args:
        free: bytes.
    """
    precision = "bf16" if has_bf16 else "no"
    fitting = [name for name, gib in NEEDED.items() if gib[precision] * GIB + LIBRARIES <= free]
    return Detected([*fitting, list(NEEDED)[-1]][0], None if has_bf16 else precision)


@functools.cache
def detect_hardware() -> Detected:
    """Return `cpu`, or the GPU preset for the memory that is free on this process's GPU at the first call."""
    drivers = (shutil.which("nvidia-smi"), Path("/dev/nvidiactl").exists(), Path("/dev/kfd").exists())
    if not any(drivers):
        return Detected(
            "cpu"
        )  # without importing torch, so that a typo on the command line is refused at once
    import torch

    if not torch.cuda.is_available():
        return Detected("cpu")
    # As Accelerate counts: a scheduler may show each process one GPU only, whatever its local rank.
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    free, _ = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return choose_preset(free, has_bf16)
