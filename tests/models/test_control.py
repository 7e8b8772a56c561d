"""Control encoder, decoder and network: sizes of the paper, and an untouched UNet at step 0."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn

from diffrestorer.models.components import load_component, load_weights, save_component
from diffrestorer.models.control import ControlDecoder, ControlEncoder, ControlNetwork
from diffrestorer.models.restorer import build_control_decoder

SD15_LAYOUT: dict[str, Any] = {
    "sample_size": 16,
    "down_block_types": [
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [8, 8, 16, 16],
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**SD15_LAYOUT).eval()


def unet_inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents, timesteps, token, control features."""
    g = torch.Generator().manual_seed(5)
    latents, token = torch.randn(batch, 4, 16, 16, generator=g), torch.randn(batch, 1, 12, generator=g)
    return latents, torch.tensor([7, 900])[:batch], token, torch.randn(batch, 8, 16, 16, generator=g)


def controlled(
    unet: UNet2DConditionModel, network: ControlNetwork, *inputs: torch.Tensor
) -> torch.Tensor:
    latents, timesteps, token, features = inputs
    down, mid = network(latents, timesteps, token, features, return_dict=False)
    return unet(
        latents,
        timesteps,
        token,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
    ).sample


def zero_convolutions(network: ControlNetwork) -> list[nn.Conv2d]:
    return [*network.controlnet_down_blocks, network.controlnet_mid_block]


def first_features(network: UNet2DConditionModel | ControlNetwork, *inputs: Any) -> torch.Tensor:
    """What the network's first block is given."""
    seen: list[torch.Tensor] = []
    hook = network.down_blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("hidden_states", *args)), with_kwargs=True
    )
    with torch.no_grad():
        network(*inputs, return_dict=False)
    hook.remove()
    return seen[0]


def test_encoder_of_the_paper_takes_512_to_64() -> None:
    with torch.device("meta"):
        encoder = ControlEncoder()
        features = encoder(torch.zeros(1, 3, 512, 512), torch.zeros(1, 256))
    assert features.shape == (1, 320, 64, 64)
    widths = [block.block1.conv1.out_channels for block in encoder.blocks]
    strides = [block.block1.conv1.stride[0] for block in encoder.blocks]
    assert (widths, strides) == ([64, 128, 256, 320], [1, 2, 2, 2]), "four DMBs, the first at full size"
    assert all(block.gate is not None for block in encoder.blocks)


def test_encoder_works_at_full_size_first() -> None:
    encoder = ControlEncoder([4, 6, 8, 8], 5, 2)
    sizes: list[torch.Size] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _, inputs, output: sizes.append(output.shape[1:]))
    assert encoder(torch.rand(1, 3, 128, 128), torch.randn(1, 5)).shape == (1, 8, 16, 16)
    assert sizes == [(4, 128, 128), (6, 64, 64), (8, 32, 32), (8, 16, 16)]


def test_encoder_heeds_the_degradation_unless_unmodulated() -> None:
    lq, p_d = torch.rand(1, 3, 16, 16), torch.randn(1, 5)
    encoder = ControlEncoder([4, 4, 4, 4], 5, 2)
    assert not torch.allclose(encoder(lq, p_d), encoder(lq, -p_d), atol=1e-4)
    plain = ControlEncoder([4, 4, 4, 4], 5, 2, modulate=False)
    assert torch.equal(plain(lq, p_d), plain(lq, -p_d))
    assert not [name for name, _ in plain.named_parameters() if "gate" in name]


def test_decoder_mirrors_the_encoder() -> None:
    encoder = ControlEncoder([4, 6, 8, 10], 5, 2)
    decoder = build_control_decoder(encoder)
    assert [block.conv1.in_channels for block in decoder.blocks] == [10, 8, 6, 4]
    lq = torch.rand(2, 3, 40, 24)
    features = encoder(lq, torch.randn(2, 5))
    assert features.shape == (2, 10, 5, 3)
    assert decoder(features).shape == lq.shape
    with torch.device("meta"):
        assert ControlDecoder()(torch.zeros(1, 320, 64, 64)).shape == (1, 3, 512, 512)


def test_network_has_12_and_1_zero_convolutions(unet: UNet2DConditionModel) -> None:
    network = ControlNetwork.from_unet(unet)
    assert type(network) is ControlNetwork
    assert len(network.controlnet_down_blocks) == 12
    assert all(conv.kernel_size == (1, 1) for conv in zero_convolutions(network))
    assert all(
        (parameter == 0).all() for conv in zero_convolutions(network) for parameter in conv.parameters()
    )


def test_network_copies_the_unet_s_encoder(unet: UNet2DConditionModel) -> None:
    network = ControlNetwork.from_unet(unet)
    own, source = network.state_dict(), unet.state_dict()
    copied = {
        name
        for name in source
        if name.startswith(("conv_in", "time_embedding", "down_blocks", "mid_block"))
    }
    assert copied == {name for name in own if not name.startswith(("controlnet_", "zero_conv_in"))}
    assert all(torch.equal(own[name], source[name]) for name in copied)


def test_network_has_no_image_embedding(unet: UNet2DConditionModel) -> None:
    network, original = ControlNetwork.from_unet(unet), ControlNetModel.from_unet(unet)
    embedding = {name for name in original.state_dict() if name.startswith("controlnet_cond_embedding")}
    assert embedding
    entrance = {"zero_conv_in.weight", "zero_conv_in.bias"}
    assert set(network.state_dict()) == set(original.state_dict()) - embedding | entrance


def test_unet_is_untouched_at_step_0(unet: UNet2DConditionModel) -> None:
    inputs = unet_inputs()
    with torch.no_grad():
        assert torch.equal(
            controlled(unet, ControlNetwork.from_unet(unet), *inputs), unet(*inputs[:3]).sample
        )


def test_at_step_0_the_copy_sees_what_the_unet_sees(unet: UNet2DConditionModel) -> None:
    """Whatever the control encoder, untrained, makes of the degraded image."""
    network = ControlNetwork.from_unet(unet)
    *inputs, features = unet_inputs()
    expected = unet.conv_in(inputs[0])
    assert torch.equal(first_features(network, *inputs, network.enter(100 * features)), expected)
    assert torch.equal(first_features(unet, *inputs), expected)


def test_feature_is_added_after_conv_in(unet: UNet2DConditionModel) -> None:
    network = ControlNetwork.from_unet(unet)
    nn.init.normal_(network.zero_conv_in.weight)
    *inputs, features = unet_inputs()
    entered = network.enter(features)
    expected = torch.einsum("oc,bchw->bohw", network.zero_conv_in.weight[..., 0, 0], features)
    assert torch.allclose(entered, expected, atol=1e-5)
    assert torch.equal(first_features(network, *inputs, entered), network.conv_in(inputs[0]) + entered)


def test_networks_of_older_folders_have_no_convolution(
    unet: UNet2DConditionModel, tmp_path: Path
) -> None:
    """Their config.json does not name it; a run that goes on from one adds its feature as it was added."""
    old = ControlNetwork(
        **{k: v for k, v in unet.config.items() if k in ControlNetwork._get_init_keys(ControlNetwork)}
    )
    features = unet_inputs()[3]
    assert old.enter(features) is features
    save_component(old, tmp_path / "control_network", torch.float32)
    file = tmp_path / "control_network" / "config.json"
    config = json.loads(file.read_text())
    assert config.pop("zero_convolution") is False
    file.write_text(json.dumps(config))
    assert load_component(tmp_path / "control_network").zero_conv_in is None

    new = ControlNetwork.from_unet(unet)
    load_weights(new, tmp_path / "control_network")
    assert torch.equal(new.enter(features), features)
    for name, weight in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], weight), name


def test_the_bundled_model_loads_as_it_was_trained() -> None:
    folder = Path(str(files("diffrestorer"))) / "weights" / "mini" / "control_network"
    network = load_component(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["zero_convolution"] == (network.zero_conv_in is not None)


def test_control_matters_once_trained(unet: UNet2DConditionModel) -> None:
    network = ControlNetwork.from_unet(unet)
    for index, conv in enumerate(zero_convolutions(network)):
        nn.init.normal_(conv.weight, generator=torch.Generator().manual_seed(index))
    nn.init.eye_(network.zero_conv_in.weight[:, :, 0, 0])
    latents, timesteps, token, features = unet_inputs()
    features = network.enter(features).detach()
    with torch.no_grad():
        plain = unet(latents, timesteps, token).sample
        first = controlled(unet, network, latents, timesteps, token, features)
        other_feature = controlled(unet, network, latents, timesteps, token, -features)
        other_token = network(latents, timesteps, -token, features, return_dict=False)[1]
        own_token = network(latents, timesteps, token, features, return_dict=False)[1]
    assert not torch.allclose(first, plain, atol=1e-3)
    assert not torch.allclose(first, other_feature, atol=1e-3)
    assert not torch.allclose(own_token, other_token, atol=1e-5), "its cross-attention takes P_S"
