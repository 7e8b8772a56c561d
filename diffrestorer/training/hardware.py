"""How a task uses its machine: memory layout, attention, compilation, recomputation; the mathematics stay the same."""

from collections.abc import Iterable
from functools import partial

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention import AttentionMixin, BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffrestorer.config.hardware import HardwareConfig
from diffrestorer.models.blocks import ResBlock
from diffrestorer.models.control import ControlDecoder, ControlEncoder
from diffrestorer.models.decoder import DegradationAwareDecoder

COMPILED = (BasicTransformerBlock, ResnetBlock2D, ResBlock)
"""The blocks that repeat: compiled one by one, a network of them costs a few compilations."""


def apply_hardware(task: nn.Module, hardware: HardwareConfig, device: torch.device) -> None:
    """Sets a task's networks up as the preset says, before they are trained on `device`.

    Raises:
        ValueError: channels_last on a CPU.
    """
    if hardware.channels_last:
        if device.type == "cpu":
            raise ValueError(
                "train.hardware.channels_last=true is for GPUs: on a CPU a backward pass in that layout corrupts "
                "memory (seen with torch 2.15); take hardware=cpu"
            )
        task.to(memory_format=torch.channels_last)
    if not hardware.sdpa:
        for module in task.modules():
            if isinstance(module, AttentionMixin):
                module.set_attn_processor(AttnProcessor())
    if hardware.checkpointing == "blocks":
        _recompute_blocks(task)
    if hardware.compile_blocks:
        for module in task.modules():
            if isinstance(module, COMPILED):
                module.compile()


def _recompute_blocks(task: nn.Module) -> None:
    for module in list(task.modules()):
        if isinstance(module, UNet2DConditionModel | ControlNetModel):
            module.enable_gradient_checkpointing()
        elif isinstance(module, ControlEncoder | ControlDecoder):
            _recompute(module.blocks)
        elif isinstance(module, DegradationAwareDecoder):
            _recompute([module.decoder.mid_block, *module.decoder.up_blocks, *(module.refinement or ())])


def _recompute(blocks: Iterable[nn.Module]) -> None:
    for block in blocks:  # no generator's state to keep: nothing in a block is drawn at random
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
