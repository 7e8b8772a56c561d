"""VAE and image encoder behind images in [0, 1], and the sizes of the networks that sd15 downloads."""

import math

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel
from torch import nn
from torch.nn import functional as F

from diffrestorer.config.composition import load
from diffrestorer.config.schema import ModelConfig, Stage1Config
from diffrestorer.models.backbones import (
    ImageEncoder,
    decode_latents,
    degradation_similarity,
    encode_image,
)
from diffrestorer.models.components import build_image_encoder, build_unet, build_vae
from diffrestorer.models.control import ControlNetwork
from diffrestorer.models.mini import PatchAutoencoderKL

TINY_VIT = {"image_size": 28, "layers": 2, "width": 16, "head_width": 8, "patch_size": 14}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tiny_vae(cls: type[AutoencoderKL] = AutoencoderKL) -> AutoencoderKL:
    torch.manual_seed(0)
    return cls(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[4, 6, 8, 10],
        layers_per_block=2,
        norm_num_groups=2,
        scaling_factor=0.7,
    ).eval()


@pytest.fixture(scope="module")
def sd15() -> ModelConfig:
    return load("train_stage1", Stage1Config, ["model=sd15"]).model


@torch.no_grad()
@pytest.mark.parametrize("cls", [AutoencoderKL, PatchAutoencoderKL])
def test_encoding_gives_scaled_latents_and_features(cls: type[AutoencoderKL]) -> None:
    vae, images = tiny_vae(cls), torch.rand(2, 3, 32, 48)
    encoded = encode_image(vae, images)
    assert torch.equal(encoded.latents, vae.encode(images * 2 - 1).latent_dist.mode() * 0.7)
    shapes = [tuple(feature.shape) for feature in encoded.features]
    detail = [(2, 3, 32, 48)] * 2 if cls is PatchAutoencoderKL else []
    assert shapes == [(2, 10, 4, 6), (2, 8, 8, 12), (2, 6, 16, 24), *detail], (
        "1/8, 1/4, 1/2, what is lost, the image"
    )


@torch.no_grad()
def test_features_are_those_the_encoder_computes_on_its_way() -> None:
    vae, images = tiny_vae(), torch.rand(1, 3, 32, 32)
    at_8, at_4, at_2 = encode_image(vae, images).features
    encoder, hidden, before_downsampling = vae.encoder, vae.encoder.conv_in(images * 2 - 1), []
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            hidden = resnet(hidden, None)
        before_downsampling.append(hidden)
        for downsampler in block.downsamplers or []:
            hidden = downsampler(hidden)
    assert torch.equal(at_2, before_downsampling[1])
    assert torch.equal(at_4, before_downsampling[2])
    assert torch.equal(at_8, encoder.mid_block(hidden))


def test_hooks_are_removed_even_after_a_failure() -> None:
    vae = tiny_vae()
    encode_image(vae, torch.rand(1, 3, 16, 16))
    with pytest.raises(RuntimeError):
        encode_image(vae, torch.rand(1, 3, 16, 16, dtype=torch.float64))
    assert not [name for name, module in vae.named_modules() if module._forward_hooks]


@torch.no_grad()
def test_decoding_undoes_the_scale_and_the_range() -> None:
    vae, latents = tiny_vae(), torch.randn(2, 4, 2, 3)
    assert torch.equal(decode_latents(vae, latents), vae.decode(latents / 0.7).sample / 2 + 0.5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(28, 28), (1, 1), (5, 90), (64, 28)])
def test_image_encoder_takes_any_size(size: tuple[int, int]) -> None:
    encoder = ImageEncoder(TINY_VIT, 6).eval()
    images = torch.rand(2, 3, *size)
    embedding = encoder(images)
    assert embedding.shape == (2, 6)
    torch.testing.assert_close(embedding[:1], encoder(images[:1]))


@torch.no_grad()
def test_image_encoder_normalises_as_clip_does() -> None:
    encoder = ImageEncoder(TINY_VIT, 6).eval()
    images = torch.rand(2, 3, 28, 28)
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    torch.testing.assert_close(encoder(images), encoder.visual((images - mean) / std))
    whole = torch.zeros(1, 3, 28, 84)
    whole[..., 80:] = 1
    assert not torch.allclose(encoder(whole), encoder(torch.zeros(1, 3, 28, 84))), (
        "nothing is cropped away"
    )


def test_quick_gelu_is_openai_s_activation() -> None:
    kinds = [
        {type(m).__name__ for m in ImageEncoder(TINY_VIT, 6, quick_gelu=q).modules()}
        for q in (True, False)
    ]
    assert "QuickGELU" in kinds[0]
    assert "QuickGELU" not in kinds[1]


@pytest.mark.parametrize("from_config", [True, False])
def test_image_encoder_is_openai_s_vit_l_14(from_config: bool, sd15: ModelConfig) -> None:
    """Every tensor of open_clip's own ViT-L-14-quickgelu, by name and shape, so that its weights load."""
    published = open_clip.get_model_config("ViT-L-14-quickgelu")
    with torch.device("meta"):
        encoder = build_image_encoder(sd15) if from_config else ImageEncoder()
        clip = open_clip.CLIP(
            published["embed_dim"],
            published["vision_cfg"],
            published["text_cfg"],
            published["quick_gelu"],
        )
    own = {name: tuple(value.shape) for name, value in encoder.visual.state_dict().items()}
    assert own == {name: tuple(value.shape) for name, value in clip.visual.state_dict().items()}
    assert own["proj"] == (1024, 768)
    assert own["conv1.weight"] == (1024, 3, 14, 14)
    assert encoder.config.embed_dim == 768
    assert encoder.image_size == 224
    assert encoder.config.quick_gelu
    assert count(encoder) == 303_966_208


def test_sd15_has_stable_diffusion_s_sizes(sd15: ModelConfig) -> None:
    with torch.device("meta"):
        vae, unet = build_vae(sd15), build_unet(sd15)
        network, original = ControlNetwork.from_unet(unet), ControlNetModel.from_unet(unet)
    assert count(unet) == 859_520_964
    assert count(vae.encoder) == 34_163_592
    assert count(vae.decoder) == 49_490_179
    assert count(vae) == 83_653_863
    assert count(original) == 361_279_120
    assert count(original.controlnet_cond_embedding) == 1_086_480
    assert count(network.zero_conv_in) == 320 * 320 + 320
    assert count(network) == 361_279_120 - 1_086_480 + 320 * 320 + 320
    assert len(network.controlnet_down_blocks) == 12


def test_similarity_is_the_softmax_of_cosines() -> None:
    """Eq. 1 by hand: cosines 1, 0 and -1 whatever the lengths."""
    texts = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    found = degradation_similarity(torch.tensor([[5.0, 0.0]]), texts)
    e = math.e
    torch.testing.assert_close(found, torch.tensor([[e, 1.0, 1 / e]]) / (e + 1 + 1 / e))
    sharper = degradation_similarity(torch.tensor([[5.0, 0.0]]), texts, logit_scale=100.0)
    assert sharper[0, 0] > 0.999
    torch.testing.assert_close(F.normalize(found, p=1), found)
