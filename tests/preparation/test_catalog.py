"""The catalog knows every set's files by their path, pairs them by name, and is what data/README.md says."""

from pathlib import Path

import pytest
from miniatures import LAYOUTS

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.preparation.catalog import CATALOG, page

ROOT = Path(__file__).resolve().parents[2]


def test_the_ten_sets_are_there() -> None:
    assert list(CATALOG) == list(LAYOUTS)


def test_readme_is_the_catalog() -> None:
    assert (ROOT / "data" / "README.md").read_text() == page(), (
        "run: diffrestorer prepare set=readme out=data"
    )


def test_help_names_every_set() -> None:
    header = (ROOT / "configs" / "prepare_data.yaml").read_text()
    assert [name for name in (*CATALOG, "all", "photos", "open_photos") if name not in header] == []


def test_published_counts() -> None:
    """SPEC: the sets' published counts."""
    counts = {
        (name, part.name): part.published for name, entry in CATALOG.items() for part in entry.parts
    }
    assert counts["div2k", "DIV2K_train_HR"] == 800
    assert counts["flickr2k", "Flickr2K_HR"] == 2650
    assert counts["snow100k", "all"] == 50_000
    assert (
        sum(count for (name, part), count in counts.items() if name == "snow100k" and part != "all")
        == 50_000
    )
    assert counts["rtts", "RTTS"] == 4322


def test_every_class_is_trained_and_every_mixture_tested() -> None:
    made = {"train": set(), "test": set(), "test_b": set()}
    for entry in CATALOG.values():
        for part in entry.parts:
            made[part.split] |= {product.degradation for product in part.products}
    assert made["train"] == set(DEGRADATIONS)
    assert made["test"] == {*DEGRADATIONS, *MIXTURES}


def test_synthesis_adds_what_a_mixture_lacks() -> None:
    for entry in CATALOG.values():
        for part in entry.parts:
            carried = {p.degradation for p in part.products if not p.steps}
            for product in part.products:
                steps = MIXTURES.get(product.degradation, (product.degradation,))
                assert product.steps == tuple(step for step in steps if step not in carried)


def test_two_thousand_snow_tests() -> None:
    assert sum(part.sample or 0 for part in CATALOG["snow100k"].parts) == 2000


@pytest.mark.parametrize(
    ("name", "part", "lq", "gt"),
    [
        ("reside", "OTS", "OTS/part1/0001_0.8_0.2.jpg", "OTS/clear/0001.jpg"),
        ("reside", "ITS", "ITS/hazy/12_3_0.90179.png", "ITS/clear/12.png"),
        ("rain1400", "training", "x/training/rainy_image/12_14.jpg", "x/training/ground_truth/12.jpg"),
        ("raindrop", "test_a", "test_a/data/7_rain.png", "test_a/gt/7_clean.png"),
        (
            "gopro",
            "train",
            "train/GOPR0372_07_00/blur/000047.png",
            "train/GOPR0372_07_00/sharp/000047.png",
        ),
    ],
)
def test_partners_share_a_key(name: str, part: str, lq: str, gt: str) -> None:
    entry = next(candidate for candidate in CATALOG[name].parts if candidate.name == part)
    assert entry.key("lq", lq) == entry.key("gt", gt) is not None
    assert entry.key("gt", lq) is None
    assert entry.key("lq", gt) is None


def test_gopro_scenes_are_kept_apart() -> None:
    train = CATALOG["gopro"].parts[0]
    keys = {
        train.key("gt", f"train/{scene}/sharp/000047.png")
        for scene in ("GOPR0372_07_00", "GOPR0374_11_00")
    }
    assert len(keys) == 2
    assert train.key("lq", "train/GOPR0372_07_00/blur_gamma/000047.png") is None


@pytest.mark.parametrize(
    "path", ["SOTS/outdoor/hazy/0001_0.8_0.2.jpg", "SOTS/indoor/hazy/1400_1_0.9.png"]
)
def test_test_haze_is_never_training_haze(path: str) -> None:
    for part in CATALOG["reside"].parts[:2]:
        assert part.key("lq", path) is None
