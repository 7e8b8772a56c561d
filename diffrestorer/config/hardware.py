"""Which preset of configs/hardware fits the machine."""

import os
import shutil
from pathlib import Path

GIB = 2**30
MIN_FREE_OF_GPU80 = 60 * GIB
"""Free memory from which `gpu80` is picked: an 80 GB card that little else uses."""


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
