"""The denoiser: what `Restorer.denoise` predicts, with what is constant computed once."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffrestorer.models.components import build_unet, check_supported
from diffrestorer.models.denoiser import ControlledUNet, Denoiser
from diffrestorer.models.restorer import Conditioning, Restorer, build_restorer

if TYPE_CHECKING:
    from diffrestorer.config.schema import ModelConfig

TIMESTEPS = torch.tensor([999, 421, 7])

UNETS: dict[str, dict[str, Any]] = {
    "mini": {},
    "linear projections, two transformer blocks": {"use_linear_projection": True, "transformer_layers_per_block": 2},
    "two layers a block": {"layers_per_block": 2},
    "Stable Diffusion's blocks": {
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 2,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
}


def conditioned(restorer: Restorer, num_tokens: int = 1) -> Conditioning:
    lq = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(2))
    condition = restorer.condition(lq, restorer.read_prompts(lq))
    tokens = condition.prompts.semantic_embedding * torch.linspace(-1, 1, num_tokens + 1)[1:, None]
    # VisualPrompts promises one token; the networks take any number.
    object.__setattr__(condition.prompts, "semantic_embedding", tokens)
    return condition


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("unet", UNETS)
def test_it_predicts_what_the_networks_predict(
    unet: str, num_tokens: int, tiny_restorer: Restorer, tiny_config: "ModelConfig", randomised: Callable
) -> None:
    config = replace(tiny_config, unet={**tiny_config.unet, **UNETS[unet]})
    base = tiny_restorer.vae, tiny_restorer.image_encoder, build_unet(config)
    restorer = randomised(build_restorer(config, *base)).eval()
    latents = torch.randn(2, 4, 8, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        condition = conditioned(restorer, num_tokens)
        denoiser = Denoiser(ControlledUNet(restorer), condition.prompts.semantic_embedding, TIMESTEPS)
        for step, timestep in enumerate(TIMESTEPS):
            expected = restorer.denoise(latents, timestep, condition)
            predicted = denoiser(step, latents, condition.control_features, condition.encoded.latents)
            assert (predicted - expected).abs().max() <= 1e-5 * expected.abs().max()


class Operations(TorchDispatchMode):
    """Counts the operations that PyTorch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_it_dispatches_fewer_operations(tiny_restorer: Restorer) -> None:
    latents = torch.zeros(2, 4, 8, 4)
    with torch.no_grad():
        condition = conditioned(tiny_restorer)
        denoiser = Denoiser(ControlledUNet(tiny_restorer), condition.prompts.semantic_embedding, TIMESTEPS)
        with Operations() as plain:
            tiny_restorer.denoise(latents, TIMESTEPS[0], condition)
        with Operations() as lean:
            denoiser(0, latents, condition.control_features, condition.encoded.latents)
    assert lean.count <= 0.75 * plain.count, (lean.count, plain.count)


def test_another_architecture_is_refused(tiny_config: "ModelConfig") -> None:
    for change, message in (
        ({"act_fn": "gelu"}, "unet: act_fn=gelu is not supported, only act_fn=silu is"),
        ({"class_embed_type": "timestep"}, "unet: class_embed_type=timestep is not supported"),
        (
            {"down_block_types": ["ResnetDownsampleBlock2D", "DownBlock2D", "DownBlock2D"]},
            "unet: blocks of type ResnetDownsampleBlock2D are not supported",
        ),
    ):
        network = build_unet(replace(tiny_config, unet={**tiny_config.unet, **change}))
        with pytest.raises(ValueError, match=message):
            check_supported(network, "unet")
