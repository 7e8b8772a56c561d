"""Every compared method: its published size, its configuration saved and read again, sizes of images, gradients."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from diffrestorer.baselines.da_clip.model import DaClip
from diffrestorer.baselines.protocol import Baseline, whole
from diffrestorer.baselines.registry import BASELINES, build_baseline, find_baseline, load_baseline
from diffrestorer.config.composition import load
from diffrestorer.config.schema import BaselineConfig
from diffrestorer.models.components import ModelFolderError, save_component

PUBLISHED = {
    "airnet": 8.93,
    "transweather": 38.05,
    "nafnet": 67.89,
    "restormer": 26.13,
    "promptir": 35.59,
    "da_clip": 48.98,  # its U-Net
}
"""Millions of parameters."""

VIT = {
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "embed_dim": 12,
}
REGNET = {
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "regnetx_002",
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "embed_dim": 7,
    "quick_gelu": False,
}
PROMPTS = {"num_prompts": 3, "prompt_dims": [6, 4], "prompt_sizes": [5, 3], "prompt_heads": 2}
TRANSWEATHER = {"dims": [4, 8, 12, 16], "num_heads": [1, 2, 4, 2], "decoder_heads": 2, "num_queries": 5}
ODD: list[tuple[str, dict[str, Any]]] = [
    ("airnet", {"num_features": 3, "num_groups": 1, "num_blocks": 2, "embedding_dim": 5}),
    ("airnet", {"num_features": 6, "num_groups": 3, "num_blocks": 1, "embedding_dim": 4}),
    ("transweather", {**TRANSWEATHER, "depths": [1, 2, 1, 1], "decoder_depth": 1, "tail_dims": [3, 5]}),
    ("transweather", {**TRANSWEATHER, "reductions": [2, 1, 1, 1], "expansion": 3, "decoder_expansion": 1}),
    ("nafnet", {"width": 3, "encoder_blocks": [1, 2], "middle_blocks": 3, "decoder_blocks": [2, 1]}),
    ("nafnet", {"width": 7, "encoder_blocks": [1], "decoder_blocks": [1]}),
    ("restormer", {"dim": 6, "num_blocks": [1, 2, 1], "num_heads": [1, 3, 2], "num_refinement_blocks": 2}),
    ("restormer", {"dim": 4, "num_blocks": [2, 1], "num_heads": [2, 1], "num_refinement_blocks": 1, "expansion": 1.7}),
    ("promptir", {"dim": 6, "num_blocks": [1, 2, 1], "num_heads": [1, 3, 2], "num_refinement_blocks": 1, **PROMPTS}),
    ("promptir", {"dim": 4, "num_blocks": [1, 1], "num_heads": [2, 1], "num_prompts": 0}),
    ("da_clip", {"image_encoder": VIT, "features": 8, "multipliers": [1, 3], "attention_level": 1, "num_steps": 3}),
    ("da_clip", {
        "image_encoder": REGNET, "features": 12, "multipliers": [2, 1, 2], "attention_level": 2, "num_steps": 4,
        "max_sigma": 30.0, "sampler": "posterior",
    }),
]  # fmt: skip


def photo(height: int, width: int, count: int = 1) -> Float[Tensor, "b 3 h w"]:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def differing(method: str, arguments: dict[str, Any]) -> Baseline:
    """A small one whose every parameter is random, zero-initialised ones too."""
    torch.manual_seed(0)
    model = build_baseline(method, arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("method", BASELINES)
def test_published_sizes(method: str) -> None:
    config = load("train_baseline", BaselineConfig, [f"method={method}"])
    with torch.device("meta"):
        by_default, by_config = BASELINES[method](), build_baseline(method, config.network)
    assert by_config.state_dict().keys() == by_default.state_dict().keys()
    counted = by_config.unet if isinstance(by_config, DaClip) else by_config
    assert millions(counted) == pytest.approx(PUBLISHED[method], rel=0.01)
    if method == "da_clip":
        assert millions(by_config.controller.clip) == pytest.approx(
            87.85, rel=0.01
        )  # CLIP ViT-B/32, image tower
        return
    assert millions(by_default) == millions(counted)


def test_nafnet_of_width_32_is_the_smaller_published_one() -> None:
    config = load("train_baseline", BaselineConfig, ["method=nafnet", "network.width=32"])
    with torch.device("meta"):
        assert millions(build_baseline("nafnet", config.network)) == pytest.approx(17.11, rel=0.01)


@pytest.mark.parametrize("method", BASELINES)
def test_mini_sizes_are_mini(method: str) -> None:
    config = load("train_baseline", BaselineConfig, [f"method={method}", "size=mini"])
    with torch.device("meta"):
        model = build_baseline(method, config.network)
    assert 0.5 < millions(model.unet if isinstance(model, DaClip) else model) < 3


@pytest.mark.parametrize(("method", "arguments"), ODD)
def test_saved_and_read_again_they_agree(
    method: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    model = differing(method, arguments)
    save_component(model, tmp_path, torch.float32)
    again = load_baseline(tmp_path, method)
    assert {key: again.config[key] for key in arguments} == {
        key: model.config[key] for key in arguments
    }
    lq = photo(37, 50)
    restored = model.restore(lq)
    assert torch.equal(again.restore(lq), restored)
    assert restored.shape == lq.shape
    assert restored.aminmax().min >= 0
    assert restored.aminmax().max <= 1


MULTIPLES = {"airnet": 1, "transweather": 16, "nafnet": 4, "restormer": 4, "promptir": 4, "da_clip": 4}
"""Of the first of each method's odd ones."""


@pytest.mark.parametrize(("method", "arguments"), ODD[::2], ids=[method for method, _ in ODD[::2]])
def test_images_are_padded_as_the_authors_do_and_batches_change_nothing(
    method: str, arguments: dict[str, Any]
) -> None:
    """By reflection to the right and below; NAFNet's by zeros; DA-CLIP's at every step, for the U-Net alone."""
    model = differing(method, arguments)
    fits = photo(64, 64, count=2)
    alone = torch.cat([model.restore(image[None]) for image in fits])
    torch.testing.assert_close(model.restore(fits), alone, rtol=1e-5, atol=1e-5)
    assert model.multiple == MULTIPLES[method]
    missing = min(model.multiple - 1, 7)
    cropped = fits[..., : 64 - missing, :]
    added = cropped[..., -1 - missing : -1, :].flip(-2)
    padded = torch.cat([cropped, torch.zeros_like(added) if method == "nafnet" else added], dim=-2)
    if method == "da_clip":
        assert torch.equal(model.pad(cropped), cropped)
    else:
        assert torch.equal(model.pad(cropped), padded)
        expected = model.restore_padded(padded, 0, whole).clamp(0, 1)[..., : 64 - missing, :]
        torch.testing.assert_close(model.restore(cropped), expected)
    assert model.restore(photo(1, 1)).shape == (1, 3, 1, 1)


@pytest.mark.parametrize(("levels", "side"), [([1, 2], 4), ([1, 1, 2], 8), ([1, 1, 1, 2], 16)])
def test_da_clips_unet_pads_both_images_by_reflection(levels: list[int], side: int) -> None:
    """To two to the number of levels, one more than it halves: 16 at the published size."""
    model = differing(
        "da_clip", {"image_encoder": VIT, "features": 8, "multipliers": levels, "attention_level": 1}
    )
    height, width = 3 * side - 3, 2 * side - 1
    state, lq = photo(height, width), photo(height, width).flip(-1)
    embedding, steps = torch.ones(1, 12), torch.tensor([3])
    bigger = [torch.nn.functional.pad(images, (0, 1, 0, 3), mode="reflect") for images in (state, lq)]
    assert [length % side for length in bigger[0].shape[-2:]] == [0, 0]
    with torch.no_grad():
        noise = model.unet(state, lq, steps, embedding, embedding)
        expected = model.unet(*bigger, steps, embedding, embedding)
    torch.testing.assert_close(noise, expected[..., :height, :width], rtol=0, atol=1e-6)


def test_da_clips_clip_sees_the_image_without_padding() -> None:
    model, seen = differing("da_clip", ODD[10][1]), []
    model.controller.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    lq = photo(13, 22)
    model.restore(lq)
    assert torch.equal(seen[0], lq)


@pytest.mark.parametrize("sides", [(16, 16), (32, 200), (33, 33), (48, 40)])
def test_transweather_restores_images_that_its_reductions_are_too_large_for(
    sides: tuple[int, int],
) -> None:
    """On 32 pixels and fewer the authors' network fails."""
    model = differing("transweather", TRANSWEATHER)
    assert model.restore(photo(*sides)).shape[-2:] == sides


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("nafnett", {}, "method=nafnett is unknown"),
        ("nafnet", {"widht": 3}, "network.widht is not an argument of NAFNet"),
        ("nafnet", {"encoder_blocks": [1, 1], "decoder_blocks": [1]}, "encoder_blocks names 2 sizes"),
        ("restormer", {"dim": 4, "num_heads": [1, 2, 4]}, "num_blocks names 4 sizes, num_heads 3"),
        (
            "restormer",
            {"dim": 5, "num_heads": [2, 2, 4, 8]},
            "a width of 5 does not divide among 2 heads",
        ),
        ("promptir", {"dim": 8, "prompt_dims": [8]}, "one entry for each upsampling"),
        ("transweather", {"dims": [4, 8, 12]}, "an entry for each of four stages"),
        (
            "transweather",
            {"inner_heads": [1, 2, 4, 4]},
            "an entry for each of three intra-patch blocks",
        ),
        ("da_clip", {"image_encoder": VIT, "sampler": "ddim"}, "choose sde or posterior"),
        ("da_clip", {"image_encoder": VIT, "features": 8, "num_steps": 0}, "num_steps >= 1"),
    ],
)
def test_what_does_not_fit_is_refused(method: str, arguments: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_baseline(method, arguments)


def test_another_method_or_size_is_refused_naming_what_differs(tmp_path: Path) -> None:
    save_component(differing("nafnet", ODD[4][1]), tmp_path, torch.float32)
    assert find_baseline(tmp_path) == "nafnet"
    with pytest.raises(ModelFolderError, match="holds nafnet, not restormer"):
        load_baseline(tmp_path, "restormer")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "width": 5}))
    with pytest.raises(
        ModelFolderError, match=r"network\.decoders\.0\.0\.beta is .* tensors differ: network"
    ):
        load_baseline(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert find_baseline(tmp_path) is None
    with pytest.raises(
        ModelFolderError, match="holds none of the methods airnet, transweather, nafnet"
    ):
        load_baseline(tmp_path)
