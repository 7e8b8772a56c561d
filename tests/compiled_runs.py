"""Steps of sd15's depth with compiled blocks, counted in a process of its own.

Not in the tests' process: the shape checks that every annotated function gets there would be compiled as well.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from training_runs import context

NARROW_SD15 = [
    "model.base=none",
    "model.vae.block_out_channels=[4,8,16,16]",
    "model.vae.norm_num_groups=4",
    "model.image_encoder.vision_cfg={image_size: 32, layers: 2, width: 64, patch_size: 16}",
    "model.image_encoder.embed_dim=12",
    "model.prompt_processor.clip_dim=12",
    "model.prompt_processor.semantic_dim=12",
    "model.prompt_processor.hidden_dim=10",
    "model.prompt_processor.degradation_dim=6",
    "model.unet.block_out_channels=[8,16,32,32]",
    "model.unet.norm_num_groups=4",
    "model.unet.cross_attention_dim=12",
    "model.unet.attention_head_dim=2",
    "model.control_encoder.block_out_channels=[2,4,6,8]",
    "model.control_encoder.degradation_dim=6",
    "model.control_encoder.norm_num_groups=2",
    "model.perceptual=none",
]
"""sd15's depth and the proportions of its widths, at a fortieth of them."""

MOMENTS = (
    "operations", "step 1", "step 2", "samples", "step after samples", "validation", "step after validation",
)  # fmt: skip
Counts = dict[str, dict[str, int]]


def count_calls(
    stage: str, checkpointing: str, distributed: bool, photos: Path, folder: Path
) -> Counts:
    """Returns for each of `MOMENTS` the calls of compilable blocks, those that ran a graph, and the graphs there are.

    Args:
        stage: `stage1` or `decoder`.
        distributed: wrap the task in DistributedDataParallel, as several processes do.
        folder: gets stage 1's model and what validation writes.
    """
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_count, stage, checkpointing, distributed, photos, folder).result()


class _Calls:
    """Counts since they were last taken; a backend of torch.compile that runs what was captured as it is."""

    def __init__(self) -> None:
        self.compiled = self.graphs = 0
        self.blocks: Counter[str] = Counter()

    def backend(self, graph: Any, example_inputs: Any) -> Callable[..., Any]:
        self.graphs += 1

        def run(*inputs: Any) -> Any:
            self.compiled += 1
            return graph.forward(*inputs)

        return run

    def watch(self, block: Any, name: str) -> None:
        """Counts every run of a block's forward, recomputations included."""
        forward = block.forward

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.blocks[name] += 1
            return forward(*args, **kwargs)

        block.forward = counted

    def take(self) -> dict[str, int]:
        counts = {"calls": self.blocks.total(), "compiled": self.compiled, "graphs": self.graphs}
        self.compiled = 0
        self.blocks.clear()
        return counts


def _count(stage: str, checkpointing: str, distributed: bool, photos: Path, folder: Path) -> Counts:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from diffrestorer.config.hardware_presets import HardwareConfig
    from diffrestorer.data.pairs import SynthesisedPairs, collate_pairs
    from diffrestorer.training import hardware
    from diffrestorer.training.throughput import count_operations
    from diffrestorer.training.validation import Validation

    # The task as the loop sets it up for a GPU, but with a backend that counts.
    calls = _Calls()
    hardware.COMPILER = calls.backend  # type: ignore[assignment]
    task = _build(stage, photos, folder)
    compile_blocks = hardware._compile_blocks

    def compile_and_watch(task: Any) -> None:
        compile_blocks(task)
        for name, module in task.named_modules():
            if isinstance(module, hardware.COMPILED):
                calls.watch(module, name)

    hardware._compile_blocks = (
        compile_and_watch  # within it, before recomputation is put around the blocks
    )
    settings = HardwareConfig(compile_blocks=True, checkpointing=checkpointing)
    hardware.apply_hardware(task, settings, torch.device("cuda"))

    model: Any = task
    if distributed:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1
        )
        model = DistributedDataParallel(task)

    # What the loop does around its steps, in bf16 as on a GPU.
    pairs = SynthesisedPairs(task.config.data, 0, 2)
    batch = collate_pairs([pairs[0, position] for position in range(2)])
    optimizers = task.optimizers()
    validation = Validation(task.config, folder)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            total = model(batch).total
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def sample() -> None:
        with torch.no_grad():
            task.sample(batch)

    counts: Counts = {}
    for moment in MOMENTS:
        if moment.startswith("step"):
            step()
        elif moment == "operations":
            count_operations(task, batch)
        elif moment == "samples":
            sample()
        else:
            validation.write(validation(task, torch.device("cpu")), 1)
        counts[moment] = calls.take()
    return counts


def _build(stage: str, photos: Path, folder: Path) -> Any:
    """A task of `stage`; the decoder's upon an untrained stage 1."""
    import torch

    from diffrestorer.config.composition import load
    from diffrestorer.config.schema import DecoderConfig, Stage1Config
    from diffrestorer.training.decoder_stage import DecoderTask
    from diffrestorer.training.stage1 import Stage1Task

    overrides = [
        *NARROW_SD15, "hardware=cpu", "data=photos", f"data.root={photos}", "data.size=64",
        f"data.validation_root={photos}", "train.validation_images=3", "train.micro_batch_size=2",
    ]  # fmt: skip
    task = Stage1Task(load("train_stage1", Stage1Config, overrides))
    if stage == "stage1":
        return task
    task.save_model(folder / "model", torch.float32)
    return DecoderTask(load("train_decoder", DecoderConfig, [*overrides, f"stage1={folder}"]))
