"""Synthesis: reproducible, harmless to its input, and each class does to a photo what its name says."""

import numpy as np
import pytest
import skimage.data

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.data.synthesis import degrade

NAMES = (*DEGRADATIONS, *MIXTURES)
PSNR_BANDS = {  # dB, mean of a few draws on one photo
    "noise": (13.5, 16.5),
    "low_light": (6.0, 13.0),
    "haze": (8.0, 18.0),
    "rain": (15.0, 25.0),
    "raindrop": (17.0, 29.0),
    "snow": (14.0, 24.0),
    "blur": (17.0, 29.0),
    "jpeg": (22.0, 30.0),
}


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:256, 100:356])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


@pytest.mark.parametrize("name", NAMES)
def test_reproducible_and_leaves_the_input_alone(name: str, photo: np.ndarray) -> None:
    before = photo.copy()
    first = degrade(photo, name, np.random.default_rng(3))
    assert np.array_equal(photo, before)
    assert not np.shares_memory(first, photo)
    assert (first.shape, first.dtype) == (photo.shape, np.uint8)
    assert np.array_equal(first, degrade(photo, name, np.random.default_rng(3)))
    if name != "jpeg":  # nothing is random in it
        assert not np.array_equal(first, degrade(photo, name, np.random.default_rng(4)))


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_its_steps_in_order(name: str, photo: np.ndarray) -> None:
    rng = np.random.default_rng(5)
    expected = photo
    for step in MIXTURES[name]:
        expected = degrade(expected, step, rng)
    assert np.array_equal(degrade(photo, name, np.random.default_rng(5)), expected)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_strength(name: str, photo: np.ndarray) -> None:
    low, high = PSNR_BANDS[name]
    assert (
        low
        < np.mean([psnr(photo, degrade(photo, name, np.random.default_rng(seed))) for seed in range(6)])
        < high
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (129, 97)])
def test_any_size(name: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert degrade(image, name, np.random.default_rng(1)).shape == image.shape


def test_noise_has_sigma_50() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    difference = degrade(grey, "noise", np.random.default_rng(0)).astype(np.float64) - 128
    assert np.mean(difference) == pytest.approx(0.0, abs=0.6)
    assert np.median(np.abs(difference)) / 0.6745 == pytest.approx(
        50, abs=1
    )  # quartiles: clipping does not reach them


def test_what_the_names_say(photo: np.ndarray) -> None:
    grey = photo.mean(axis=2)
    sharpness = np.abs(np.diff(grey, axis=1)).mean()
    for seed in range(4):
        seen = {
            name: degrade(photo, name, np.random.default_rng(seed)).mean(axis=2)
            for name in DEGRADATIONS
        }
        assert seen["low_light"].mean() < 0.6 * grey.mean()
        assert seen["haze"].std() < 0.8 * grey.std()
        assert seen["haze"].mean() > grey.mean()
        assert np.abs(np.diff(seen["blur"], axis=1)).mean() < 0.8 * sharpness
        for weather in ("rain", "snow"):
            assert seen[weather].mean() > grey.mean()
            assert (
                np.mean(seen[weather] < grey - 8) < 0.01
            )  # streaks and flakes brighten; white alone can dim a little


def test_blur_keeps_the_scene_in_place_and_its_light() -> None:
    dot = np.zeros((65, 65, 3), np.uint8)
    dot[32, 32] = 255
    offsets = np.arange(65) - 32
    for seed in range(6):
        code = degrade(dot, "blur", np.random.default_rng(seed))[..., 0] / 255.0
        light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
        assert light.sum() == pytest.approx(1.0, abs=0.1)
        assert abs((light.sum(axis=0) * offsets).sum()) < 0.5
        assert abs((light.sum(axis=1) * offsets).sum()) < 0.5


def test_drops_leave_the_rest_of_the_window_clear(photo: np.ndarray) -> None:
    changed = np.any(degrade(photo, "raindrop", np.random.default_rng(0)) != photo, axis=2)
    assert 0.02 < changed.mean() < 0.6


def test_structures_grow_with_the_image_and_noise_does_not() -> None:
    def grain(name: str, side: int) -> float:
        """Share of the variation that two neighbours share: close to 1 for large structures."""
        grey = np.full((side, side, 3), 60, np.uint8)
        seen = degrade(grey, name, np.random.default_rng(2)).astype(np.float64)[..., 0]
        seen -= seen.mean()
        return float((seen[:, 1:] * seen[:, :-1]).mean() / seen.var())

    assert grain("snow", 512) > grain("snow", 128) + 0.1
    assert grain("noise", 512) == pytest.approx(grain("noise", 128), abs=0.05)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_refuses_what_is_not_an_rgb_image(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 image of shape"):
        degrade(image, "noise", np.random.default_rng(0))


def test_refuses_an_unknown_name(photo: np.ndarray) -> None:
    with pytest.raises(ValueError, match="choose one of noise"):
        degrade(photo, "fog", np.random.default_rng(0))
