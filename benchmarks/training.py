"""Training steps of ours beside plain ones: stage 1 (G4, G5), decoder (G6), and the loop's own share of a step.

    python benchmarks/training.py       # table into docs/performance.md, raw numbers into results/training.json

Everything runs side by side in one process: same weights, same pairs, same noise; a round is a step of each, in turn.
The networks have sd15's depth at a quarter of its widths and of its attention heads, random weights, on 256x256 pairs,
unless told otherwise.

Against: stage 1 in the shape of diffusers' train_controlnet example at its best flags for the device (SDPA, gradients
set to none): every step encodes the clean image by the VAE and the degraded one by CLIP, images are made float on the
host. The decoder in the shape of GAN loops that give each optimiser a forward pass of its own.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from cpu_precision import bf16_table, contestants, processor_flags
from plain_training import Step, batch_of, plain_decoder, plain_stage1, prepare_pairs
from sections import PAGE, write_section

from diffrestorer.config.composition import load
from diffrestorer.config.hardware_presets import HardwareConfig
from diffrestorer.config.schema import DecoderConfig, Stage1Config
from diffrestorer.data.pairs import PairBatch
from diffrestorer.training import loop
from diffrestorer.training.cache import open_cache
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.hardware import apply_hardware
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.step_memory import count_saved_bytes
from diffrestorer.training.stopping import StopSignal
from diffrestorer.training.task import Task

QUARTER_WIDTHS = [
    "model.vae.block_out_channels=[32,64,128,128]",
    "model.image_encoder.vision_cfg.width=256",
    "model.image_encoder.embed_dim=192",
    "model.prompt_processor.clip_dim=192",
    "model.prompt_processor.semantic_dim=192",
    "model.prompt_processor.hidden_dim=128",
    "model.prompt_processor.degradation_dim=64",
    "model.unet.block_out_channels=[80,160,320,320]",
    "model.unet.attention_head_dim=2",  # heads, of 40 channels each as SD 1.5's: 8 would have 10, which no kernel likes
    "model.unet.norm_num_groups=16",
    "model.unet.cross_attention_dim=192",
    "model.control_encoder.block_out_channels=[16,32,64,80]",
    "model.control_encoder.degradation_dim=64",
    "model.control_encoder.norm_num_groups=16",
]
CPU_PRESET = HardwareConfig(fused_adamw=True)
GPU_PRESET = HardwareConfig("gpu80", channels_last=True, fused_adamw=True, compile_blocks=True)


@dataclass
class Contest:
    """One comparison: plain steps, ours, and how often."""

    name: str
    plain: Step
    ours: Step
    rounds: int
    device: torch.device

    def run(self) -> dict[str, Any]:
        """A warm-up each, then rounds in turn: seconds by wall clock and of this process's CPU; how losses differ."""
        times: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
        worst: list[float] = []
        for step in range(self.rounds + 1):
            losses = {}
            for name, run in (("plain", self.plain), ("ours", self.ours)):
                self._synchronise()
                wall, cpu = time.perf_counter(), time.process_time()
                losses[name] = run(step)
                self._synchronise()
                if step:
                    times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            worst.append(
                max(abs(losses["ours"][k] - v) / max(abs(v), 1e-12) for k, v in losses["plain"].items())
            )
        clock = 1 if self.device.type == "cpu" else 0
        ratios = [
            plain[clock] / ours[clock]
            for plain, ours in zip(times["plain"], times["ours"], strict=True)
        ]
        print(f"{self.name}: {statistics.median(ratios):.2f}x ({min(ratios):.2f} - {max(ratios):.2f}), "
              f"first step's losses differ by {worst[0]:.1e}", flush=True)  # fmt: skip
        return {
            "ratio": statistics.median(ratios), "ratios": ratios, "parity_first_step": worst[0], "parity_all": worst,
            **{f"{name}_seconds_wall_cpu": values for name, values in times.items()},
        }  # fmt: skip

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def our_step(task: Task, pairs: Any, size: int, device: torch.device, autocast: Any) -> Step:
    """A step as the loop makes it: the task's losses and the task's optimisers."""
    optimizers = list(task.optimizers())
    batches = [batch_of(pairs, step, size) for step in range(4)]

    def step(number: int) -> dict[str, float]:
        batch = replace(batches[number % 4], step=number).to(device)
        with autocast():
            losses = task(batch)
        losses.total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {name: value.item() for name, value in {**losses.parts, "total": losses.total}.items()}

    step.losses = lambda: task(batches[0].to(device)).total  # type: ignore[attr-defined]
    return step


def with_hardware(task: Task, hardware: HardwareConfig) -> Any:
    """A copy of a task on a preset."""
    task = copy.deepcopy(task)
    task.config = replace(task.config, train=replace(task.config.train, hardware=hardware))  # type: ignore
    apply_hardware(task, hardware, next(task.parameters()).device)
    return task


def saved_bytes(task: Task, step: Any) -> int:
    """Bytes that a forward pass keeps."""
    with count_saved_bytes(task) as saved:
        loss = step.losses()
    loss.backward()
    task.zero_grad(set_to_none=True)
    return saved.total


def loop_share(overrides: list[str], size: int, batch_size: int, steps: int) -> dict[str, float]:
    """What of a whole run of `train` is not spent in forward, backward, optimiser or waiting for data."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = prepare_pairs(Path(folder) / "data", size, batch_size)
        config = load("train_stage1", Stage1Config, [
            *overrides, "data=manifest", f"data.root={pairs.root}", f"data.size={size}", f"train.max_steps={steps}",
            f"train.global_batch_size={batch_size}", "train.num_workers=0", f"output_dir={folder}/run",
        ])  # fmt: skip
        spent: dict[str, float] = {}

        def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **keywords: Any) -> Any:
                started = time.perf_counter()
                try:
                    return function(*arguments, **keywords)
                finally:
                    spent[name] = spent.get(name, 0.0) + time.perf_counter() - started

            return call

        with StopSignal() as stop, loop.Run(Stage1Task, config, Path(folder) / "run", stop) as run:
            run.task.forward = timed("forward", run.task.forward)
            run.accelerator.backward = timed("backward", run.accelerator.backward)
            for optimizer in run.optimizers:
                optimizer.step = timed("optimizer", optimizer.step)
            marks: list[tuple[float, float, float]] = []
            after_step = run._after_step

            def mark(batch: PairBatch) -> None:
                marks.append((time.perf_counter(), sum(spent.values()), run.timed.waited))
                if batch.step + 1 < steps:  # not the end's checkpoint and samples
                    after_step(batch)

            run._after_step, run._finish = mark, lambda: None
            run.to_the_end()
        (start, spent_before, waited_before), (end, spent_after, waited) = marks[0], marks[-1]
        total, work = end - start, spent_after - spent_before + waited - waited_before
        print(f"the loop's own share of a step: {100 * (1 - work / total):.2f}%", flush=True)
        return {"steps": steps, "seconds": total, "seconds_in_work": work, "share": 1 - work / total}


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--widths", choices=["quarter", "sd15"], default="quarter", help="(default: quarter)"
    )
    parser.add_argument(
        "--size", type=int, default=256, help="side of the pairs in pixels (default: 256)"
    )
    parser.add_argument("--batch-size", type=int, default=2, help="(default: 2)")
    parser.add_argument("--rounds", type=int, default=15, help="(default: 15)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--precision", choices=["no", "bf16"], default="no", help="(default: no)")
    parser.add_argument(
        "--machine", help="how the table names it (default: by the number of cores, or the GPU's name)"
    )
    parser.add_argument(
        "--only", choices=["G14"], help="leave the other rows as they were measured before"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "training.json"
    )
    arguments = parser.parse_args()
    overrides = ["model.base=none", "model.perceptual=none"] + (
        QUARTER_WIDTHS if arguments.widths == "quarter" else []
    )
    if arguments.only is None:
        results = {**environment(arguments), **measure(arguments, overrides)}
    else:
        results = json.loads(arguments.output.read_text())
    if arguments.device == "cpu":
        results["G14"] = measure_bf16(arguments.rounds)
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    write_section(PAGE, "training", table(results))


def measure(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """Every comparison in turn."""
    size, batch_size, device = arguments.size, arguments.batch_size, torch.device(arguments.device)
    dtype = torch.bfloat16 if arguments.precision == "bf16" else None
    autocast = lambda: torch.autocast(device.type, dtype, enabled=dtype is not None)  # noqa: E731
    preset = CPU_PRESET if device.type == "cpu" else GPU_PRESET
    rest = (batch_size, device, autocast)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        pairs = prepare_pairs(Path(folder) / "data", size, batch_size)
        overrides = [
            *overrides,
            "data=manifest",
            f"data.root={pairs.root}",
            f"data.size={size}",
            "hardware=cpu",
        ]
        torch.manual_seed(0)
        task = Stage1Task(load("train_stage1", Stage1Config, overrides)).to(device)
        accelerator = Accelerator(cpu=device.type == "cpu")
        logger = loop_logger()
        cached = open_cache(Path(folder) / "cache", task, pairs, accelerator, batch_size, 0, logger)
        variants = {
            "G4 same work": (preset, pairs),
            "G4 cached": (preset, cached),
            "checkpointing=blocks": (replace(preset, checkpointing="blocks"), cached),
        }
        if device.type == "cuda":
            variants["channels_last=false"] = (replace(preset, channels_last=False), cached)
        for name, (hardware, source) in variants.items():
            plain = plain_stage1(copy.deepcopy(task), pairs, *rest)
            ours = our_step(with_hardware(task, hardware), source, *rest)
            results[name] = Contest(name, plain, ours, arguments.rounds, device).run()
            del plain, ours
        plain_task, kept = copy.deepcopy(task), with_hardware(task, preset)
        recomputed = with_hardware(task, replace(preset, checkpointing="blocks"))
        results["G5"] = {
            "plain": saved_bytes(plain_task, plain_stage1(plain_task, pairs, *rest)),
            "ours": saved_bytes(kept, our_step(kept, cached, *rest)),
            "checkpointing=blocks": saved_bytes(recomputed, our_step(recomputed, cached, *rest)),
        }
        print("G5 bytes saved for backward", results["G5"], flush=True)
        del plain_task, kept, recomputed

        task.save_model(Path(folder) / "stage1", torch.float32)
        del task
        decoder_config = load("train_decoder", DecoderConfig, [*overrides, f"stage1={folder}/stage1"])
        decoder = DecoderTask(decoder_config).to(device)
        cached = open_cache(Path(folder) / "cache", decoder, pairs, accelerator, batch_size, 0, logger)
        for name, source in (("G6 without cache", pairs), ("G6", cached)):
            plain = plain_decoder(copy.deepcopy(decoder), pairs, *rest)
            ours = our_step(with_hardware(decoder, preset), source, *rest)
            results[name] = Contest(name, plain, ours, arguments.rounds, device).run()
            del plain, ours
    if device.type == "cpu":
        results["loop"] = loop_share(overrides, size, batch_size, steps=arguments.rounds + 1)
    return results


def measure_bf16(rounds: int) -> dict[str, Any]:
    """Mini's steps, bf16 against float32."""
    with tempfile.TemporaryDirectory() as folder:
        rows: dict[str, Any] = {
            "processor_flags": processor_flags(),
            "threads": torch.get_num_threads(),
        }
        for name, (plain, ours) in contestants(Path(folder), our_step).items():
            rows[name] = Contest(f"G14 {name}", plain, ours, rounds, torch.device("cpu")).run()
        return rows


def loop_logger() -> Any:
    """The training's own log, silent here."""
    import logging

    return logging.getLogger("diffrestorer.training")


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    gpu = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else None
    return {
        "machine": arguments.machine or gpu or f"{os.cpu_count()} CPU cores",
        "widths": arguments.widths,
        "size": arguments.size,
        "batch_size": arguments.batch_size,
        "precision": arguments.precision,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "versions": {
            name: version(name) for name in ("torch", "diffusers", "accelerate", "diffrestorer")
        },
        "git_commit": commit or None,
    }


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    rows = [
        ("G4 stage 1, cached encodings", "G4 cached", ">= 1.4x"),
        ("G4 stage 1, same work (no cache)", "G4 same work", "-"),
        ("stage 1, cached, `channels_last=false`", "channels_last=false", "-"),
        ("stage 1, cached, `checkpointing=blocks`", "checkpointing=blocks", "-"),
        ("G6 decoder, z_0 and CLIP cached, one forward pass", "G6", ">= 1.25x"),
        ("decoder, one forward pass, no cache", "G6 without cache", "-"),
    ]
    clock = "CPU seconds of the process" if "CPU" in results["machine"] else "wall clock"
    lines = [
        f"On {results['machine']}, {results['widths']} widths at full depth (attention heads as wide as SD 1.5's), "
        f"batch {results['batch_size']} at {results['size']}x{results['size']}, precision `{results['precision']}`. "
        f"Speed-up over the plain loop by {clock}: median of the rounds (slowest - fastest). "
        "`python benchmarks/training.py` writes this table.",
        "",
        "| step | speed-up | goal | losses of the first step differ by |",
        "|---|---|---|---|",
    ]
    for label, name, goal in rows:
        if (row := results.get(name)) is None:
            continue
        spread = f"{row['ratio']:.2f}x ({min(row['ratios']):.2f} - {max(row['ratios']):.2f})"
        lines.append(f"| {label} | {spread} | {goal} | {row['parity_first_step']:.1e} |")
    memory = results["G5"]
    lines += [
        "",
        "| G5: bytes that a stage-1 forward pass keeps for its backward pass | MiB | of plain |",
        "|---|---|---|",
        *(f"| {n} | {memory[n] / 2**20:.0f} | {memory[n] / memory['plain']:.2f}x |" for n in memory),
    ]
    if "G14" in results:
        lines += bf16_table(results["G14"])
    if "loop" in results:
        lines += [
            "",
            f"The loop's own share of a step: {100 * results['loop']['share']:.2f}% (goal: at most 5%).",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
