"""Parameters of the synthesis: frozen, within their bounds, and ordered by strength."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.config.schema import DataConfig
from diffrestorer.config.synthesis_ranges import (
    Blur,
    Haze,
    Jpeg,
    LowLight,
    Noise,
    Rain,
    Raindrop,
    RainLayer,
    Rule,
    Snow,
    Synthesis,
    _checked,
    at_strength,
)
from diffrestorer.data.pairs import SynthesisedPairs
from diffrestorer.data.synthesis import degrade

WIDE = Synthesis(noise=Noise((10.0, 50.0)), jpeg=Jpeg((10, 50)))
STRENGTHS = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:192, 130:322])


def test_every_class_has_parameters() -> None:
    assert tuple(field.name for field in dataclasses.fields(Synthesis)) == (*DEGRADATIONS, "camera")


def test_parameters_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Synthesis().noise.sigma = (0.0, 1.0)  # type: ignore[misc]
    assert hash(Synthesis()) == hash(Synthesis())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Noise((50.0, 10.0)),
            "synthesis.noise.sigma=[50.0, 10.0] is reversed: write [10.0,50.0]",
        ),
        (
            lambda: Noise((-1.0, 10.0)),
            "synthesis.noise.sigma=[-1.0, 10.0] is not possible: it has to be at least 0",
        ),
        (
            lambda: Noise((0.0, float("nan"))),
            "synthesis.noise.sigma=[0.0, nan] is not a range: write [low,high]",
        ),
        (
            lambda: Jpeg((0, 10)),
            "synthesis.jpeg.quality=[0, 10] is not possible: it has to lie in 1 to 100",
        ),
        (lambda: Jpeg((10, 101)), "it has to lie in 1 to 100"),
        (
            lambda: LowLight(exposure=(0.0, 0.5)),
            "synthesis.low_light.exposure=[0.0, 0.5] is not possible",
        ),
        (lambda: Haze(transmission=(0.0, 0.5)), "synthesis.haze.transmission"),
        (lambda: Haze(tint=1.5), "synthesis.haze.tint=1.5 is not possible: it has to lie in 0 to 1"),
        (lambda: Rain(angle=(-100.0, 0.0)), "it has to lie in -90 to 90"),
        (lambda: RainLayer(opacity=(0.5, 1.5)), "synthesis.rain_layer.opacity"),
        (lambda: Raindrop(count=(5, 2)), "synthesis.raindrop.count=[5, 2] is reversed: write [2,5]"),
        (lambda: Raindrop(radius=(0.0, 2.0)), "it has to be at least 0.5"),
        (lambda: Snow(veil=(0.0, 2.0)), "synthesis.snow.veil"),
        (lambda: Blur(extent=(-3.0, 2.0)), "synthesis.blur.extent"),
        (lambda: at_strength(Noise(), 1.5), "strength=1.5 lies outside 0 to 1"),
        # Of types that the checks of the tests would not let through to a dataclass.
        (
            lambda: _checked("key", (1.0,), Rule(), (0.0, 1.0)),
            "key=[1.0] is not a range: write [low,high]",
        ),
        (lambda: _checked("key", ("a", 1.0), Rule(), (0.0, 1.0)), "is not a range: write [low,high]"),
        (lambda: _checked("key", "a", Rule(), 0.5), "key=a is not a number"),
        (lambda: _checked("key", (1.5, 2), Rule(), (0, 1)), "key=[1.5, 2] has to be of whole numbers"),
    ],
)
def test_what_is_not_possible_is_refused_in_a_sentence(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_become_the_type_of_the_default() -> None:
    assert _checked("key", (1, 2), Rule(), (0.0, 1.0)) == (1.0, 2.0)
    assert all(isinstance(number, float) for number in _checked("key", (1, 2), Rule(), (0.0, 1.0)))


def test_strength_runs_from_the_weak_end_to_the_strong_one() -> None:
    assert [at_strength(WIDE, s).noise.sigma for s in STRENGTHS] == [
        (10.0, 10.0),
        (30.0, 30.0),
        (50.0, 50.0),
    ]
    assert [at_strength(WIDE, s).jpeg.quality for s in STRENGTHS] == [(50, 50), (30, 30), (10, 10)]
    assert at_strength(WIDE, 0.5).low_light.exposure == pytest.approx((0.08, 0.08)), (
        "between 0.04 and 0.16, in stops"
    )
    assert at_strength(WIDE, 1.0).rain.layers[1].density == (4.0, 4.0)
    assert at_strength(WIDE, 1.0).rain.angle == Rain().angle, "an angle is no strength"
    assert at_strength(WIDE, 1.0).raindrop.radius == Raindrop().radius, "drawn for each drop"
    assert at_strength(at_strength(WIDE, 0.3), 0.9) == at_strength(WIDE, 0.3)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_the_stronger_the_farther_from_the_clean_photo(name: str, photo: np.ndarray) -> None:
    def psnr(strength: float) -> float:
        degraded = [
            degrade(photo, name, np.random.default_rng(s), at_strength(WIDE, strength))
            for s in range(5)
        ]
        return float(
            np.mean([10 * np.log10(255**2 / np.mean((d.astype(float) - photo) ** 2)) for d in degraded])
        )

    weak, medium, strong = map(psnr, STRENGTHS)
    assert weak > medium + 0.5
    assert medium > strong + 0.5


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_the_defaults_lie_between_the_strengths(name: str, photo: np.ndarray) -> None:
    """A strength is one of the values that are drawn, so the drawn images are not all weaker or all stronger."""

    def error(seed: int, synthesis: Synthesis) -> float:
        return float(
            np.mean(
                (degrade(photo, name, np.random.default_rng(seed), synthesis).astype(float) - photo)
                ** 2
            )
        )

    drawn = np.mean([error(seed, WIDE) for seed in range(12)])
    weak, strong = (
        np.mean([error(seed, at_strength(WIDE, s)) for seed in range(12)]) for s in (0.0, 1.0)
    )
    assert weak < drawn < strong


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_takes_the_parameters_of_its_steps(name: str, photo: np.ndarray) -> None:
    synthesis, rng, expected = at_strength(WIDE, 0.2), np.random.default_rng(5), photo
    for step in MIXTURES[name]:
        expected = degrade(expected, step, rng, synthesis)
    assert np.array_equal(degrade(photo, name, np.random.default_rng(5), synthesis), expected)


def test_arrays_do_not_tell_the_class(photo: np.ndarray) -> None:
    """Nothing but the pixels may give a class away: neither size, type nor memory layout."""
    arrays = [degrade(photo, name, np.random.default_rng(0)) for name in (*DEGRADATIONS, *MIXTURES)]
    assert {(a.shape, a.dtype, a.strides, a.flags.c_contiguous, a.flags.writeable) for a in arrays} == {
        (photo.shape, np.dtype(np.uint8), photo.strides, True, True)
    }


def test_training_pairs_take_the_configured_strength(photos_dir: Path) -> None:
    config = DataConfig("photos", str(photos_dir), 64, ["noise"], Synthesis(noise=Noise((0.0, 0.0))))
    pair = SynthesisedPairs(config, seed=0, global_batch_size=1)[0, 0]
    assert np.array_equal(pair.lq, pair.gt)
    pair = SynthesisedPairs(
        dataclasses.replace(config, synthesis=Synthesis()), seed=0, global_batch_size=1
    )[0, 0]
    assert not np.array_equal(pair.lq, pair.gt)
