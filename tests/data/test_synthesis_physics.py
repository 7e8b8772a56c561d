"""Synthesis obeys its equations: what leaves a photo alone, what adds up, and what stays where it is."""

import numpy as np
import pytest
import skimage.data
import skimage.morphology
from scipy import ndimage

from diffrestorer.config.synthesis_ranges import (
    Blur,
    Haze,
    Jpeg,
    LowLight,
    Noise,
    Rain,
    Raindrop,
    RainLayer,
    Snow,
    SnowLayer,
    Synthesis,
)
from diffrestorer.data.degrading.ours import _trajectory
from diffrestorer.data.synthesis import degrade

OPEN_SHADE = Haze(transmission=(0.5, 0.5), airlight=(0.8, 0.8), tint=0.0)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:192, 130:322])


def seen(
    image: np.ndarray, name: str, seed: int, synthesis: Synthesis, depth: np.ndarray | None = None
) -> np.ndarray:
    return degrade(image, name, np.random.default_rng(seed), synthesis, depth)


def grey(value: int, side: int = 128) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def to_linear(image: np.ndarray) -> np.ndarray:
    code = image / 255.0
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize(
    ("name", "nothing"),
    [
        ("noise", Synthesis(noise=Noise((0.0, 0.0)))),
        ("haze", Synthesis(haze=Haze(transmission=(1.0, 1.0)))),
        ("rain", Synthesis(rain=Rain(layers=(), veil=(0.0, 0.0)))),
        ("rain", Synthesis(rain=Rain(layers=(RainLayer(opacity=(0.0, 0.0)),), veil=(0.0, 0.0)))),
        ("raindrop", Synthesis(raindrop=Raindrop(count=(0, 0)))),
        ("snow", Synthesis(snow=Snow(layers=(SnowLayer(opacity=(0.0, 0.0)),), veil=(0.0, 0.0)))),
        ("low_light", Synthesis(low_light=LowLight((1.0, 1.0), (1e15, 1e15), (0.0, 0.0)))),
        ("blur", Synthesis(blur=Blur(defocus_share=1.0, defocus_radius=(0.0, 0.0)))),
    ],
)
def test_nothing_of_it_changes_nothing(name: str, nothing: Synthesis, photo: np.ndarray) -> None:
    assert np.array_equal(seen(photo, name, 1, nothing), photo)


def test_a_constant_depth_gives_uniform_haze_in_any_unit(photo: np.ndarray) -> None:
    depth = np.full(photo.shape[:2], 3.0)
    hazy = seen(photo, "haze", 0, Synthesis(haze=OPEN_SHADE), depth)
    assert np.abs(hazy - (photo * 0.5 + 255 * 0.8 * 0.5)).max() <= 0.501, "I = J t + A (1 - t)"
    assert np.array_equal(hazy, seen(photo, "haze", 0, Synthesis(haze=OPEN_SHADE), depth * 1000.0))


def test_haze_thickens_with_the_given_depth() -> None:
    depth = np.repeat(np.linspace(0.0, 4.0, 128)[:, None], 128, axis=1)
    hazy = seen(grey(0), "haze", 0, Synthesis(haze=OPEN_SHADE), depth)
    assert np.array_equal(hazy, np.repeat(hazy[:, :1], 128, axis=1))
    assert (np.diff(hazy[:, 0, 0].astype(int)) >= 0).all()
    expected = 255 * 0.8 * (1.0 - 0.5 ** (depth / depth.mean()))  # Beer-Lambert: t = T^(d / mean d)
    assert np.abs(hazy[..., 0] - expected).max() < 0.51


def test_the_airlight_is_what_haze_converges_to() -> None:
    assert np.array_equal(seen(grey(204), "haze", 3, Synthesis(haze=OPEN_SHADE)), grey(204)), (
        "0.8 of 255"
    )


@pytest.mark.parametrize(
    ("name", "synthesis"),
    [
        ("rain", Synthesis(rain=Rain(colour=(1.0, 1.0)))),
        ("snow", Synthesis(snow=Snow(colour=(1.0, 1.0)))),
    ],
)
def test_streaks_and_flakes_cover_whatever_is_behind_alike(
    name: str, synthesis: Synthesis, photo: np.ndarray
) -> None:
    opacity = seen(np.zeros_like(photo), name, 2, synthesis) / 255.0
    assert 0.05 < opacity.mean() < 0.6
    assert np.array_equal(opacity[..., 0], opacity[..., 2])
    assert np.abs(seen(photo, name, 2, synthesis) - (photo + (255.0 - photo) * opacity)).max() < 1.01
    white = np.full_like(photo, 255)
    assert np.array_equal(seen(white, name, 2, synthesis), white)


@pytest.mark.parametrize("angle", [-25.0, 0.0, 25.0])
def test_rain_falls_at_its_angle(angle: float) -> None:
    streaks = seen(grey(0, 256), "rain", 0, Synthesis(rain=Rain(angle=(angle, angle)))).mean(axis=2)
    dy, dx = np.gradient(
        ndimage.gaussian_filter(streaks, 2.0)
    )  # a difference of pixels is blunt to thin lines
    tensor = np.array([[(dx * dx).sum(), (dx * dy).sum()], [(dx * dy).sum(), (dy * dy).sum()]])
    x, y = np.linalg.eigh(tensor)[1][:, 0]  # the direction of least change
    assert np.degrees(np.arctan(x / y)) == pytest.approx(
        angle, abs=4.0
    )  # a layer deviates by 3 at most


def test_drops_change_only_what_is_behind_them(photo: np.ndarray) -> None:
    texture = np.random.default_rng(0).integers(
        0, 256, photo.shape, dtype=np.uint8
    )  # nowhere what a blur makes of it
    for seed in range(4):
        drops = np.any(seen(texture, "raindrop", seed, Synthesis()) != texture, axis=2)
        outside = ~skimage.morphology.dilation(drops, np.ones((5, 5), bool))
        assert 0.3 < outside.mean() < 0.99
        assert np.array_equal(seen(photo, "raindrop", seed, Synthesis())[outside], photo[outside])


def test_a_drop_turns_the_scene_upside_down() -> None:
    ramp = (
        np.repeat(np.linspace(250, 5, 256)[:, None, None], 256, axis=1)
        .repeat(3, axis=2)
        .astype(np.uint8)
    )
    clear = Raindrop(count=(1, 1), radius=(40.0, 40.0), blur=(0.0, 0.0), lens=(2.0, 2.0), rim=0.0)
    central = 0
    for seed in range(24):
        dropped = seen(ramp, "raindrop", seed, Synthesis(raindrop=clear))[..., 0].astype(float)
        rows, columns = np.nonzero(dropped != ramp[..., 0])
        top, middle, bottom = np.percentile(rows, [10, 50, 90]).astype(int)
        column = int(np.median(columns))
        if not 96 < middle < 160:
            continue  # at the border a drop shows the mirrored scene
        central += 1
        assert dropped[top, column] < dropped[middle, column] < dropped[bottom, column], (
            "the ramp gets darker downwards"
        )
    assert central > 2


def test_blur_leaves_a_flat_wall_alone() -> None:
    for seed in range(8):
        assert np.abs(seen(grey(77), "blur", seed, Synthesis()).astype(int) - 77).max() <= 1, (
            "weights sum to 1"
        )


@pytest.mark.parametrize("extent", [4.0, 9.0, 20.0, 41.0])
def test_a_trajectory_spans_its_extent(extent: float) -> None:
    for seed in range(5):
        dwell = _trajectory(extent, np.random.default_rng(seed))
        assert (dwell >= 0).all()
        visited = dwell > 0.02 * dwell.max()
        spans = [np.ptp(np.nonzero(visited.any(axis=axis))[0]) + 1 for axis in (0, 1)]
        assert max(spans) == pytest.approx(extent, abs=3.0)
        centre = [(dwell.sum(axis=axis) * np.arange(len(dwell))).sum() / dwell.sum() for axis in (0, 1)]
        assert centre == pytest.approx([len(dwell) // 2] * 2, abs=0.2), "the scene does not shift"


def test_a_short_exposure_scales_linear_light(photo: np.ndarray) -> None:
    for exposure in (0.5, 0.1):
        dark = seen(
            photo,
            "low_light",
            0,
            Synthesis(low_light=LowLight((exposure,) * 2, (1e15, 1e15), (0.0, 0.0))),
        )
        assert to_linear(dark).mean() == pytest.approx(exposure * to_linear(photo).mean(), rel=0.01)


@pytest.mark.parametrize(("full_well", "read_noise"), [(1000.0, 0.0), (4000.0, 60.0)])
def test_shot_and_read_noise_have_their_variances(full_well: float, read_noise: float) -> None:
    sensor = LowLight((1.0, 1.0), (full_well,) * 2, (read_noise,) * 2)
    variances = []
    for value in (128, 188):
        light = to_linear(seen(grey(value, 256), "low_light", 0, Synthesis(low_light=sensor)))
        x = to_linear(np.array(value))
        variances.append(light.var())
        assert light.mean() == pytest.approx(x, rel=0.01)
        assert light.var() == pytest.approx(x / full_well + (read_noise / full_well) ** 2, rel=0.04)
    if read_noise == 0.0:
        assert variances[1] / variances[0] == pytest.approx(
            float(to_linear(np.array(188)) / to_linear(np.array(128))), rel=0.05
        )


def test_a_range_of_noise_is_kept_to() -> None:
    sigmas = [
        np.std(seen(grey(128), "noise", s, Synthesis(noise=Noise((5.0, 20.0)))) - 128.0)
        for s in range(24)
    ]
    assert 4.9 < min(sigmas) < 9.0
    assert 16.0 < max(sigmas) < 20.2


def test_a_range_of_quality_is_kept_to(photo: np.ndarray) -> None:
    ladder = {seen(photo, "jpeg", 0, Synthesis(jpeg=Jpeg((q, q)))).tobytes(): q for q in range(20, 24)}
    drawn = {
        ladder[seen(photo, "jpeg", seed, Synthesis(jpeg=Jpeg((20, 23)))).tobytes()]
        for seed in range(24)
    }
    assert drawn == {20, 21, 22, 23}


@pytest.mark.parametrize(
    ("name", "depth", "message"),
    [
        ("haze", np.ones((128, 127)), r"of shape \(128, 127\), the image of \(128, 128\)"),
        ("haze", np.full((128, 128), -1.0), "nowhere negative"),
        ("haze", np.zeros((128, 128)), "somewhere positive"),
        ("haze", np.full((128, 128), np.nan), "finite"),
        ("rain", np.ones((128, 128)), "of use to haze only, not to rain"),
    ],
)
def test_a_depth_that_does_not_fit_is_refused(name: str, depth: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seen(grey(9), name, 0, Synthesis(), depth)
