"""The variants of each class: valid images, reproducible, ordered by strength, unlike one another; some never train."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from soaking import some_now

from diffrestorer.config.composition import load
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.config.evaluating import EvaluateConfig
from diffrestorer.config.schema import DataConfig, PrepareConfig, Stage1Config
from diffrestorer.config.synthesis_presets import broad, held_out, named_synthesis, refuse_held_out
from diffrestorer.config.synthesis_ranges import Camera, Noise, Rain, Snow, Synthesis, at_strength
from diffrestorer.config.synthesis_variants import HELD_OUT, OURS, TRAINED
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.pairs import SynthesisedPairs
from diffrestorer.data.synthesis import VARIANTS, degrade
from diffrestorer.evaluation.paper_suites import build_suite
from diffrestorer.preparation.prepare import prepare

CASES = [(degradation, name) for degradation, variants in VARIANTS.items() for name in variants]
BARELY_VISIBLE = 35.0  # dB
SURELY_SEEN = {
    "low_light": 9.0,
    "haze": 20.0,
}  # dB: weaker ones could not be told from dark and pale scenes


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:192, 130:322])


def only(degradation: str, name: str) -> Synthesis:
    kind = type(getattr(Synthesis(), degradation))
    return replace(Synthesis(), **{degradation: kind(variants=(name,))})


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(np.float64) - b) ** 2), 1e-3)))


def test_every_class_has_several_variants_and_one_that_never_trains() -> None:
    assert tuple(VARIANTS) == tuple(TRAINED) == tuple(HELD_OUT) == DEGRADATIONS
    for degradation, names in TRAINED.items():
        assert names[0] == OURS
        assert len(set(names)) == len(names) >= 4
        assert HELD_OUT[degradation] not in names
        functions = list(VARIANTS[degradation].values())
        assert len(set(functions)) == len(functions)


@pytest.mark.parametrize(("degradation", "name"), CASES)
def test_a_variant_gives_an_image_of_its_own_and_the_same_one_again(
    degradation: str, name: str, photo: np.ndarray
) -> None:
    before, synthesis = photo.copy(), only(degradation, name)
    first = degrade(photo, degradation, counter_rng(3, "degradation", 5, 7), synthesis)
    assert (first.shape, first.dtype, first.strides) == (photo.shape, np.uint8, photo.strides)
    assert first.flags.writeable
    assert not np.shares_memory(first, photo)
    assert np.array_equal(photo, before)
    assert np.array_equal(
        first, degrade(photo, degradation, counter_rng(3, "degradation", 5, 7), synthesis)
    )
    assert not np.array_equal(
        first, degrade(photo, degradation, counter_rng(3, "degradation", 5, 8), synthesis)
    )


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (129, 97)])
@pytest.mark.parametrize(("degradation", "name"), CASES)
def test_a_variant_takes_any_size(degradation: str, name: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for seed in range(2):
        assert (
            degrade(image, degradation, np.random.default_rng(seed), only(degradation, name)).shape
            == image.shape
        )


@pytest.mark.parametrize(("degradation", "name"), some_now(CASES, 16))
def test_a_variant_runs_from_barely_visible_to_strong(
    degradation: str, name: str, photo: np.ndarray
) -> None:
    def mean_psnr(strength: float) -> float:
        synthesis = at_strength(only(degradation, name), strength)
        return float(
            np.mean(
                [
                    psnr(degrade(photo, degradation, counter_rng(0, name, i), synthesis), photo)
                    for i in range(10)
                ]
            )
        )

    weak, medium, strong = map(mean_psnr, (0.0, 0.5, 1.0))
    assert weak > SURELY_SEEN.get(degradation, BARELY_VISIBLE)
    assert weak > medium + 1.0
    assert medium > strong + 1.0
    assert 4.5 < strong < 29.0


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_variants_of_a_class_differ(degradation: str, photo: np.ndarray) -> None:
    """Of one seed and strength no two agree, nor does the change that they make to the photo."""
    names = (*TRAINED[degradation], HELD_OUT[degradation])
    changes = []
    for name in names:
        synthesis = at_strength(only(degradation, name), 0.7)
        degraded = degrade(photo, degradation, np.random.default_rng(1), synthesis).astype(np.float64)
        changes.append(degraded - photo)
    for first, second in itertools.combinations(changes, 2):
        assert np.abs(first - second).mean() > 0.3


def test_no_camera_and_a_single_variant_draw_nothing_more(photo: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    degrade(photo, "jpeg", rng, only("jpeg", OURS))
    assert rng.random() == np.random.default_rng(0).random()


def test_variants_are_drawn_as_often_as_they_are_named(photo: np.ndarray) -> None:
    """`ours` without noise leaves a grey image as it is, and it is one of four."""
    white = np.full((32, 32, 3), 200, np.uint8)
    mixed = Synthesis(noise=Noise((0.0, 0.0), variants=("ours", "gaussian", "gaussian", "gaussian")))
    same = [
        np.array_equal(degrade(white, "noise", counter_rng(0, "n", i), mixed), white)
        for i in range(400)
    ]
    assert np.mean(same) == pytest.approx(0.25, abs=0.07)
    assert not np.array_equal(photo, degrade(photo, "noise", counter_rng(0, "n", 0), broad()))


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_the_camera_comes_after_degradations_and_never_alone(
    degradation: str, photo: np.ndarray
) -> None:
    always = replace(Synthesis(), camera=Camera(share=1.0))
    plain = degrade(photo, degradation, np.random.default_rng(0))
    seen = [degrade(photo, degradation, np.random.default_rng(0), always) for _ in range(2)]
    assert np.array_equal(*seen)
    assert seen[0].shape == photo.shape
    assert psnr(seen[0], plain) > 15.0, "resampling takes off white noise most of all"
    assert np.array_equal(degrade(photo, "clean", np.random.default_rng(0), always), photo)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Rain(variants=("line",)),
            "synthesis.rain.variants=line does not exist, did you mean 'lines'?; choose",
        ),
        (
            lambda: Snow(variants=()),
            "synthesis.snow.variants is not a list of variants: name at least one of ours, discs",
        ),
        (lambda: Noise(strength=(0.5, 1.5)), "synthesis.noise.strength=[0.5, 1.5] is not possible"),
        (lambda: Camera(share=2.0), "synthesis.camera.share=2.0 is not possible"),
        (
            lambda: named_synthesis("held"),
            "synthesis=held is not valid; choose one of ours, broad, heldout",
        ),
    ],
)
def test_what_does_not_exist_is_refused_in_a_sentence(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_what_is_held_out_never_trains(degradation: str, photos_dir: Path, tmp_path: Path) -> None:
    name = HELD_OUT[degradation]
    kind = type(getattr(Synthesis(), degradation))
    synthesis = replace(Synthesis(), **{degradation: kind(variants=(OURS, name))})
    sentence = rf"synthesis\.{degradation}\.variants names {name}, which is held out for evaluation and never trains"
    with pytest.raises(ValueError, match=rf"data\.{sentence}"):
        SynthesisedPairs(DataConfig("photos", str(photos_dir), 64, synthesis=synthesis), 0, 1)
    with pytest.raises(ValueError, match=sentence):
        prepare(PrepareConfig("photos", str(photos_dir), str(tmp_path / "out"), synthesis=synthesis))
    refuse_held_out(broad())


def test_broad_training_data_name_every_variant_that_may_train(photos_dir: Path) -> None:
    config = load("train_stage1", Stage1Config, ["model=mini", "data=broad"]).data
    assert config.name == "photos"
    for degradation, names in TRAINED.items():
        assert getattr(config.synthesis, degradation).variants == names
        assert getattr(broad(), degradation).variants == names
    pairs = SynthesisedPairs(replace(config, root=str(photos_dir), size=64), 0, 8)
    shapes = {pairs[0, i].lq.shape for i in range(24)}
    assert shapes == {(64, 64, 3)}
    assert all(np.array_equal(pairs[1, i].lq, pairs[1, i].lq) for i in range(8))


def test_variants_are_keys_of_the_training_scripts() -> None:
    config = load(
        "train_stage1",
        Stage1Config,
        ["data=photos", "data.synthesis.rain.variants=[lines,lines,curtain]"],
    )
    assert config.data.synthesis.rain.variants == ("lines", "lines", "curtain")
    with pytest.raises(ValueError, match=r"synthesis\.rain\.variants=streaks does not exist"):
        load("train_stage1", Stage1Config, ["data=photos", "data.synthesis.rain.variants=[streaks]"])


def test_evaluation_may_stand_on_what_is_held_out(tmp_path: Path) -> None:
    suites = {}
    for name in ("ours", "heldout"):
        config = EvaluateConfig(str(tmp_path / name), suite="single", synthesis=name, images=1, size=64)
        suites[name] = [item.lq.read_bytes() for item in build_suite(config).items]
    assert all(a != b for a, b in zip(suites["ours"], suites["heldout"], strict=True))
    for degradation in DEGRADATIONS:
        assert getattr(held_out(), degradation).variants == (HELD_OUT[degradation],)
