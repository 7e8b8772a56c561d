"""G14 of benchmarks/training.py: mini's training steps in bf16 beside the same in float32, on a CPU."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from plain_training import Step, prepare_pairs

from diffrestorer.config.composition import load
from diffrestorer.config.schema import DecoderConfig, Stage1Config
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.task import Task

SIZE, BATCH_SIZE = 256, 4


def processor_flags() -> list[str]:
    """The matrix instructions of this CPU that bf16 may use."""
    flags = {
        "amx_tile": torch.cpu._is_amx_tile_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
    }
    return [name for name, there in flags.items() if there]


def contestants(folder: Path, step_of: Callable[..., Step]) -> dict[str, tuple[Step, Step]]:
    """Return for each of mini's stages a step in float32 and the same in bf16, from the same weights.

    Args:
        step_of: makes a step of (task, pairs, batch size, device, autocast).
    """
    pairs = prepare_pairs(folder / "data", SIZE, BATCH_SIZE)
    overrides = [
        "model=mini",
        "data=manifest",
        f"data.root={pairs.root}",
        f"data.size={SIZE}",
        "hardware=cpu",
    ]
    torch.manual_seed(0)
    tasks: dict[str, Task] = {
        "stage 1": Stage1Task(load("train_stage1", Stage1Config, [*overrides, "init=mini"])),
        "decoder": DecoderTask(
            load("train_decoder", DecoderConfig, [*overrides, "stage1=mini", "init=mini"])
        ),
    }

    def totals(task: Task, autocast: Callable[[], Any]) -> Step:
        step = step_of(task, pairs, BATCH_SIZE, torch.device("cpu"), autocast)
        return lambda number: {"total": step(number)["total"]}

    bf16 = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    return {
        name: (totals(copy.deepcopy(task), nullcontext), totals(task, bf16))
        for name, task in tasks.items()
    }


def bf16_table(results: dict[str, Any]) -> list[str]:
    """Return the lines of the table in Markdown."""
    flags = " and ".join(results["processor_flags"]) or "neither amx_tile nor avx512_bf16"
    lines = [
        "",
        f"| G14: mini, batch {BATCH_SIZE} at {SIZE}x{SIZE}, bf16 against float32, {results['threads']} thread(s) of a "
        f"CPU with {flags} | speed-up | goal, with AMX | totals of the first step differ by |",
        "|---|---|---|---|",
    ]
    for name in ("stage 1", "decoder"):
        row = results[name]
        spread = f"{row['ratio']:.2f}x ({min(row['ratios']):.2f} - {max(row['ratios']):.2f})"
        lines.append(f"| {name} | {spread} | >= 1.5x | {row['parity_first_step']:.1e} |")
    return lines
