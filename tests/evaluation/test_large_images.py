"""Large images through the compared methods: by tiles that blend, each method's network never larger than a tile."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from diffrestorer.baselines.protocol import Baseline, whole
from diffrestorer.baselines.registry import build_baseline
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.restoring.compared_runner import by_tiles
from diffrestorer.evaluation.restoring.runners import Sampling, open_runner
from diffrestorer.inference import tiling
from diffrestorer.inference.tiling import Axis
from diffrestorer.models.components import save_component

VIT = {
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8},
    "embed_dim": 12,
}
TINY = {
    "airnet": {"num_features": 4, "num_groups": 1, "num_blocks": 1, "embedding_dim": 6},
    "transweather": {"dims": [4, 8, 12, 16], "num_heads": [1, 2, 2, 4], "decoder_depth": 1, "tail_dims": [4, 4]},
    "nafnet": {"width": 4, "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]},
    "restormer": {"dim": 4, "num_blocks": [1, 1], "num_heads": [1, 2], "num_refinement_blocks": 1},
    "promptir": {"dim": 4, "num_blocks": [1, 1], "num_heads": [1, 2], "num_refinement_blocks": 1, "prompt_dims": [4],
                 "prompt_sizes": [8], "prompt_heads": 2},
    "da_clip": {"image_encoder": VIT, "features": 8, "multipliers": [1, 2], "attention_level": 1, "num_steps": 3},
}  # fmt: skip
REACH = 24
"""Pixels from which a tiny AirNet's output is made, to each side; its offsets are kept small."""


def tiny(method: str) -> Baseline:
    """Weights moved off their start, where some methods are the identity."""
    torch.manual_seed(0)
    model = build_baseline(method, TINY[method]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "offset" not in name:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def image(height: int, width: int, seed: int = 0) -> Float[Tensor, "1 3 h w"]:
    """Smooth shapes and some noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return 0.8 * smooth + 0.2 * torch.rand(1, 3, height, width, generator=generator)


def near_an_edge(axis: Axis, reach: int) -> np.ndarray:
    """Which positions lie within `reach` of the edge of a tile that covers them, the image's own edges aside."""
    near = np.zeros(axis.length, bool)
    for start in axis.starts:
        end = start + axis.side
        if start:
            near[start : start + reach] = True
        if end < axis.length:
            near[end - reach : end] = True
    return near


@pytest.mark.parametrize("method", TINY)
def test_one_tile_is_the_whole(method: str) -> None:
    model, lq = tiny(method), image(37, 64)
    assert torch.equal(model.restore(lq, 3, by_tiles(64, model.multiple)), model.restore(lq, 3, whole))


def test_a_local_network_is_the_same_by_tiles() -> None:
    """AirNet gathers nothing from the whole image: only where a tile lacks a neighbour may it differ."""
    model, lq = tiny("airnet"), image(224, 160)
    expected, found = model.restore(lq), model.restore(lq, run=by_tiles(128, 1))
    rows, columns = (near_an_edge(Axis.spread(length, 128, 1), REACH) for length in (224, 160))
    inside = torch.from_numpy(~(rows[:, None] | columns))
    assert 0.2 < inside.float().mean() < 0.9
    torch.testing.assert_close(found[..., inside], expected[..., inside], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", TINY)
def test_no_seam_stands_out(method: str) -> None:
    """What tiles change, they change smoothly: no step at a tile's edge is larger than the steps elsewhere."""
    model, lq = tiny(method), image(64, 224)
    whole_image, tiled = model.restore(lq), model.restore(lq, run=by_tiles(96, model.multiple))
    axis = Axis.spread(224, 96, model.multiple)
    edges = [edge for start in axis.starts for edge in (start, start + axis.side) if 0 < edge < 224]
    changed = (tiled - whole_image).diff(dim=-1).abs().mean(dim=(0, 1, 2))
    assert len(edges) >= 4
    at_edges = changed[[edge - 1 for edge in edges]]
    own = whole_image.diff(dim=-1).abs().mean()
    assert at_edges.max() <= max(changed.median().item() * 4, 0.02 * own.item())


def test_the_networks_see_tiles_and_clip_the_whole() -> None:
    """So memory does not grow with the image, and every tile is told the same content."""
    model, seen = tiny("da_clip"), {"unet": [], "clip": []}
    model.unet.register_forward_pre_hook(lambda _, inputs: seen["unet"].append(tuple(inputs[0].shape)))
    model.controller.register_forward_pre_hook(
        lambda _, inputs: seen["clip"].append(tuple(inputs[0].shape))
    )
    for width, tiles in ((128, 6), (256, 10)):
        seen["unet"].clear()
        model.restore(image(96, width), run=by_tiles(64, model.multiple))
        assert seen["clip"].pop() == (1, 3, 96, width)
        assert len(seen["unet"]) == tiles * 3, "each tile at each of three steps"
        assert all(shape[0] == 1 and max(shape[2:]) <= 64 for shape in seen["unet"])


def test_the_runner_takes_large_images_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megapixel is a few thousand pixels here."""
    monkeypatch.setattr(tiling, "WHOLE_PIXELS", 64 * 64)
    monkeypatch.setattr(tiling, "AUTO_SIDE", 64)
    model = tiny("restormer")
    save_component(model, tmp_path / "restormer", torch.float32)
    method = Method("restormer", "baseline", str(tmp_path / "restormer"))
    runner = open_runner([method], Sampling(), torch.device("cpu"))
    lq = torch.cat([image(97, 80), image(97, 80, seed=1)])
    names = ["one", "two"]
    expected: Sequence[Tensor] = [
        model.restore(row, run=by_tiles(64, model.multiple)) for row in lq.split(1)
    ]
    assert torch.equal(
        runner.restore(lq, names, [method])["restormer"].images, torch.cat(list(expected))
    )
    assert not torch.allclose(torch.cat(list(expected)), model.restore(lq), atol=1e-4), (
        "its attention sees a tile"
    )
    small = lq[..., :64, :64]
    assert torch.equal(runner.restore(small, names, [method])["restormer"].images, model.restore(small))
