"""Variants obey their equations: variances, correlations, what keeps its light, and what stays where it is."""

import numpy as np
import pytest
import skimage.data

from diffrestorer.data.degrading import blur, haze, jpeg, low_light, noise, rain, raindrop, snow
from diffrestorer.data.degrading.pixels import TO_LINEAR, Image
from diffrestorer.data.synthesis import Variant

BLURS = [blur.motion, blur.aperture, blur.gaussian, blur.video]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:192, 130:322])


def grey(value: int, side: int = 192) -> Image:
    return np.full((side, side, 3), value, np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def residual(variant: Variant, value: int, strength: float = 0.4, seed: int = 0) -> np.ndarray:
    """The noise on an evenly grey image, (h, w, 3), without its mean."""
    seen = variant(grey(value), rng(seed), strength).astype(np.float64)
    return seen - seen.mean(axis=(0, 1))


def correlation(field: np.ndarray, axis: int, step: int = 1) -> float:
    first, second = (np.take(field, range(*cut), axis=axis) for cut in ((step, 192), (0, 192 - step)))
    return float((first * second).mean() / (field**2).mean())


@pytest.mark.parametrize("variant", [noise.sensor, low_light.photons])
def test_the_variance_of_counted_photons_grows_with_their_mean(variant: Variant) -> None:
    means, variances = [], []
    for value in (110, 150, 190, 225):
        light = TO_LINEAR[variant(grey(value), rng(), 0.6)].astype(np.float64)
        means.append(light.mean())
        variances.append(light.var())
    slope, offset = np.polyfit(means, variances, 1)
    fitted = slope * np.array(means) + offset
    assert slope > 0
    assert np.abs(np.array(variances) / fitted - 1.0).max() < 0.15
    assert abs(offset) < 0.2 * variances[-1]


def test_the_grain_of_film_is_strongest_in_the_middle_tones() -> None:
    dark, middle, light = (residual(noise.film, value).std() for value in (15, 128, 240))
    assert middle > 1.5 * dark
    assert middle > 1.5 * light
    assert correlation(residual(noise.film, 128), 0) > 0.2, "a grain is larger than a pixel"


def test_noise_has_the_correlations_of_its_origin() -> None:
    assert abs(correlation(residual(noise.gaussian, 128), 0)) < 0.05
    assert correlation(residual(noise.coloured, 128), 0) > 0.2
    assert correlation(residual(noise.bayer, 128), 1) > 0.2, (
        "a demosaicked pixel shares its neighbours' noise"
    )
    lines = [
        max(correlation(residual(noise.banded, 128, seed=s), axis, 40) for axis in (0, 1))
        for s in range(6)
    ]
    assert min(lines) > 0.03, "a row or a column has its own offset from end to end"
    colours = residual(noise.chroma, 128)
    assert (colours - colours.mean(axis=2, keepdims=True)).std() > colours.mean(axis=2).std()


def test_impulses_are_black_and_white() -> None:
    seen = noise.impulse(grey(128), rng(), 1.0)
    assert 0.02 < np.mean(seen == 0) < 0.04
    assert 0.02 < np.mean(seen == 255) < 0.04


@pytest.mark.parametrize("variant", BLURS)
def test_blur_keeps_the_light_and_the_place(variant: Variant) -> None:
    """A bright square of several pixels, since a dark tail of code values is lost in rounding."""
    square = np.zeros((97, 97, 3), np.uint8)
    square[40:57, 40:57] = 180
    offsets = np.arange(97) - 48
    for seed in range(8):
        seen = variant(square, rng(seed), 0.6)[..., 0]
        for light in (TO_LINEAR[seen].astype(float), seen / 255.0):
            assert abs((light.sum(axis=0) * offsets).sum() / light.sum()) < 1.5
            assert abs((light.sum(axis=1) * offsets).sum() / light.sum()) < 1.5
        before = [table[square[..., 0]].sum() for table in (TO_LINEAR, np.arange(256) / 255.0)]
        after = [table[seen].sum() for table in (TO_LINEAR, np.arange(256) / 255.0)]
        assert min(abs(a / b - 1.0) for a, b in zip(after, before, strict=True)) < 0.2


@pytest.mark.parametrize("variant", [*BLURS, blur.resampled])
def test_blur_leaves_an_even_image_even(variant: Variant) -> None:
    for seed in range(6):
        seen = variant(grey(90), rng(seed), 0.8).astype(float)
        assert np.abs(seen - 90).mean() < 4.0
        assert abs(seen.mean() - 90) < 1.0


def test_haze_moves_every_pixel_towards_one_airlight() -> None:
    """Of dark and light images with one seed the difference is that of the photos times a transmission in (0, 1)."""
    for variant in (haze.planes, haze.fields, haze.patches):
        dark, light = (variant(grey(value), rng(3), 0.6).astype(float) for value in (40, 200))
        transmission = (light - dark) / 160.0
        assert transmission.min() > -0.02
        assert transmission.max() < 1.02
        assert 0.3 < transmission.mean() < 0.75
        assert transmission.std() > 0.02, "the depth varies"


BRIGHT = [rain.lines, rain.filtered, rain.gaussians, snow.discs, snow.smeared, snow.polygons]


@pytest.mark.parametrize("variant", BRIGHT)
def test_streaks_and_flakes_brighten_what_is_dark(variant: Variant) -> None:
    for seed in range(4):
        assert variant(grey(40), rng(seed), 0.8).min() >= 38


def test_backlit_streaks_are_bright_before_dark_and_dark_before_bright(photo: np.ndarray) -> None:
    halves = np.zeros((192, 192, 3), np.uint8)
    halves[:96] = 250
    darker, brighter = [], []
    for seed in range(6):
        change = rain.backlit(halves, rng(seed), 0.9).astype(int) - halves
        darker.append(change[:80].mean())
        brighter.append(change[112:].mean())
    assert np.mean(darker) < -1.0
    assert np.mean(brighter) > 1.0


@pytest.mark.parametrize("variant", [raindrop.beads, raindrop.merged, raindrop.trails, raindrop.caps])
def test_drops_leave_the_rest_of_the_window_clear(variant: Variant, photo: np.ndarray) -> None:
    shares = [np.any(variant(photo, rng(seed), 0.5) != photo, axis=2).mean() for seed in range(6)]
    assert 0.01 < np.mean(shares) < 0.6


@pytest.mark.parametrize("variant", [raindrop.beads, raindrop.merged, raindrop.trails, raindrop.caps])
def test_drops_show_the_scene_upside_down(variant: Variant) -> None:
    """Before a scene that grows darker all the way down, much of what a drop shows grows brighter."""
    ramp = np.repeat(np.linspace(255, 0, 192).astype(np.uint8)[:, None, None], 192, 1).repeat(3, 2)
    shares = []
    for seed in range(6):
        seen = variant(ramp, rng(seed), 1.0)[..., 0].astype(float)
        inside = np.abs(seen - ramp[..., 0]) > 12
        shares.append(np.mean(np.gradient(seen, axis=0)[inside] > 0.8))
    assert np.mean(shares) > 0.25, "the scene itself falls by 1.3 per row"


def test_a_second_compression_has_its_own_grid(photo: np.ndarray) -> None:
    """One compression steps every 8 pixels; after two, steps lie between these as well."""

    def steps(image: Image) -> np.ndarray:
        edges = np.abs(np.diff(image.astype(float).mean(axis=2), axis=1))
        return np.array([edges[:, phase::8].mean() for phase in range(8)])

    once = steps(jpeg.opencv(photo, rng(), 1.0))
    assert once.argmax() == 7
    assert once[7] > 1.5 * np.median(once)
    shares = [np.sort(steps(jpeg.double(photo, rng(seed), 0.9)))[-2:] / once[7] for seed in range(8)]
    assert np.mean([pair[0] for pair in shares]) > np.sort(once)[-2] / once[7]


def test_dimmed_illumination_keeps_the_edges_within_a_lit_place(photo: np.ndarray) -> None:
    """Reflectance stays: what is dimmed is smooth, so ratios of neighbours hardly change."""
    before = TO_LINEAR[photo].mean(axis=2) + 0.02
    after = TO_LINEAR[low_light.retinex(photo, rng(), 0.2)].mean(axis=2) + 0.02 * 0.3
    ratios = [np.log(image[:, 1:] / image[:, :-1]).ravel() for image in (before, after)]
    assert np.corrcoef(*ratios)[0, 1] > 0.8
