"""A task's use of its machine: memory layout, attention, compilation, recomputation. The mathematics stay the same."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention import AttentionMixin, BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffrestorer.config.hardware_presets import HardwareConfig
from diffrestorer.inference.memory import keep_freed_memory
from diffrestorer.models.attention import install_one_token_attention
from diffrestorer.models.blocks import ResBlock
from diffrestorer.models.control import ControlDecoder, ControlEncoder
from diffrestorer.models.decoder import DegradationAwareDecoder

COMPILER = "inductor"
COMPILED = (BasicTransformerBlock, ResnetBlock2D, ResBlock)
"""The blocks that repeat: compiled one by one, a network of them costs a few compilations."""

MAX_GRAPHS = 256
"""Graphs that torch.compile may keep of one class's `forward`. Blocks of one class share them, and every combination of
shapes and of frozen and trained inputs needs one: sd15's stage 1 has 52 in all. Beyond the limit (8 by default) calls
run eagerly without a word."""


def check_precision(mixed_precision: str, device: torch.device) -> str | None:
    """Refuse bf16 on a device that computes it slowly or not at all.

    Returns:
        A remark about the precision for the log, or None.

    Raises:
        ValueError: naming the reason and what to take instead.
    """
    # GPUs before NVIDIA's Ampere emulate bf16.
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return None
        name = torch.cuda.get_device_name(device)
        if mixed_precision == "bf16":
            raise ValueError(
                f"{name} has no bf16: take train.mixed_precision=no (float32) or hardware=auto"
            )
        return f"training in float32: {name} has no bf16"

    # CPUs compute it well with AMX, passably with AVX512-BF16.
    if mixed_precision == "no" or device.type != "cpu" or torch.cpu._is_amx_tile_supported():
        return None
    if not torch.cpu._is_avx512_bf16_supported():
        raise ValueError(
            "train.mixed_precision=bf16 is slower than float32 on a CPU with neither AMX nor AVX512-BF16, as this one: "
            "take train.mixed_precision=no"
        )
    return (
        "bf16 on a CPU with AVX512-BF16 but without AMX: a step of mini took 1.3 times as long as in float32 where it "
        "was measured (docs/performance.md); train.mixed_precision=no is likely faster"
    )


def apply_hardware(task: nn.Module, hardware: HardwareConfig, device: torch.device) -> None:
    """Set a task's networks up as the preset says, before they are trained on `device`.

    Raises:
        ValueError: channels_last or compile_blocks on a CPU.
    """
    if device.type == "cpu" and (hardware.channels_last or hardware.compile_blocks):
        raise ValueError(
            "train.hardware.channels_last and compile_blocks are for GPUs: on a CPU backward passes in that layout, "
            "and compiled ones, corrupt memory (seen with torch 2.15); take hardware=cpu"
        )
    # Memory.
    if device.type == "cpu":
        keep_freed_memory()
    if hardware.channels_last:
        task.to(memory_format=torch.channels_last)

    # Attention.
    if not hardware.sdpa:
        for module in task.modules():
            if isinstance(module, AttentionMixin):
                module.set_attn_processor(AttnProcessor())
    if hardware.one_token_attention:
        install_one_token_attention(task, replaced=(AttnProcessor, AttnProcessor2_0))

    # Recomputation goes around compiled blocks, so that a block's backward pass stays one graph.
    if hardware.compile_blocks:
        _compile_blocks(task)
    if hardware.checkpointing == "blocks":
        _recompute_blocks(task)


class _Step:
    """A flag that is up while a task computes the losses of a training step."""

    def __init__(self, task: nn.Module) -> None:
        self.running = False
        task.register_forward_pre_hook(self._begin)
        task.register_forward_hook(self._end, always_call=True)

    def _begin(self, *_: Any) -> None:
        self.running = torch.is_grad_enabled()

    def _end(self, *_: Any) -> None:
        self.running = False


def _compile_blocks(task: nn.Module) -> None:
    """Compile the blocks for training steps only.

    In a step the shapes and the precision of a block's inputs never change, so each block meets one graph. Samples and
    validation have other batches, run in float32 or want no gradients: each would add graphs for a handful of calls.
    """
    from torch._dynamo import config as dynamo  # takes a second to import

    dynamo.recompile_limit = max(dynamo.recompile_limit, MAX_GRAPHS)
    dynamo.optimize_ddp = (
        False  # it splits graphs to overlap communication: a block is small enough by itself
    )

    blocks: list[nn.Module] = [module for module in task.modules() if isinstance(module, COMPILED)]
    kinds = {type(block) for block in blocks}
    compiled = {kind: torch.compile(kind.forward, backend=COMPILER, dynamic=False) for kind in kinds}
    step = _Step(task)
    for block in blocks:
        block.forward = partial(_forward, step, compiled[type(block)], block)


def _forward(
    step: _Step, compiled: Callable[..., Any], block: nn.Module, *args: Any, **kwargs: Any
) -> Any:
    """Run a block's compiled forward in a training step (frozen encoders, too) and in recomputations, else its own."""
    if step.running or torch.is_grad_enabled():
        return compiled(block, *args, **kwargs)
    return type(block).forward(block, *args, **kwargs)


def _recompute_blocks(task: nn.Module) -> None:
    for module in list(task.modules()):
        if isinstance(module, UNet2DConditionModel | ControlNetModel):
            module.enable_gradient_checkpointing()
        elif isinstance(module, ControlEncoder | ControlDecoder):
            _recompute(module.blocks)
        elif isinstance(module, DegradationAwareDecoder):
            _recompute(
                [module.decoder.mid_block, *module.decoder.up_blocks, *(module.refinement or ())]
            )


def _recompute(blocks: Iterable[nn.Module]) -> None:
    # Nothing in a block is drawn at random, so there is no generator's state to keep.
    for block in blocks:
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )
