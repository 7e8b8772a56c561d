"""What training crops show: scale, light, colours, letters; without them the crop is the photo's own pixels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffrestorer.config.composition import load
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.config.schema import BaseConfig, DataConfig
from diffrestorer.config.view_ranges import Views
from diffrestorer.data.pairs import SynthesisedPairs
from diffrestorer.data.views import crop, tone, vary

PHOTO = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_crop_is_a_square_of_the_photo_as_it_is_or_mirrored() -> None:
    windows = {
        PHOTO[top : top + 64, left : left + 64][:, ::step].tobytes()
        for top in range(90 - 63)
        for left in range(120 - 63)
        for step in (1, -1)
    }
    assert all(crop(PHOTO, 64, Views(), rng(seed)).tobytes() in windows for seed in range(8))


def test_shrinking_shows_more_of_the_photo_and_never_less_than_the_crop() -> None:
    ramp = np.repeat(np.linspace(0, 255, 128).astype(np.uint8)[None, :, None], 128, 0).repeat(3, 2)
    spans = [
        np.ptp(crop(ramp, 32, Views(scale=(0.25, 1.0)), rng(seed))[0, :, 0].astype(int))
        for seed in range(40)
    ]
    assert min(spans) < 90, "near views"
    assert max(spans) > 180, "far views"
    assert np.ptp(crop(ramp, 32, Views(scale=(0.01, 0.01)), rng())[0, :, 0].astype(int)) > 245, (
        "all of it at most"
    )
    assert crop(PHOTO, 90, Views(scale=(0.5, 0.5)), rng()).shape == (90, 90, 3), "too small to shrink"


def test_night_scenes_are_darker_but_never_of_the_low_light_class() -> None:
    views = Views(dark_share=1.0)
    assert vary(PHOTO, "haze", views, rng()).mean() < 0.8 * PHOTO.mean()
    assert np.array_equal(vary(PHOTO, "low_light", views, rng()), PHOTO)
    assert np.array_equal(vary(PHOTO, "haze", Views(), rng()), PHOTO)


def test_dim_scenes_are_darker_but_some_keep_their_lights() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2)
    dim = [
        vary(ramp, "jpeg", Views(dim_share=1.0), rng(seed))[:, 0, 0].astype(int) for seed in range(40)
    ]
    assert all(tones[0] == 0 and (np.diff(tones) >= 0).all() for tones in dim)
    middle, white = np.array([tones[[128, 255]] for tones in dim]).T
    assert (middle < 0.81 * 128).all(), "all are darker"
    assert middle.min() < 0.3 * 128, "some much"
    assert white.min() < 0.5 * 255, "some have no lights"
    assert white.max() > 0.9 * 255, "some have"
    assert np.array_equal(vary(PHOTO, "low_light", Views(dim_share=1.0), rng()), PHOTO)


def test_what_else_is_drawn_stays_where_dim_scenes_are_asked_for_too() -> None:
    views = Views(dark_share=0.5, text_share=1.0)
    night = next(
        seed for seed in range(20) if vary(PHOTO, "haze", views, rng(seed)).mean() < 0.8 * PHOTO.mean()
    )
    also_dim = Views(dark_share=0.5, dim_share=0.5, text_share=1.0)
    assert np.array_equal(
        vary(PHOTO, "haze", views, rng(night)), vary(PHOTO, "haze", also_dim, rng(night))
    )


def test_nights_full_of_lights_are_dark_with_bright_points_and_never_of_a_class_that_they_look_like() -> (
    None
):
    views, grey = Views(lights_share=1.0), np.full((128, 128, 3), 90, np.uint8)
    nights = [vary(grey, "noise", views, rng(seed)) for seed in range(30)]
    dark = [np.median(night) for night in nights]
    assert max(dark) < 70, "all are darker than the photo"
    assert min(dark) < 8, "some are nearly black"
    assert all(night.max() > np.median(night) + 60 for night in nights), "all have lights"
    shares = [np.mean(night.max(axis=2) > np.median(night) + 40) for night in nights]
    assert min(shares) < 0.01, "few lights"
    assert 0.05 < max(shares) < 0.6, "and many"
    for likely in ("low_light", "snow"):
        assert np.array_equal(vary(grey, likely, views, rng()), grey)


def test_other_colors_are_as_bright_in_the_mean_and_keep_black_and_white() -> None:
    views = Views(color_share=1.0)
    changed = [vary(PHOTO, "low_light", views, rng(seed)) for seed in range(40)]
    assert np.mean([image.mean() for image in changed]) == pytest.approx(PHOTO.mean(), rel=0.1)
    ends = np.array([[[0] * 3, [255] * 3]], np.uint8)
    assert all(np.array_equal(vary(ends, "noise", views, rng(seed)), ends) for seed in range(8))
    red = np.array([[[255, 0, 0]]], np.uint8)
    assert {vary(red, "noise", views, rng(seed)).argmax() for seed in range(20)} == {0, 1, 2}


def test_scales_are_drawn_in_equal_shares_of_octaves_and_only_where_the_photo_allows_them() -> None:
    """A ramp of 1024 pixels, cropped to 32: its span tells the scale."""
    ramp = (
        np.repeat(np.linspace(0, 65535, 1024)[None, :, None] / 257, 1024, 0)
        .astype(np.uint8)
        .repeat(3, 2)
    )
    views = Views(scale=(0.01, 1.0))
    spans = [np.ptp(crop(ramp, 32, views, rng(seed))[16, :, 0].astype(int)) for seed in range(200)]
    octaves = np.floor(np.log2(np.maximum(spans, 1) / 8.0) + 0.5).clip(0, 4)
    shares = [np.mean(octaves == octave) for octave in range(5)]
    assert min(shares) > 0.06, "none is rare: five octaves lie between the whole photo and its pixels"
    assert shares[-1] < 0.35, (
        "and the whole of it does not stand for all scales that it is too small for"
    )


def test_natural_tones_are_darker_paler_or_of_another_colour() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2)
    views = Views(tone_share=1.0)
    toned = [tone(ramp, "rain", views, rng(seed))[:, 0].astype(float) for seed in range(60)]
    assert all((np.diff(tones, axis=0) >= 0).all() for tones in toned), (
        "no tone changes places with another"
    )
    dark = [tones for tones in toned if tones[255, 1] < 250 and tones[0, 1] == 0]
    pale = [tones for tones in toned if tones[0, 1] > 0]
    colour = [tones for tones in toned if tones[255, 1] == 255 and tones[0, 1] == 0]
    assert min(len(dark), len(pale), len(colour)) > 6
    assert max(tones[128, 1] for tones in dark) < 110
    assert max(np.ptp(tones[:, 1]) for tones in pale) < 235
    assert max(np.abs(tones[128, 0] - tones[128, 2]) for tones in colour) > 20


def test_no_natural_tone_is_taken_for_its_own_class() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2)
    for seed in range(40):
        assert tone(ramp, "haze", Views(tone_share=1.0), rng(seed))[0].max() == 0, "black stays black"
        assert tone(ramp, "low_light", Views(tone_share=1.0), rng(seed))[128, 0, 1] >= 128, (
            "what is lit stays lit"
        )


def test_a_clean_crop_of_a_natural_tone_is_its_own_target(photos_dir: Path) -> None:
    """The tone comes before the degradation: the target has it, too."""
    views = Views(tone_share=1.0, compressed_share=1.0)
    plain, toned = (
        SynthesisedPairs(
            DataConfig("photos", str(photos_dir), 64, ["clean"], views=v, classes=["clean"]), 0, 8
        )
        for v in (Views(), views)
    )
    for position in range(12):
        pair = toned[0, position]
        assert np.array_equal(pair.lq, pair.gt)
        assert not np.array_equal(pair.gt, plain[0, position].gt)


def test_crops_that_are_compressed_already_lose_little() -> None:
    smooth = np.repeat(np.linspace(0, 255, 96).astype(np.uint8)[None, :, None], 96, 0).repeat(3, 2)
    for seed in range(10):
        seen = vary(smooth, "blur", Views(compressed_share=1.0), rng(seed)).astype(int)
        assert 0 < np.abs(seen - smooth).max() < 24


def test_letters_are_written_on() -> None:
    grey = np.full((96, 96, 3), 127, np.uint8)
    changed = [
        (vary(grey, "rain", Views(text_share=1.0), rng(seed)) != grey).any(2).mean()
        for seed in range(20)
    ]
    assert min(changed) > 0
    assert 0.01 < np.mean(changed) < 0.5
    assert (grey == 127).all(), "the photo itself stays"


def test_shares_are_shares_of_the_samples(photos_dir: Path) -> None:
    config = DataConfig("photos", str(photos_dir), 64, list(DEGRADATIONS))
    plain = SynthesisedPairs(config, 0, 8)
    written = SynthesisedPairs(replace(config, views=Views(text_share=0.25)), 0, 8)
    differ = [not np.array_equal(plain[0, i].gt, written[0, i].gt) for i in range(80)]
    assert 0.1 < np.mean(differ) < 0.45


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_pairs_are_writable_as_torch_wants_them(photos_dir: Path, share: float) -> None:
    views = Views(color_share=share, dark_share=share, text_share=share)
    pairs = SynthesisedPairs(
        DataConfig("photos", str(photos_dir), 64, list(DEGRADATIONS), views=views), 0, 8
    )
    for position in range(32):
        pair = pairs[0, position]
        assert pair.lq.flags.writeable, DEGRADATIONS[pair.label]
        assert pair.gt.flags.writeable, DEGRADATIONS[pair.label]


def test_a_crop_is_the_callers_own_even_where_it_is_the_whole_photo() -> None:
    photo = PHOTO[:64, :64].copy()
    photo.setflags(write=False)
    for seed in range(8):
        square = crop(photo, 64, Views(), rng(seed))
        assert square.flags.writeable
        assert not np.shares_memory(square, photo)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (
            {"scale": (0.0, 1.0)},
            r"data.views.scale=\[0.0, 1.0\] is not possible: it has to lie in 0.01 to 1",
        ),
        ({"scale": (1.0, 0.5)}, r"data.views.scale=\[1.0, 0.5\] is reversed"),
        ({"dark_share": 1.5}, "data.views.dark_share=1.5 is not possible"),
        (
            {"dark_share": 0.6, "dim_share": 0.5},
            "dark_share=0.6 and dim_share=0.5 are more than all crops",
        ),
        ({"tone_light": (0.0, 0.5)}, r"data.views.tone_light=\[0.0, 0.5\] is not possible"),
        ({"compressed_quality": (95, 75)}, r"data.views.compressed_quality=\[95, 75\] is reversed"),
        ({"text_share": -0.1}, "data.views.text_share=-0.1 is not possible"),
    ],
)
def test_what_is_no_share_is_refused(views: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Views(**views)


def test_they_are_keys_of_the_training_scripts() -> None:
    config = load("train_base", BaseConfig, ["data.views.scale=[0.45,1]", "data.views.text_share=0.1"])
    assert config.data.views == Views(scale=(0.45, 1.0), text_share=0.1)
