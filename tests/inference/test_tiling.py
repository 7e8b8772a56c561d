"""Tiles: they cover, they blend, they agree with the whole, and nothing depends on how many run at a time."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch import nn
from torch.nn import functional as F

from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.inference.tiling import (
    Axis,
    Grid,
    _pooled_moments,
    smaller_sides,
    tile_side,
    until_it_fits,
)

if TYPE_CHECKING:
    from diffrestorer.config.schema import ModelConfig
    from diffrestorer.models.restorer import Restorer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mini() -> DiffRestorerPipeline:
    pipeline = DiffRestorerPipeline.from_pretrained("mini")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def tiny(
    tiny_restorer: "Restorer", tiny_config: "ModelConfig", randomised: Callable
) -> DiffRestorerPipeline:
    restorer = randomised(tiny_restorer)
    scheduler = UniPCMultistepScheduler(**tiny_config.scheduler)
    pipeline = DiffRestorerPipeline(**restorer.components(), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def axes() -> Iterator[Axis]:
    for length in range(4, 400, 12):
        for largest in (16, 32, 128):
            yield Axis.spread(length, largest, 4)


def test_tiles_cover_an_axis_and_overlap() -> None:
    for axis in axes():
        assert axis.starts[0] == 0
        assert axis.starts[-1] + axis.side == axis.length
        for start, following in zip(axis.starts, axis.starts[1:], strict=False):
            assert 0 < following - start < axis.side, axis
            assert start % 4 == following % 4 == 0


def test_weights_are_smooth_and_sum_to_1() -> None:
    for axis in axes():
        weights = axis.weights(2, CPU)
        total = torch.zeros(2 * axis.length)
        for start, row in zip(axis.starts, weights, strict=True):
            total[2 * start : 2 * (start + axis.side)] += row
        torch.testing.assert_close(total, torch.ones_like(total))
        inner = weights[1:, 0] if len(weights) > 1 else torch.zeros(1)
        assert (inner < 0.1).all(), "a tile's edge hardly counts"


def test_a_pointwise_network_is_the_same_by_tiles() -> None:
    grid = Grid(Axis.spread(40, 16, 4), Axis.spread(24, 16, 4), batch_size=2)
    canvas, fine = torch.rand(1, 3, 40, 24), torch.rand(1, 3, 80, 48)
    blended = grid.run(
        lambda own, other: own.sin().repeat_interleave(2, 2).repeat_interleave(2, 3) + other,
        [canvas, fine],
    )
    torch.testing.assert_close(blended, F.interpolate(canvas.sin(), scale_factor=2.0) + fine)


def test_shared_statistics_leave_no_trace_of_the_tiles() -> None:
    """A step in brightness: a tile's own GroupNorm would flatten each side, shared ones keep it."""
    grid = Grid(Axis.spread(64, 32, 4), Axis.spread(64, 32, 4))
    canvas = torch.cat(
        [torch.zeros(1, 4, 64, 32), torch.ones(1, 4, 64, 32)], dim=3
    ) + 0.01 * torch.rand(1, 4, 64, 64)
    norm = nn.GroupNorm(2, 4)
    with torch.no_grad():
        whole, shared, own = norm(canvas), grid.run_shared(norm, [canvas], 4), grid.run(norm, [canvas])
    assert (shared - whole).abs().max() <= 0.05
    assert (own - whole).abs().max() > 0.5


def test_pooled_moments_are_those_of_all_values() -> None:
    features = torch.randn(3, 6, 5, 4) + torch.arange(3.0)[:, None, None, None]
    groups = features.transpose(0, 1).reshape(2, -1)
    mean, variance = _pooled_moments(features, 2)
    torch.testing.assert_close(mean, groups.mean(dim=1))
    torch.testing.assert_close(variance, groups.var(dim=1, correction=0))


@pytest.mark.parametrize(
    ("tile", "size", "expected"),
    [
        ("none", (5000, 5000), None),
        ("auto", (1024, 1024), None),
        ("auto", (512, 2048), None),
        ("auto", (1024, 1025), 768),
        (512, (512, 300), None),
        (512, (512, 600), 512),
        (540, (512, 600), 512),
    ],
)
def test_large_images_are_tiled(tile: str | int, size: tuple[int, int], expected: int | None) -> None:
    assert tile_side(tile, *size, multiple=64) == expected


def test_a_useless_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="'none' or a number of pixels of at least 256, not 100"):
        tile_side(100, 2000, 2000, multiple=64)


def test_tiles_shrink_where_memory_falls_short() -> None:
    """And go one by one then: a batch of them would take as much memory as one large tile."""
    tried: list[tuple[int | None, int | None]] = []

    def run(side: int | None, batch_size: int | None) -> str:
        tried.append((side, batch_size))
        if side is None or side > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert until_it_fits(run, [None, *smaller_sides(None, (900, 700), 64)], 3) == "done"
    assert tried == [(None, 3), (512, 1), (256, 1)]
    with pytest.raises(torch.OutOfMemoryError):
        until_it_fits(run, [1024, *smaller_sides(1024, (900, 700), 128)])
    with pytest.raises(RuntimeError, match="another"):
        until_it_fits(lambda side, size: (_ for _ in ()).throw(RuntimeError("another")), [1024, 512])


def restore(pipeline: DiffRestorerPipeline, lq: torch.Tensor, **options: object) -> torch.Tensor:
    return pipeline(lq, 1, torch.Generator().manual_seed(0), output_type="pt", **options).images[0]


def test_a_tile_larger_than_the_image_is_the_image(tiny: DiffRestorerPipeline) -> None:
    lq = torch.rand(3, 60, 90, generator=torch.Generator().manual_seed(0))
    assert torch.equal(restore(tiny, lq, tile=128), restore(tiny, lq, tile="none"))
    assert torch.equal(restore(tiny, lq, tile="auto"), restore(tiny, lq, tile="none"))


@pytest.mark.soak
def test_the_tile_batch_changes_nothing(tiny: DiffRestorerPipeline) -> None:
    lq = torch.rand(3, 150, 130, generator=torch.Generator().manual_seed(0))
    for decoder in ("refined", "sd"):
        one, four, all_ = (
            restore(tiny, lq, tile=128, decoder=decoder, tile_batch_size=n) for n in (1, 4, None)
        )
        assert (one - four).abs().max() <= 5e-5
        assert (one - all_).abs().max() <= 5e-5
    pair = tiny(
        [lq, lq], 1, [torch.Generator().manual_seed(0) for _ in range(2)], output_type="pt", tile=128
    ).images
    assert all((image - restore(tiny, lq, tile=128)).abs().max() <= 5e-5 for image in pair)


@pytest.mark.parametrize("size", [(3, 1000), (700, 2), (1, 129)])
def test_strips(size: tuple[int, int], tiny: DiffRestorerPipeline) -> None:
    restored = restore(tiny, torch.rand(3, *size, generator=torch.Generator().manual_seed(0)), tile=128)
    assert restored.shape == (3, *size)
    assert torch.isfinite(restored).all()


def test_a_running_out_of_memory_ends_in_tiles(
    tiny: DiffRestorerPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder refuses what is larger than a tile, as a full GPU would."""
    encode = type(tiny.vae).encode

    def limited(vae: nn.Module, images: torch.Tensor) -> object:
        if images[:, :1].numel() > 128 * 128:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(vae, images)

    lq = torch.rand(3, 160, 160, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("diffrestorer.inference.tiling.SMALLEST_CROP", 4)
    expected = restore(tiny, lq, tile=128, tile_batch_size=1)
    monkeypatch.setattr(type(tiny.vae), "encode", limited)
    assert torch.equal(restore(tiny, lq, tile_batch_size=1), expected)
    with pytest.raises(torch.OutOfMemoryError):
        restore(tiny, lq, tile="none")


def smooth_photo(side: int) -> torch.Tensor:
    """Waves of long period in each colour: nothing at a seam but what tiling does."""
    y, x = torch.meshgrid(*[torch.linspace(0, 6, side)] * 2, indexing="ij")
    return torch.stack([(x + c).sin() * (y - c).cos() for c in range(3)]) * 0.4 + 0.5


@pytest.mark.parametrize(
    ("side", "tile"),
    [pytest.param(384, 256, marks=pytest.mark.slow), pytest.param(768, 512, marks=pytest.mark.soak)],
)
def test_seams_do_not_show(side: int, tile: int, mini: DiffRestorerPipeline) -> None:
    """Tiled less untiled, where one tile takes over from another and elsewhere: its size, and its steps."""
    lq = smooth_photo(side)
    difference = restore(mini, lq, tile=tile) - restore(mini, lq, tile="none")
    axis = Axis.spread(side // 8, tile // 8, 4)
    edges = [8 * start for start in axis.starts[1:]] + [
        8 * (start + axis.side) for start in axis.starts[:-1]
    ]
    at_seams = torch.zeros(side, dtype=torch.bool)
    for edge in edges:
        at_seams[edge - 2 : edge + 2] = True
    for dim in (1, 2):
        size = difference.abs().amax(dim=(0, 3 - dim))
        steps = difference.diff(dim=dim).abs().amax(dim=(0, 3 - dim))
        assert size[at_seams].max() <= size[~at_seams].max(), (
            "the difference is no larger at a seam than elsewhere"
        )
        assert steps[at_seams[1:]].max() <= steps[~at_seams[1:]].max(), (
            "a seam is no larger step than any other"
        )
    assert difference.abs().max() <= 0.1
    assert difference.mean(dim=(1, 2)).abs().max() <= 0.02, "colours stay, to five grey levels of 255"
