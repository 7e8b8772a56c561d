"""How a run uses its machine, and which preset of configs/hardware fits the one at hand."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
MIN_FREE_OF_GPU80 = 60 * GIB
"""Free memory from which `gpu80` is picked: an 80 GB card that little else uses."""


@dataclass
class HardwareConfig:
    """How a run uses its machine (`hardware=cpu|gpu24|gpu80|auto` sets all of it).

    Nothing here changes what is learned. Tolerances on the losses are in docs/training.md and tested.
    """

    name: str = "cpu"
    max_micro_batch: int | None = None
    """Samples a process computes at once, at most, where `train.micro_batch_size` is null; null: all of its share."""
    channels_last: bool = False
    """Convolutions in the memory layout that tensor cores read."""
    sdpa: bool = True
    """Fused attention; false: the plain products and softmax, which keep the attention matrix."""
    one_token_attention: bool = True
    """Cross-attention to a single token as the constant it is; false: queries, keys and a softmax over one."""
    fused_adamw: bool = False
    """AdamW in one kernel."""
    compile_blocks: bool = False
    """torch.compile, each repeated block by itself: compiled once a shape rather than once a network."""
    checkpointing: str = "none"
    """`blocks`: activations inside a block are computed again in the backward pass instead of kept."""


def detect_hardware() -> str:
    """`cpu`, `gpu24` or `gpu80`, by the memory that is free on this process's GPU."""
    drivers = (shutil.which("nvidia-smi"), Path("/dev/nvidiactl").exists(), Path("/dev/kfd").exists())
    if not any(drivers):
        return "cpu"  # without importing torch, so that a typo on the command line is refused at once
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    free, _ = torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", "0")))
    return "gpu80" if free >= MIN_FREE_OF_GPU80 else "gpu24"
