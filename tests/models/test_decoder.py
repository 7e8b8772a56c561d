"""The Degradation-aware Decoder is the VAE's at step 0, and refines with the degraded image's features afterwards."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from diffrestorer.models.backbones import decode_latents, encode_image
from diffrestorer.models.blocks import DegradationAwareRefinementBlock
from diffrestorer.models.decoder import DegradationAwareDecoder
from diffrestorer.models.mini import MiniDecoder, PatchAutoencoderKL

VAES: dict[str, dict[str, Any]] = {
    "sd-like": {"block_out_channels": [4, 8, 16, 16], "layers_per_block": 2, "norm_num_groups": 4},
    "odd": {
        "block_out_channels": [6, 3, 9, 12],
        "layers_per_block": 1,
        "latent_channels": 5,
        "norm_num_groups": 3,
        "scaling_factor": 1.7,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
    },
    "mixed": {
        "block_out_channels": [2, 4, 6, 8],
        "layers_per_block": 3,
        "latent_channels": 7,
        "norm_num_groups": 2,
        "scaling_factor": 0.3,
        "use_quant_conv": True,
        "use_post_quant_conv": False,
        "mid_block_add_attention": True,
    },
}
P_D_DIM = 5
DECODERS: dict[type[AutoencoderKL], Any] = {
    AutoencoderKL: DegradationAwareDecoder,
    PatchAutoencoderKL: MiniDecoder,
}


def refined(vae: AutoencoderKL, **options: Any) -> DegradationAwareDecoder:
    """The decoder that fits a VAE, with all of its paths."""
    if isinstance(vae, PatchAutoencoderKL):
        groups = vae.config.norm_num_groups
        options = {"pixel_channels": [2 * groups, 3 * groups], **options}
    return DECODERS[type(vae)].from_vae(vae, P_D_DIM, **options)


def build(cls: type[AutoencoderKL], name: str) -> AutoencoderKL:
    torch.manual_seed(0)
    types = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = cls(**types, **VAES[name]).eval()
    for parameter in vae.parameters():
        nn.init.normal_(parameter, std=0.2)  # norms and biases too
    return vae


@pytest.fixture(
    params=[(cls, name) for cls in (AutoencoderKL, PatchAutoencoderKL) for name in VAES], ids=str
)
def vae(request: pytest.FixtureRequest) -> AutoencoderKL:
    return build(*request.param)


@torch.no_grad()
def test_step_0_equals_the_vae_s_decoder_exactly(vae: AutoencoderKL) -> None:
    lq = torch.rand(2, 3, 32, 48)
    encoded = encode_image(vae, lq)
    latents = torch.randn_like(encoded.latents)
    decoder = refined(vae).eval()
    expected = decode_latents(vae, latents)
    assert torch.equal(decoder(latents, encoded.features, torch.randn(2, P_D_DIM)), expected)
    assert expected.shape == lq.shape
    without = refined(vae, refine=False).eval()
    assert torch.equal(without(latents, encoded.features, torch.randn(2, P_D_DIM)), expected)


@torch.no_grad()
@pytest.mark.parametrize("cls", [AutoencoderKL, PatchAutoencoderKL])
def test_each_feature_and_p_d_matter_once_trained(
    cls: type[AutoencoderKL], randomised: Callable
) -> None:
    vae = build(cls, "sd-like")
    encoded = encode_image(vae, torch.rand(1, 3, 32, 32))
    latents, p_d = torch.randn_like(encoded.latents), torch.randn(1, P_D_DIM)
    decoder = randomised(refined(vae)).eval()
    restored = decoder(latents, encoded.features, p_d)
    assert len(encoded.features) == 3 + 2 * (cls is PatchAutoencoderKL)
    for i in range(len(encoded.features)):
        changed = list(encoded.features)
        changed[i] = -changed[i]
        assert not torch.allclose(decoder(latents, changed, p_d), restored, atol=1e-5), (
            f"feature {i} is not used"
        )
    assert not torch.allclose(decoder(latents, encoded.features, -p_d), restored, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("cls", [AutoencoderKL, PatchAutoencoderKL])
def test_fidelity_0_is_the_plain_decoder_of_the_trained_weights(
    cls: type[AutoencoderKL], randomised: Callable
) -> None:
    vae = build(cls, "sd-like")
    encoded = encode_image(vae, torch.rand(1, 3, 32, 32))
    decoder = randomised(refined(vae)).eval()
    plain = copy.deepcopy(vae)
    plain.decoder.load_state_dict(decoder.decoder.state_dict())
    plain.post_quant_conv.load_state_dict(decoder.post_quant_conv.state_dict())
    restored = decoder(encoded.latents, encoded.features, torch.randn(1, P_D_DIM), fidelity=0.0)
    assert torch.equal(restored, decode_latents(plain, encoded.latents))


def test_refinement_blocks_join_features_of_equal_size() -> None:
    """512 channels at 1/8 and 1/4 and 256 at 1/2 of the encoder meet 512 of the decoder each (SD's widths)."""
    with torch.device("meta"):
        decoder = DegradationAwareDecoder()
        blocks = [m for m in decoder.modules() if isinstance(m, DegradationAwareRefinementBlock)]
        features = [torch.zeros(1, 512, 8, 8), torch.zeros(1, 512, 16, 16), torch.zeros(1, 256, 32, 32)]
        assert decoder(torch.zeros(1, 4, 8, 8), features, torch.zeros(1, 256)).shape == (1, 3, 64, 64)
    assert [(b.merge.out_channels, b.merge.in_channels) for b in blocks] == [
        (512, 1024),
        (512, 1024),
        (512, 768),
    ]


def test_without_refinement_there_are_no_blocks() -> None:
    vae = build(AutoencoderKL, "odd")
    decoder = refined(vae, refine=False)
    assert set(decoder.state_dict()) == {f"decoder.{name}" for name in vae.decoder.state_dict()}


def test_every_parameter_learns() -> None:
    """None is left without a gradient, which would stop training on several processes."""
    vae = build(PatchAutoencoderKL, "sd-like")
    encoded = encode_image(vae, torch.rand(1, 3, 32, 32))
    decoder = refined(vae)
    decoder(
        encoded.latents.detach(), encoded.features, torch.randn(1, P_D_DIM)
    ).square().mean().backward()
    assert not [name for name, parameter in decoder.named_parameters() if parameter.grad is None]
