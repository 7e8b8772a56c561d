"""The tensors of the published SD 1.5 files, by name and shape: what sd15 builds must take them all.

Known of the files without having them: their counts, the names and shapes below, and the sizes of every network.
"""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel
from safetensors.torch import load_file, save_file
from torch import nn

from diffrestorer.config.composition import load
from diffrestorer.config.schema import Stage1Config
from diffrestorer.models.components import build_unet, build_vae
from diffrestorer.models.control import ControlNetwork

PUBLISHED = {
    "unet": {
        "conv_in.weight": (320, 4, 3, 3),
        "time_embedding.linear_1.weight": (1280, 320),
        "time_embedding.linear_2.weight": (1280, 1280),
        "down_blocks.0.resnets.0.time_emb_proj.weight": (320, 1280),
        "down_blocks.0.attentions.0.proj_in.weight": (320, 320, 1, 1),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": (320, 320),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0.bias": (320,),
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
        "down_blocks.1.resnets.0.conv_shortcut.weight": (640, 320, 1, 1),
        "down_blocks.2.downsamplers.0.conv.weight": (1280, 1280, 3, 3),
        "down_blocks.3.resnets.1.conv2.weight": (1280, 1280, 3, 3),
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight": (1280, 768),
        "up_blocks.0.resnets.2.conv1.weight": (1280, 2560, 3, 3),
        "up_blocks.3.attentions.2.transformer_blocks.0.norm3.weight": (320,),
        "conv_norm_out.weight": (320,),
        "conv_out.weight": (4, 320, 3, 3),
    },
    "vae": {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (256, 128, 1, 1),
        "encoder.mid_block.attentions.0.group_norm.weight": (512,),
        "encoder.mid_block.attentions.0.to_q.weight": (512, 512),
        "encoder.conv_out.weight": (8, 512, 3, 3),
        "quant_conv.weight": (8, 8, 1, 1),
        "post_quant_conv.weight": (4, 4, 1, 1),
        "decoder.conv_in.weight": (512, 4, 3, 3),
        "decoder.up_blocks.3.resnets.0.conv_shortcut.weight": (128, 256, 1, 1),
        "decoder.up_blocks.2.upsamplers.0.conv.weight": (256, 256, 3, 3),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    },
    "controlnet": {
        "controlnet_cond_embedding.conv_out.weight": (320, 256, 3, 3),
        "controlnet_down_blocks.0.weight": (320, 320, 1, 1),
        "controlnet_down_blocks.11.weight": (1280, 1280, 1, 1),
        "controlnet_mid_block.bias": (1280,),
        "mid_block.resnets.1.conv2.weight": (1280, 1280, 3, 3),
    },
}
NUM_TENSORS = {"unet": 686, "vae": 248, "controlnet": 340}


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    sd15 = load("train_stage1", Stage1Config, ["model=sd15"]).model
    with torch.device("meta"):
        unet = build_unet(sd15)
        return {"unet": unet, "vae": build_vae(sd15), "controlnet": ControlNetModel.from_unet(unet)}


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(name: str, networks: dict[str, nn.Module]) -> None:
    found = shapes(networks[name])
    assert len(found) == NUM_TENSORS[name]
    assert {key: found.get(key) for key in PUBLISHED[name]} == PUBLISHED[name]


def test_the_control_network_is_a_controlnet_without_its_image_embedding(
    networks: dict[str, nn.Module],
) -> None:
    with torch.device("meta"):
        own = shapes(ControlNetwork.from_unet(networks["unet"]))
    published = shapes(networks["controlnet"])
    kept = {name: shape for name, shape in published.items() if "cond_embedding" not in name}
    assert own == {**kept, "zero_conv_in.weight": (320, 320, 1, 1), "zero_conv_in.bias": (320,)}


def test_the_vae_s_attention_may_carry_its_old_names(tmp_path: Path) -> None:
    """The published VAE file is older than diffusers' names for attention: query, key, value, proj_attn."""
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[4, 8], norm_num_groups=2,
    )  # fmt: skip
    vae.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, value in load_file(file).items():
        for new, old in old_names.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        tensors[name] = value
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in tensors
    save_file(tensors, file, metadata={"format": "pt"})
    loaded = AutoencoderKL.from_pretrained(tmp_path)
    for name, value in vae.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
