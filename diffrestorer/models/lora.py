"""Low-rank adapters (LoRA) of the UNet, by peft: the part that a student at Stable Diffusion's width trains."""

import copy

from diffusers import ModelMixin, UNet2DConditionModel

TARGETS = (
    r".*(attn1\.to_q|attn1\.to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out"
    r"|conv1|conv2|conv_shortcut|samplers\.0\.conv|conv_in|conv_out)|conv_in|conv_out"
)
"""Layers that get an adapter. Cross-attention's q and k have none: with one token nothing depends on them."""


def add_lora(unet: UNet2DConditionModel, rank: int) -> None:
    """Freeze a UNet and give it adapters that train; they start at zero, so the network's output stays the same.

    Args:
        rank: of the adapters; their scale is 1.

    Raises:
        ValueError: peft is not installed, or the rank is not positive.
    """
    # peft is an optional dependency.
    try:
        from peft import LoraConfig
    except ImportError:
        raise ValueError(
            "model.train_unet=lora needs peft: pip install 'diffrestorer[lora]'; or take all"
        ) from None
    if rank < 1:
        raise ValueError(f"lora_rank={rank} must be at least 1")

    # diffusers' own method puts them in.
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS)
    )


def merged(network: ModelMixin) -> ModelMixin:
    """Return a plain copy of a network with its adapters added to the weights; the given one is left as it is."""
    network = copy.deepcopy(
        getattr(network, "_orig_mod", network)
    )  # torch.compile puts a module around it
    if getattr(network, "peft_config", None):
        network.fuse_lora()
        network.unload_lora()
    return network
