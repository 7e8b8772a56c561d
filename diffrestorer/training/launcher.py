"""The processes of a run and its Accelerator. What a launcher asks for is used, or refused in a sentence."""

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    broadcast_object_list,
)
from torch import distributed

UNUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""Switches of `accelerate launch` for engines that a run does not use."""

PATIENCE = timedelta(days=30)
"""How long a process whose share is done may wait for the others, where shares differ."""

Result = TypeVar("Result")


def join_processes(device: str = "auto", patience: timedelta | None = None) -> PartialState:
    """Return this process among those that a launcher started. They meet at the first call, or in `make_accelerator`.

    Args:
        device: `cpu` leaves GPUs alone.
        patience: after which a process that waits for the others gives up; None is PyTorch's, ten minutes on GPUs.
    """
    _meet_again()
    options = {} if patience is None else {"timeout": patience}

    # Without `cpu=True` torchrun's ranks are ignored on a machine without a GPU, and each process believes to be alone.
    return PartialState(cpu=device == "cpu" or not torch.accelerator.is_available(), **options)


def make_accelerator(mixed_precision: str) -> Accelerator:
    """Return the run's Accelerator.

    Args:
        mixed_precision: `train.mixed_precision`.

    Raises:
        ValueError: the launcher asks for something that the run would not do.
    """
    check_launcher(os.environ, mixed_precision)
    _meet_again()

    # An earlier run of this process may have had another precision. The process group stays.
    AcceleratorState._reset_state()

    # `cpu`: as in `join_processes`. The plugin keeps it from dividing the losses a second time: the loop does that.
    # Gradients lie in the buckets that are sent, instead of beside them.
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


def restarts() -> int:
    """Return how often torchrun has started this run again after a process of it ended (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _meet_again() -> None:
    """Join the process group of a run that torchrun has started again.

    The launcher's store outlives the first processes. Their addresses in it would be taken for those of the new ones,
    which then wait for ever (seen with torch 2.15), so that each attempt looks below a prefix of its own.
    """
    agents_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if restarts() == 0 or not agents_store or distributed.is_initialized():
        return
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(address, port, count, is_master=False)  # type: ignore[attr-defined]
    distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=distributed.PrefixStore(f"attempt {restarts()}", store),  # type: ignore[attr-defined]
        rank=rank,
        world_size=count,
    )


def check_launcher(environment: Mapping[str, str], mixed_precision: str) -> None:
    """Refuse what `accelerate launch`, or its variables, ask for in vain.

    Args:
        environment: variables of the process.
        mixed_precision: `train.mixed_precision`.

    Raises:
        ValueError: naming the option and the key that serves instead.
    """
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", ""):
        raise ValueError(
            f"the launcher asks for {steps} gradient accumulation steps (ACCELERATE_GRADIENT_ACCUMULATION_STEPS), but "
            "they follow from train.global_batch_size and train.micro_batch_size: leave it out and set these"
        )

    # The launcher sets `no` where nobody asked for anything.
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", "", mixed_precision):
        raise ValueError(
            f"the launcher asks for mixed precision {precision} (ACCELERATE_MIXED_PRECISION), the run for "
            f"train.mixed_precision={mixed_precision}: give train.mixed_precision, and leave the launcher's out"
        )

    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend not in ("no", ""):
        raise ValueError(
            f"the launcher asks for torch.compile with {backend} (ACCELERATE_DYNAMO_BACKEND): leave it out and give "
            "train.hardware.compile_blocks=true"
        )
    for name, engine in UNUSED.items():
        if environment.get(name, "false").lower() in ("true", "1", "yes", "on", "y", "t"):
            raise ValueError(
                f"the launcher asks for {engine} ({name}), which training here does not use: leave it out"
            )

    # For several processes on a machine without several GPUs it sets the address of a meeting and starts one process.
    launched = "ACCELERATE_MIXED_PRECISION" in environment
    if launched and "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment:
        raise ValueError(
            "accelerate launch was asked for several processes and started one, as it does without several GPUs: take "
            "torchrun --nproc_per_node NUMBER SCRIPT, or --num_processes 1"
        )


def on_main_process(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """Run `action` on the main process and return its result on every process.

    Raises:
        ValueError: the action raised it; on the main process only.
        SystemExit: with status 2 on the others, so that a sentence stands there once.
    """
    if accelerator.num_processes == 1:
        return action()

    # The others must learn of a failure, too, or they would wait for ever.
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome = ["done", action()]
        except (ValueError, OSError) as error:
            broadcast_object_list(["failed", None])
            raise error
    broadcast_object_list(outcome)
    if outcome[0] == "failed":
        raise SystemExit(2)
    return outcome[1]
