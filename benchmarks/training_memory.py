"""Memory that a training step of sd15 needs on a GPU, counted at full size on tensors without data.

    python benchmarks/training_memory.py    # tables into docs/training.md, numbers into results/training_memory.json

Every network is built at its real widths under FakeTensorMode, and a step on 512x512 pairs runs forward and backward:
shapes and lifetimes are real, bytes are only counted. GroupNorm and LayerNorm compute in float32, as under CUDA's
autocast. Kernels' workspaces, the CUDA context and fragmentation are not in the counts; compiled blocks keep less.
"""

import argparse
import contextlib
import json
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from sections import write_section
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffrestorer.config.composition import load
from diffrestorer.config.hardware_presets import HardwareConfig
from diffrestorer.config.schema import DecoderConfig, Stage1Config
from diffrestorer.data.pairs import PairBatch
from diffrestorer.models.restorer import DecodingNetworks
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.hardware import apply_hardware
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.step_memory import count_memory, count_saved_bytes
from diffrestorer.training.task import Task

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
SIZE = 512


def main() -> None:
    """Counts, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="(default: all)"
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=["bf16", "no"],
        default=["bf16", "no"],
        help="(default: both)",
    )
    parser.add_argument(
        "--samples", type=int, nargs=2, default=[1, 2], help="counted; others lie on their line"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "training_memory.json"
    )
    arguments = parser.parse_args()
    rows = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else {}
    for stage in arguments.stages:
        with FakeTensorMode(allow_non_fake_inputs=True), cuda_autocast_policy():
            task = STAGES[stage]()
            for checkpointing in (
                "none",
                "blocks",
            ):  # in this order: blocks that recompute go on doing so
                apply_hardware(task, HardwareConfig(checkpointing=checkpointing), torch.device("cpu"))
                for precision in arguments.precisions:
                    counts = [count_step(task, precision, samples) for samples in arguments.samples]
                    rows[f"{stage}, {checkpointing}, {precision}"] = counts
                    print(
                        stage,
                        checkpointing,
                        precision,
                        [f"{count['peak'] / GIB:.2f}" for count in counts],
                        flush=True,
                    )
                    arguments.output.write_text(
                        json.dumps({"size": SIZE, "rows": rows}, indent=1) + "\n"
                    )
    write_section(ROOT / "docs" / "training.md", "training_memory", table(rows))


def table(rows: dict[str, list[dict[str, int]]]) -> str:
    """The counts in Markdown: peaks in GiB by samples at once."""
    shown = (1, 2, 4, 8, 16)
    lines = [
        f"| GiB of tensors at the peak of a step, by samples of {SIZE}x{SIZE} at once | weights, gradients, AdamW | "
        + " | ".join(map(str, shown)) + " |",
        "|---" * (len(shown) + 2) + "|",
    ]  # fmt: skip
    for name, counts in rows.items():
        stage, checkpointing, precision = name.rsplit(", ", 2)
        label = (
            f"{stage}, {'float32' if precision == 'no' else precision}, `checkpointing={checkpointing}`"
        )
        fixed = sum(counts[0][part] for part in ("weights", "gradients", "optimizer")) / GIB
        peaks = [f"{peak(counts, samples) / GIB:.1f}" for samples in shown]
        lines.append(f"| {label} | {fixed:.1f} | " + " | ".join(peaks) + " |")
    return "\n".join(lines)


def peak(counts: list[dict[str, int]], samples: int) -> float:
    """Return bytes at the peak for any number of samples: on the line through the two that were counted."""
    first, second = counts
    slope = (second["peak"] - first["peak"]) / (second["samples"] - first["samples"])
    return first["peak"] + slope * (samples - first["samples"])


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations make within it, as long as they live, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if (
                isinstance(tensor, torch.Tensor)
                and (storage := tensor.untyped_storage())._cdata not in self.known
            ):
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return results

    def _free(self, key: int, size: int) -> None:
        self.known.remove(key)
        self.live -= size


def count_step(task: Task, precision: str, samples: int) -> dict[str, int]:
    """Return bytes of one micro batch's step: weights, gradients, optimizer, activations, and the peak of all."""
    images = torch.zeros(samples, 3, SIZE, SIZE, dtype=torch.uint8)
    labels = torch.zeros(samples, dtype=torch.long)
    batch = PairBatch(images, images, labels, step=0, positions=tuple(range(samples)))

    # Forward and backward, watched by autograd's hooks and by every operation's results.
    with LiveBytes() as bytes_made:
        bytes_made.known = {
            tensor.untyped_storage()._cdata for tensor in (*task.parameters(), *task.buffers())
        }
        with (
            count_saved_bytes(task) as saved,
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        ):
            total = task(batch).total
        total.backward()
    del total
    task.zero_grad(set_to_none=True)
    counted = count_memory(task, averages=False, activations=saved.total)
    peak = counted.weights + counted.optimizer + bytes_made.peak
    return {"samples": samples, **vars(counted), "peak": peak}


@contextlib.contextmanager
def cuda_autocast_policy() -> Iterator[None]:
    """Make the CPU's autocast normalise in float32, as CUDA's does: what is kept of it is twice as large."""

    def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda features, *args, **kwargs: function(features.float(), *args, **kwargs)

    with (
        mock.patch.object(F, "group_norm", in_float32(F.group_norm)),
        mock.patch.object(F, "layer_norm", in_float32(F.layer_norm)),
    ):
        yield


def stage1(train_unet: str) -> Task:
    """Stage 1 with random weights."""
    overrides = ["model.base=none", "hardware=cpu", f"model.train_unet={train_unet}"]
    return Stage1Task(load("train_stage1", Stage1Config, overrides))


def decoder(z0: str) -> Task:
    """The decoder stage on an untrained stage 1, with VGG-19's network; `z0=sampled` also holds the UNet."""
    from torchvision.models import vgg19

    restorer = stage1("none").restorer
    names = ("vae", "image_encoder", "prompt_processor", "decoder")
    parts = {name: getattr(restorer, name) for name in names}
    relative = restorer.relative_prediction
    networks = restorer if z0 == "sampled" else DecodingNetworks(**parts, relative_prediction=relative)
    with (
        mock.patch("diffrestorer.training.decoder_stage.load_stage1", return_value=(networks, None)),
        mock.patch("torchvision.models.get_model_weights") as weights,
        tempfile.TemporaryDirectory() as folder,
    ):
        weights.return_value.__getitem__.return_value.get_state_dict.return_value = vgg19().state_dict()
        # Sampling ends before the step's own peak, so that the networks it holds are all that it adds.
        overrides = ["hardware=cpu", f"stage1={folder}"]
        return DecoderTask(load("train_decoder", DecoderConfig, overrides))


STAGES: dict[str, Callable[[], Task]] = {
    "stage1": lambda: stage1("none"),
    "stage1 train_unet=all": lambda: stage1("all"),
    "decoder": lambda: decoder("hq"),
    "decoder z0=sampled": lambda: decoder("sampled"),
}


if __name__ == "__main__":
    main()
