"""What a run of sd15 takes on 1, 8 and 64 GPUs: counted, since no run of these sizes has been made.

    python benchmarks/scaling.py    # table into docs/scaling.md, numbers into results/scaling.json

A step's operations are counted at real widths on tensors without data (multiplications and additions of convolutions,
matrix products and attention). Hours follow from them and from the share of a GPU's peak that is assumed; both are
printed, so that other assumptions can be put in their place.
"""

import argparse
import json
from pathlib import Path

import torch
from sections import write_section
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from training_memory import SIZE, STAGES, cuda_autocast_policy

from diffrestorer.config.composition import load
from diffrestorer.config.hardware_presets import HardwareConfig
from diffrestorer.config.schema import DecoderConfig, RunConfig, Stage1Config
from diffrestorer.data.pairs import PairBatch
from diffrestorer.training.checkpoint import trained_state
from diffrestorer.training.hardware import apply_hardware
from diffrestorer.training.task import Task

ROOT = Path(__file__).resolve().parents[1]
RUNS: dict[str, tuple[str, type[RunConfig]]] = {
    "stage1": ("train_stage1", Stage1Config),
    "decoder": ("train_decoder", DecoderConfig),
}
"""Stage -> its config."""

GPUS = {"paper": 1, "8gpu": 8, "64gpu": 64}
"""`train.scale` -> GPUs of the table's row."""

PAIR_BYTES = 2 * 3 * SIZE * SIZE
"""Of one prepared pair, not compressed."""


def main() -> None:
    """Counts, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peak",
        type=float,
        default=771.0,
        help="TFLOP/s of one GPU; default: measured on an H100, bf16",
    )
    parser.add_argument(
        "--share", type=float, default=0.35, help="of it that a step is assumed to reach"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "scaling.json"
    )
    arguments = parser.parse_args()

    counted = {}
    for name in RUNS:
        with FakeTensorMode(allow_non_fake_inputs=True), cuda_autocast_policy():
            task = STAGES[name]()
            # Attention as matrix products, which the counter knows on every device.
            apply_hardware(task, HardwareConfig(sdpa=False), torch.device("cpu"))
            counted[name] = {
                "flops_per_sample": count_flops(task),
                "checkpoint_bytes": checkpoint_bytes(task),
            }
        print(name, counted[name], flush=True)
    settings = {"peak_tflops": arguments.peak, "share": arguments.share, "size": SIZE}
    arguments.output.write_text(json.dumps({**settings, "stages": counted}, indent=1) + "\n")
    write_section(
        ROOT / "docs" / "scaling.md", "scaling", table(counted, arguments.peak, arguments.share)
    )


def count_flops(task: Task) -> int:
    """Return the floating-point operations of one sample's forward and backward pass."""
    images = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
    batch = PairBatch(images, images, torch.zeros(1, dtype=torch.long), step=0, positions=(0,))
    with FlopCounterMode(display=False) as counter:
        task(batch).total.backward()
    task.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def checkpoint_bytes(task: Task) -> int:
    """Return the size of a checkpoint: what trains, and AdamW's two averages of it, in float32."""
    weights = sum(tensor.numel() for tensor in trained_state(task).values())
    moments = sum(2 * p.numel() for p in task.parameters() if p.requires_grad)
    return 4 * (weights + moments)


def table(counted: dict[str, dict[str, int]], peak: float, share: float) -> str:
    """The counts in Markdown, a row per stage and scale."""
    lines = [
        "| stage | `train.scale` | GPUs | samples per step (a GPU) | steps | learning rate | TFLOP a sample "
        "| samples/s | GB/s of pairs | hours | GPU-hours | a checkpoint |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (root, schema) in RUNS.items():
        tflop = counted[name]["flops_per_sample"] / 1e12
        checkpoint = counted[name]["checkpoint_bytes"] / 1e9
        for scale, wanted in GPUS.items():
            train = load(root, schema, [f"train.scale={scale}", "hardware=cpu"]).train
            gpus = min(wanted, train.global_batch_size)
            rate = gpus * share * peak / tflop
            hours = train.global_batch_size * train.max_steps / rate / 3600
            lines.append(
                f"| {name} | {scale} | {gpus} | {train.global_batch_size} ({train.global_batch_size // gpus}) | "
                f"{train.max_steps:,} | {train.lr:.2g} | {tflop:.1f} | {rate:,.0f} | {rate * PAIR_BYTES / 1e9:.2f} | "
                f"{hours:.1f} | {hours * gpus:.0f} | {checkpoint:.2f} GB |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
