"""Tiny Stable Diffusion and CLIP of random weights, laid out as their publishers distribute them."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_unet_name(name: str, layers: int) -> str:
    """The name of a UNet's tensor in Stable Diffusion's original file."""
    outer = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for new, old in outer.items():
        if name.startswith(f"{new}."):
            return name.replace(new, old)

    block, rest = name.split(".", 1)
    if block == "mid_block":
        kind, index, rest = rest.split(".", 2)
        place = "middle_block.1" if kind == "attentions" else f"middle_block.{2 * int(index)}"
        return f"{place}.{_resnet(rest) if kind == 'resnets' else rest}"

    number, kind, index, rest = rest.split(".", 3)
    i, j = int(number), int(index)
    if block == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (i + 1)}.0.op.{rest.removeprefix('conv.')}"
        place = f"input_blocks.{(layers + 1) * i + j + 1}"
    else:
        if kind == "upsamplers":
            return f"output_blocks.{(layers + 1) * i + layers}.{1 if i == 0 else 2}.{rest}"
        place = f"output_blocks.{(layers + 1) * i + j}"
    return f"{place}.0.{_resnet(rest)}" if kind == "resnets" else f"{place}.1.{rest}"


def _resnet(rest: str) -> str:
    part, last = rest.rsplit(".", 1)
    return f"{RESNET[part]}.{last}"


def original_vae_name(name: str, blocks: int) -> str:
    """The name of a VAE's tensor in Stable Diffusion's original file."""
    if name.startswith(("quant_conv", "post_quant_conv")):
        return name
    side, block, rest = name.split(".", 2)
    if block == "mid_block":
        kind, index, rest = rest.split(".", 2)
        if kind == "resnets":
            return f"{side}.mid.block_{int(index) + 1}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        part, last = rest.rsplit(".", 1)
        return f"{side}.mid.attn_1.{VAE_ATTENTION[part]}.{last}"
    if block in ("down_blocks", "up_blocks"):
        number, kind, index, rest = rest.split(".", 3)
        place = number if block == "down_blocks" else str(blocks - 1 - int(number))
        way = block.removesuffix("_blocks")
        if kind == "resnets":
            return f"{side}.{way}.{place}.block.{index}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        return f"{side}.{way}.{place}.{way}sample.{rest}"
    return name.replace("conv_norm_out", "norm_out")


def single_file_tensors(vae: AutoencoderKL, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The tensors of a file such as v1-5-pruned-emaonly.safetensors, with a little of its text encoder."""
    tensors = {
        "alphas_cumprod": torch.ones(1000),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.ones(768),
    }
    layers = unet.config.layers_per_block
    for name, value in unet.state_dict().items():
        tensors[f"model.diffusion_model.{original_unet_name(name, layers)}"] = value
    blocks = len(vae.config.block_out_channels)
    for name, value in vae.state_dict().items():
        old = original_vae_name(name, blocks)
        is_matrix = ".attn_1." in old and value.ndim == 2
        tensors[f"first_stage_model.{old}"] = value[..., None, None] if is_matrix else value
    return {name: value.contiguous() for name, value in tensors.items()}


def write_components(folder: Path, networks: dict[str, Any], variant: str | None = "fp16") -> None:
    """A folder as a repository has it, in half precision under the name of a variant."""
    for name, network in networks.items():
        network.save_config(folder / name)
        middle = "" if variant is None else f".{variant}"
        tensors = {key: value.half().contiguous() for key, value in network.state_dict().items()}
        file = folder / name / f"diffusion_pytorch_model{middle}.safetensors"
        save_file(tensors, file, metadata={"format": "pt"})


def write_hub_cache(cache: Path, repository: str, files: dict[str, Path]) -> Path:
    """A repository in Hugging Face's cache with some files, as a download leaves it; its snapshot's folder."""
    commit = "0" * 40
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    for name, source in files.items():
        target = root / "snapshots" / commit / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
    return root / "snapshots" / commit


def write_archive(state: dict[str, Tensor], path: Path) -> None:
    """Save a TorchScript archive with tensors of these names, as OpenAI publishes CLIP."""
    root = nn.Module()
    for name, value in state.items():
        *parents, last = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module._modules[parent]
        module.register_parameter(last, nn.Parameter(value, requires_grad=False))
    torch.jit.script(root).save(path)


def write_transformers_clip(folder: Path, config: dict[str, Any]) -> Any:
    """A CLIP of transformers with a tiny vision tower and text tower; the network."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    vision = CLIPVisionConfig(hidden_act="quick_gelu", **config)
    text = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=1,
        vocab_size=49408,
        hidden_act="quick_gelu",
        projection_dim=config["projection_dim"],
    )
    both = CLIPConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=config["projection_dim"],
    )
    network = CLIPModel(both).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"
    return network


def assert_equal_weights(found: Any, expected: Any) -> None:
    """Two networks have equal weights, the first in float32."""
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    wanted = expected.state_dict()
    assert set(found.state_dict()) == set(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())
