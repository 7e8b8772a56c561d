"""Memory of sd15's stage 1 with the whole UNet on several GPUs that share AdamW's state: counted, not measured.

    python benchmarks/sharded_memory.py    # table into docs/training.md, numbers into results/sharded_memory.json

Gradients lie in DistributedDataParallel's buckets all the time. They are counted as a whole, and what a step makes
beside them apart: a gradient is dropped as soon as it is there.
"""

import argparse
import json
from pathlib import Path

import torch
from sections import write_section
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from training_memory import GIB, STAGES, count_step, cuda_autocast_policy

from diffrestorer.config.hardware_presets import HardwareConfig
from diffrestorer.training.hardware import apply_hardware

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = (2, 4, 8)
SAMPLES = (1, 2, 4)


def main() -> None:
    """Counts, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "sharded_memory.json"
    )
    arguments = parser.parse_args()
    counts = count(SAMPLES)
    arguments.output.write_text(json.dumps(counts, indent=1) + "\n")
    write_section(ROOT / "docs" / "training.md", "sharded_memory", table(counts))


def count(samples: tuple[int, ...]) -> list[dict[str, int]]:
    """Return bytes by purpose for each number of samples at once; `made` is the peak of what a step makes."""
    with FakeTensorMode(allow_non_fake_inputs=True), cuda_autocast_policy():
        task = STAGES["stage1 train_unet=all"]()
        apply_hardware(task, HardwareConfig(checkpointing="blocks"), torch.device("cpu"))
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(drop_gradient)

        # The peak of training_memory.py has weights, AdamW and what a step makes.
        counts = []
        for number in samples:
            counted = count_step(task, "bf16", number)
            made = counted["peak"] - counted["weights"] - counted["optimizer"]
            counts.append({**counted, "made": made})
            print(counts[-1], flush=True)
    return counts


def drop_gradient(parameter: nn.Parameter) -> None:
    """Free a gradient: it has been copied to its bucket."""
    parameter.grad = None


def table(counts: list[dict[str, int]]) -> str:
    """Return the counts in Markdown: GiB of a process by samples at once and by processes."""
    lines = [
        "| samples at once | not sharded | " + " | ".join(f"{n} processes" for n in PROCESSES) + " |",
        "|---" * (len(PROCESSES) + 2) + "|",
    ]
    for counted in counts:
        fixed = counted["weights"] + counted["gradients"] + counted["made"]
        needs = [(fixed + counted["optimizer"] / n) / GIB for n in (1, *PROCESSES)]
        lines.append(f"| {counted['samples']} | " + " | ".join(f"{need:.1f}" for need in needs) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
