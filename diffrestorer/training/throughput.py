"""Operations per second of a run on GPUs, and their share of what the GPU can do (MFU)."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from diffrestorer.data.pairs import PairBatch
from diffrestorer.training.task import Task

COUNTED_ON = ("cuda",)
"""Types of device on which a run counts. It costs a pass at each start, and the peak of a CPU is not known."""

PEAKS: dict[str, tuple[float | None, float, float]] = {
    r"NVIDIA A10": (125.0, 62.5, 31.2),
    r"NVIDIA A100-(SXM4|PCIE)-[48]0GB|NVIDIA A100 80GB PCIe": (312.0, 156.0, 19.5),
    r"NVIDIA H100 PCIe": (756.0, 378.0, 51.0),
    r"NVIDIA H[12]00 NVL": (835.0, 417.0, 60.0),
    r"NVIDIA H100 80GB HBM3|NVIDIA H200": (989.0, 494.0, 67.0),
    r"NVIDIA L4": (121.0, 60.0, 30.3),
    r"NVIDIA L40S": (362.0, 183.0, 91.6),
    r"NVIDIA GeForce RTX 3090": (71.0, 35.6, 35.6),
    r"NVIDIA GeForce RTX 4090": (165.2, 82.6, 82.6),
    r"Tesla T4": (None, 8.1, 8.1),
    r"Tesla V100-PCIE-(16|32)GB": (None, 14.0, 14.0),
    r"Tesla V100-SXM2-(16|32)GB": (None, 15.7, 15.7),
}
"""TFLOP/s in bf16, TF32 and float32 by a pattern of a GPU's whole name: dense, with sums in float32. Sources: NVIDIA's
data sheets; for the RTX cards its white papers on GA102 and AD102. Cards before Ampere have neither bf16 nor TF32."""


def peak_tflops(name: str, precision: str) -> float | None:
    """Return the peak of a GPU in TFLOP/s for `bf16`, `tf32` or `fp32`; None: it is not in the table."""
    for pattern, rates in PEAKS.items():
        if re.fullmatch(pattern, name):
            return rates[("bf16", "tf32", "fp32").index(precision)]
    return None


class _Counter(TorchDispatchMode):
    """The sum of torch's own formulas over the operators that run. Recomputation is work, but not the model's."""

    total = 0
    in_backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # One process counts, and must not begin an exchange that the others don't take part in.
        if "c10d" in func.namespace:
            raise RuntimeError("the forward pass exchanges tensors between processes")
        kwargs = kwargs or {}
        out = func(*args, **kwargs)

        # A backward pass computes without gradients, but for the blocks that it runs again.
        recomputes = self.in_backward and torch.is_grad_enabled()
        if func.overloadpacket in flop_registry and not recomputes:
            self.total += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        return out


def count_operations(task: Task, batch: PairBatch) -> int:
    """Return the floating-point operations of a forward and a backward pass that leaves no trace in the task.

    Convolutions, products and attention count, of what trains and of what is frozen. Compiled blocks run eagerly.
    """
    counter = _Counter()  # type: ignore[no-untyped-call]
    with _undone(task), torch.compiler.set_stance("force_eager"), counter:
        total = task(batch).total

        # Gradients that are returned, not accumulated, start no exchange between processes.
        counter.in_backward = True
        torch.autograd.grad(total, [p for p in task.parameters() if p.requires_grad], allow_unused=True)
    return counter.total


@contextmanager
def _undone(task: Task) -> Iterator[None]:
    """Restore what a forward pass changes: buffers, parameters that follow others, the generators' states."""
    prefixes = tuple(task.averaged)
    changing = [p for name, p in task.named_parameters() if name.startswith(prefixes)]
    kept = [(tensor, tensor.detach().clone()) for tensor in (*task.buffers(), *changing)]
    try:
        with torch.random.fork_rng({p.get_device() for p in task.parameters() if p.is_cuda}):
            yield
    finally:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)


def measure_throughput(
    task: Task, batch: PairBatch, accelerator: Accelerator, log: logging.Logger
) -> dict[str, float]:
    """Return `tflops_per_gpu` and, where the peak is known, `mfu_percent` of a run at one sample per second.

    The main process counts on a GPU. There is nothing elsewhere, and where counting fails, as the log then says.

    Args:
        task: prepared by the accelerator, so that its forward pass has the run's precision.
        batch: on the device.
        accelerator: of the run.
        log: of the run.
    """
    device = accelerator.device
    if device.type not in COUNTED_ON or not accelerator.is_main_process:
        return {}
    try:
        tflop = count_operations(task, batch) / len(batch.positions) / 1e12
    except Exception as error:  # a run must not end because of a number in its log
        log.info("TFLOP/s are not counted: %s", str(error).partition("\n")[0] or type(error).__name__)
        return {}
    finally:
        # An eager pass may need more memory than a step. The log reports the steps'.
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    # In float32, torch lets convolutions use TF32. The faster rate is then the peak.
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    float32 = "tf32" if torch.backends.cudnn.allow_tf32 else "fp32"
    precision = "bf16" if accelerator.mixed_precision == "bf16" else float32
    peak = peak_tflops(name, precision)
    log.info("%.3g TFLOP per sample; peak of %s in %s: %s TFLOP/s", tflop, name, precision, peak)
    share = tflop / accelerator.num_processes
    return {"tflops_per_gpu": share} | ({"mfu_percent": 100 * share / peak} if peak else {})
