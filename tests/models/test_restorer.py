"""The assembly: networks that fit one another, an untouched base at step 0, and model folders read strictly."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from diffrestorer.config.schema import ModelConfig
from diffrestorer.models.backbones import ImageEncoder, decode_latents
from diffrestorer.models.components import (
    COMPONENTS,
    WEIGHTS_NAME,
    ModelFolderError,
    build_unet,
    build_vae,
    load_component,
    save_component,
)
from diffrestorer.models.control import ControlEncoder, ControlNetwork
from diffrestorer.models.decoder import DegradationAwareDecoder
from diffrestorer.models.mini import (
    MiniControlEncoder,
    MiniDecoder,
    MiniImageEncoder,
    PatchAutoencoderKL,
)
from diffrestorer.models.pretrained import load_base
from diffrestorer.models.prompt_processor import PromptProcessor
from diffrestorer.models.restorer import Restorer, build_restorer

VAE = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
UNET = {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
UNETS: list[dict[str, Any]] = [
    {
        **UNET,
        "block_out_channels": [4, 8],
        "norm_num_groups": 2,
        "cross_attention_dim": 5,
        "attention_head_dim": 2,
    },
    {
        **UNET,
        "in_channels": 7,
        "out_channels": 7,
        "block_out_channels": [6, 12],
        "layers_per_block": 1,
        "norm_num_groups": 3,
        "cross_attention_dim": 9,
        "attention_head_dim": 3,
        "sample_size": 12,
    },
]
VARIANTS: list[tuple[str, Callable[[], ModelMixin]]] = [
    ("vae", lambda: AutoencoderKL(**VAE, block_out_channels=[2, 4, 6, 8], norm_num_groups=2)),
    (
        "vae",
        lambda: AutoencoderKL(
            **VAE,
            block_out_channels=[3, 9, 6, 3],
            layers_per_block=2,
            latent_channels=5,
            norm_num_groups=3,
            scaling_factor=1.3,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
    ),
    ("vae", lambda: PatchAutoencoderKL(**VAE, block_out_channels=[2, 4, 6, 8], norm_num_groups=2)),
    (
        "vae",
        lambda: PatchAutoencoderKL(
            **VAE,
            block_out_channels=[3, 9, 6, 3],
            layers_per_block=2,
            latent_channels=11,
            norm_num_groups=3,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        ),
    ),
    (
        "image_encoder",
        lambda: ImageEncoder({"image_size": 28, "layers": 1, "width": 64, "patch_size": 14}, 6),
    ),
    (
        "image_encoder",
        lambda: ImageEncoder(
            {"image_size": 24, "layers": 2, "width": 12, "head_width": 4, "patch_size": 8},
            5,
            quick_gelu=False,
            mean=(0.1, 0.2, 0.3),
            std=(1.0, 0.9, 0.8),
        ),
    ),
    (
        "image_encoder",
        lambda: ImageEncoder(
            {
                "image_size": 32,
                "timm_model_name": "convnext_zepto_rms",
                "timm_pool": "avg",
                "timm_proj": "linear",
            },
            7,
            quick_gelu=False,
        ),
    ),
    (
        "image_encoder",
        lambda: ImageEncoder(
            {
                "image_size": 32,
                "timm_model_name": "regnetx_002",
                "timm_pool": "avg",
                "timm_proj": "linear",
            },
            9,
        ),
    ),
    ("prompt_processor", lambda: PromptProcessor(5, 7, 3, 2)),
    ("prompt_processor", lambda: PromptProcessor(6, 6, 3, 2, semantic=False, degradation=False)),
    *(("unet", lambda arguments=arguments: UNet2DConditionModel(**arguments)) for arguments in UNETS),
    *(
        (
            "control_network",
            lambda arguments=arguments: ControlNetwork.from_unet(UNet2DConditionModel(**arguments)),
        )
        for arguments in UNETS
    ),
    ("control_encoder", lambda: ControlEncoder([4, 2, 6, 8], 3, 2)),
    ("control_encoder", lambda: ControlEncoder([3, 9], 5, 3, modulate=False)),
    ("control_encoder", lambda: MiniControlEncoder([3, 9], 5, 3, modulate=False, latent_channels=7)),
    ("decoder", lambda: DegradationAwareDecoder(3, [2, 4, 6, 8], 1, 2, degradation_dim=3)),
    (
        "decoder",
        lambda: MiniDecoder(5, [3, 9, 6, 3], 2, 3, 0.7, False, False, degradation_dim=4, refine=False),
    ),
    (
        "decoder",
        lambda: MiniDecoder(5, [3, 9, 6, 3], 2, 3, 0.7, False, False, 4, pixel_channels=[3, 6]),
    ),
    (
        "image_encoder",
        lambda: MiniImageEncoder(
            {"image_size": 32, "timm_model_name": "tf_efficientnet_lite0"}, 9, quick_gelu=False
        ),
    ),
]
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(VARIANTS)]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(
        a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(first.values(), second.values(), strict=True)
    )


def as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


@pytest.mark.parametrize(("name", "build"), VARIANTS, ids=IDS)
def test_saved_components_come_back_bit_for_bit(
    name: str, build: Callable[[], ModelMixin], tmp_path: Path, randomised: Callable
) -> None:
    component = randomised(build())
    save_component(component, tmp_path / name, torch.float32)
    loaded = load_component(tmp_path / name)
    assert type(loaded) is type(component)
    assert same(dict(loaded.state_dict()), dict(component.state_dict()))
    changed = {
        key: (component.config[key], loaded.config[key])
        for key in component.config
        if not key.startswith("_") and as_json(component.config[key]) != as_json(loaded.config[key])
    }
    assert not changed
    assert not loaded.training
    left_out = {key for key, _ in loaded.named_buffers()} - set(loaded.state_dict())
    assert not left_out, "a buffer that is not saved would hold garbage after loading"


def test_every_component_is_among_the_variants() -> None:
    assert {name for name, _ in VARIANTS} == set(COMPONENTS)
    assert {type(build()) for _, build in VARIANTS} == {
        cls for classes in COMPONENTS.values() for cls in classes
    }


def test_fp16_saving_leaves_the_live_component_float32(tmp_path: Path, randomised: Callable) -> None:
    component = randomised(PromptProcessor(5, 7, 3, 2))
    before = copy.deepcopy(component.state_dict())
    save_component(component, tmp_path / "prompt_processor", torch.float16)
    assert same(dict(component.state_dict()), before)
    assert component.dtype == torch.float32
    on_disk = load_file(tmp_path / "prompt_processor" / WEIGHTS_NAME)
    assert {value.dtype for value in on_disk.values()} == {torch.float16}
    loaded = load_component(tmp_path / "prompt_processor").state_dict()
    assert same(dict(loaded), {key: value.half().float() for key, value in before.items()}), (
        "read back in float32"
    )


def test_counts_of_a_batch_norm_survive_fp16(tmp_path: Path) -> None:
    """fp16 ends at 65,504: what is no weight keeps its type."""
    vision_cfg = {
        "image_size": 32,
        "timm_model_name": "regnetx_002",
        "timm_pool": "avg",
        "timm_proj": "linear",
    }
    encoder = ImageEncoder(vision_cfg, 9)
    counts = [
        buffer for name, buffer in encoder.named_buffers() if name.endswith("num_batches_tracked")
    ]
    assert counts
    for buffer in counts:
        buffer.fill_(100_001)
    save_component(encoder, tmp_path / "image_encoder", torch.float16)
    loaded = dict(load_component(tmp_path / "image_encoder").named_buffers())
    assert {int(b) for name, b in loaded.items() if name.endswith("num_batches_tracked")} == {100_001}


def _edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def _edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "config cut off": (
        lambda f: (f / "config.json").write_text('{"clip_dim": '),
        r"config\.json cannot be read",
    ),
    "config not an object": (
        lambda f: (f / "config.json").write_text("[]"),
        r"config\.json .*no JSON object",
    ),
    "config of another class": (
        lambda f: _edit_json(f / "config.json", _class_name="UNet2DModel"),
        r"config\.json describes a UNet2DModel, where PromptProcessor is expected",
    ),
    "unknown key": (lambda f: _edit_json(f / "config.json", sematic=True), r"config\.json.*sematic"),
    "wrong value": (
        lambda f: _edit_json(f / "config.json", hidden_dim="wide"),
        r"config\.json does not describe",
    ),
    "impossible value": (
        lambda f: _edit_json(f / "config.json", hidden_dim=-1),
        r"config\.json does not describe",
    ),
    "other widths": (
        lambda f: _edit_json(f / "config.json", hidden_dim=4),
        rf"{WEIGHTS_NAME} does not fit",
    ),
    "no weights": (lambda f: (f / WEIGHTS_NAME).unlink(), rf"{WEIGHTS_NAME} is missing"),
    "empty weights": (
        lambda f: (f / WEIGHTS_NAME).write_bytes(b""),
        rf"{WEIGHTS_NAME} is damaged or truncated",
    ),
    "weights cut off": (
        lambda f: (f / WEIGHTS_NAME).write_bytes((f / WEIGHTS_NAME).read_bytes()[:-20]),
        rf"{WEIGHTS_NAME} is damaged or truncated",
    ),
    "weights of nothing": (
        lambda f: (f / WEIGHTS_NAME).write_bytes(b"\x80" * 100),
        rf"{WEIGHTS_NAME} is damaged or truncated",
    ),
    "tensor missing": (
        lambda f: _edit_weights(f / WEIGHTS_NAME, lambda t: t.pop("classifier.bias")),
        rf"{WEIGHTS_NAME} does not fit its config.json: classifier.bias is missing",
    ),
    "tensor too much": (
        lambda f: _edit_weights(f / WEIGHTS_NAME, lambda t: t.update(extra=torch.zeros(2))),
        rf"{WEIGHTS_NAME} does not fit its config.json: extra is \(2,\) there, not part of the model",
    ),
    "wrong shape": (
        lambda f: _edit_weights(
            f / WEIGHTS_NAME, lambda t: t.update({"classifier.bias": torch.zeros(7)})
        ),
        rf"{WEIGHTS_NAME} does not fit its config.json: classifier.bias is \(7,\) there, \(8,\) by the config",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_refused_by_file(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "prompt_processor"
    save_component(PromptProcessor(5, 7, 3, 2), folder, torch.float32)
    do, message = DAMAGE[damage]
    do(folder)
    with pytest.raises(ModelFolderError, match=message) as caught:
        load_component(folder)
    assert str(folder) in str(caught.value)


def test_step_0_leaves_the_unet_as_it_is(tiny_restorer: Restorer) -> None:
    lq, noisy = torch.rand(2, 3, 32, 64), torch.randn(2, 4, 4, 8)
    with torch.no_grad():
        prompts = tiny_restorer.read_prompts(lq)
        condition = tiny_restorer.condition(lq, prompts)
        found = tiny_restorer.denoise(noisy, torch.tensor(500), condition)
        alone = tiny_restorer.unet(noisy, torch.tensor(500), prompts.semantic_embedding).sample
        assert torch.equal(found, alone + condition.encoded.latents), (
            "mini: relative to the degraded latents"
        )


def test_the_prediction_need_not_be_relative_and_then_is_the_unet_s(tiny_config: ModelConfig) -> None:
    restorer = build_restorer(
        replace(tiny_config, relative_prediction=False), *load_base(tiny_config)
    ).eval()
    lq, noisy = torch.rand(1, 3, 32, 32), torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        prompts = restorer.read_prompts(lq)
        found = restorer.denoise(noisy, torch.tensor([3]), restorer.condition(lq, prompts))
        assert torch.equal(
            found, restorer.unet(noisy, torch.tensor([3]), prompts.semantic_embedding).sample
        )


def test_both_decoders_agree_at_step_0(tiny_restorer: Restorer, randomised: Callable) -> None:
    lq = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        condition = tiny_restorer.condition(lq, tiny_restorer.read_prompts(lq))
        latents = torch.randn_like(condition.encoded.latents)
        refined = tiny_restorer.decode(latents, condition)
        assert torch.equal(refined, tiny_restorer.decode(latents, condition, refined=False))
        assert torch.equal(refined, decode_latents(tiny_restorer.vae, latents))
        trained = randomised(tiny_restorer)
        assert not torch.allclose(trained.decode(latents, condition), refined, atol=1e-3)


def test_control_heeds_the_degraded_image_once_trained(
    tiny_restorer: Restorer, randomised: Callable
) -> None:
    restorer, noisy = randomised(tiny_restorer), torch.randn(1, 4, 4, 4)
    lq = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        prompts = restorer.read_prompts(lq)
        condition = restorer.condition(lq, prompts)
        other = replace(condition, control_features=-condition.control_features)
        step = torch.tensor([500])
        assert not torch.allclose(
            restorer.denoise(noisy, step, condition), restorer.denoise(noisy, step, other), atol=1e-4
        )


def test_components_have_their_names(tiny_restorer: Restorer) -> None:
    components = tiny_restorer.components()
    assert list(components) == list(COMPONENTS)
    assert all(isinstance(components[name], classes) for name, classes in COMPONENTS.items())
    assert sum(1 for _ in tiny_restorer.parameters()) == sum(
        len(list(c.parameters())) for c in components.values()
    )


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("prompt_processor", {"clip_dim": 13}, "embed_dim.*12.*clip_dim.*13"),
        ("prompt_processor", {"semantic_dim": 13}, "semantic_dim.*13.*cross_attention_dim.*12"),
        ("prompt_processor", {"degradation_dim": 7}, "degradation_dim.*7.*degradation_dim.*6"),
        ("control_encoder", {"block_out_channels": [4, 8, 8, 16]}, "last width.*16.*first.*8"),
        ("unet", {"in_channels": 5}, "latent_channels.*4.*in_channels.*5"),
        (
            "prompt_processor",
            {"sematic": False},
            r"model\.prompt_processor\.sematic is not an argument",
        ),
        (
            "control_encoder",
            {"modulated": False},
            r"model\.control_encoder\.modulated is not an argument",
        ),
    ],
)
def test_networks_that_do_not_fit_are_refused(
    section: str, changes: dict[str, Any], message: str, tiny_config: ModelConfig
) -> None:
    config = replace(tiny_config, **{section: {**getattr(tiny_config, section), **changes}})
    with pytest.raises(ValueError, match=message):
        build_restorer(config, *load_base(config))


def test_unknown_arguments_and_classes_are_refused(tiny_config: ModelConfig) -> None:
    with pytest.raises(
        ValueError, match=r"model\.vae\.latents is not an argument of PatchAutoencoderKL"
    ):
        build_vae(replace(tiny_config, vae={**tiny_config.vae, "latents": 4}))
    with pytest.raises(ValueError, match=r"model\.unet\.width"):
        build_unet(replace(tiny_config, unet={**tiny_config.unet, "width": 4}))
    with pytest.raises(
        ValueError, match=r"model\.vae_class=VAE is unknown; choose one of AutoencoderKL"
    ):
        build_vae(replace(tiny_config, vae_class="VAE"))


def test_a_folder_s_files_are_config_and_safetensors(tmp_path: Path) -> None:
    save_component(PromptProcessor(5, 7, 3, 2), tmp_path / "prompt_processor", torch.float32)
    assert {path.name for path in (tmp_path / "prompt_processor").iterdir()} == {
        "config.json",
        WEIGHTS_NAME,
    }
    shutil.copytree(tmp_path / "prompt_processor", tmp_path / "elsewhere")
    assert isinstance(load_component(tmp_path / "elsewhere", "prompt_processor"), PromptProcessor)
    assert not re.search(str(tmp_path), (tmp_path / "prompt_processor" / "config.json").read_text())


def test_a_path_for_the_latents_needs_sample_prediction(tiny_config: ModelConfig) -> None:
    config = replace(tiny_config, scheduler={**tiny_config.scheduler, "prediction_type": "epsilon"})
    with pytest.raises(
        ValueError, match=r"it needs model\.scheduler\.prediction_type=sample, not epsilon"
    ):
        build_restorer(config, *load_base(config))
