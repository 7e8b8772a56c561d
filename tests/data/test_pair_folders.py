"""Pairs of one's own: matched by name, checked, cropped at one place, in an order that balances classes if asked to."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from miniatures import save, scene

from diffrestorer.config.schema import DataConfig
from diffrestorer.config.view_ranges import Views
from diffrestorer.data.images import ImageError
from diffrestorer.data.order import BalancedOrder
from diffrestorer.data.pair_folders import PairFolders, find_pairs
from diffrestorer.data.prepared import name_classes, open_pairs

SIZE = 32
SHIFT = 40


def write(folder: Path, numbers: range, lq: str = "{}", gt: str = "{}", suffix: str = "png") -> Path:
    """Pairs whose degraded image is the clean one, darker by `SHIFT` where it can be."""
    for number in numbers:
        clean = np.maximum(scene(number), SHIFT)
        save(folder / "gt" / f"{gt.format(number)}.png", clean)
        save(folder / "lq" / f"{lq.format(number)}.{suffix}", clean - np.uint8(SHIFT))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four pairs of noise and two of sandstorm."""
    write(tmp_path / "noise", range(1, 5))
    write(tmp_path / "sandstorm", range(5, 7), suffix="bmp")
    return tmp_path


def config(root: Path, *classes: str, **more: object) -> DataConfig:
    return replace(DataConfig("pairs", str(root), SIZE), classes=list(classes) or None, **more)  # type: ignore[arg-type]


def test_both_images_are_cut_at_one_place(root: Path) -> None:
    pairs = open_pairs(config(root, "noise", "sandstorm"), 3, 2)
    assert isinstance(pairs, PairFolders)
    seen = Counter()
    for step in range(6):
        for position in range(2):
            pair = pairs[step, position]
            assert pair.lq.shape == pair.gt.shape == (SIZE, SIZE, 3)
            assert (pair.gt - pair.lq == SHIFT).all()
            path, name = pairs.source(step, position)
            assert pairs.classes[pair.label] == name == path.parents[1].name
            seen[path] += 1
            again = open_pairs(config(root, "noise", "sandstorm"), 3, 2)[step, position]
            assert np.array_equal(pair.lq, again.lq)
    assert set(seen.values()) == {2}, "every pair once an epoch"
    assert len(seen) == 6
    assert pairs.counts() == {"noise": 4, "sandstorm": 2}


def test_scales_and_turns_keep_both_images_together(root: Path) -> None:
    changed = config(root, "noise", augment=True, views=Views(scale=(0.4, 1.0)))
    pairs = PairFolders(changed, 0, 4)
    shrunk = [pairs[step, position] for step in range(4) for position in range(4)]
    assert all(np.abs(pair.gt.astype(int) - pair.lq - SHIFT).max() <= 1 for pair in shrunk)


def test_classes_come_up_equally_often_or_as_often_as_they_are_named(root: Path) -> None:
    for named, expected in (
        (["noise", "sandstorm"], {"noise": 24, "sandstorm": 24}),
        (["noise", "sandstorm", "sandstorm"], {"noise": 16, "sandstorm": 32}),
    ):
        data = config(root, "noise", "sandstorm", balance="classes", degradations=named)
        pairs = PairFolders(data, 0, 4)
        sources = [pairs.source(step, position) for step in range(12) for position in range(4)]
        assert Counter(name for _, name in sources) == expected
        files = Counter(path for path, name in sources if name == "noise")
        assert len(set(files.values())) == 1, "each pair of a class equally often"


def test_a_balanced_order_visits_a_class_s_pairs_before_any_returns() -> None:
    order = BalancedOrder(7, {"a": 5, "b": 2, "c": 1}, ["a", "b", "c"])
    drawn = [order(number) for number in range(30)]
    for name, count in (("a", 5), ("b", 2), ("c", 1)):
        places = [place for found, place in drawn if found == name]
        epochs = [places[i : i + count] for i in range(0, 10, count)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert drawn != [BalancedOrder(8, {"a": 5, "b": 2, "c": 1}, ["a", "b", "c"])(n) for n in range(30)]


def test_names_may_differ_by_a_pattern(tmp_path: Path) -> None:
    folder = write(tmp_path, range(1, 4), lq="{}_lq", gt="clean-{}")
    lq, gt = str(folder / "lq"), str(folder / "gt")
    found = find_pairs(None, lq, gt, "haze", "{}_lq", "clean-{}")
    assert [(pair.degradation, pair.name) for pair in found] == [("haze", str(n)) for n in range(1, 4)]
    with pytest.raises(ValueError, match=r"6 files in .* no partner .* give data\.lq_name=\{\}_lq"):
        find_pairs(None, lq, gt)
    with pytest.raises(
        ValueError, match=r"1_lq\.png is not named \{\}_low: rename it, or give data\.lq_name"
    ):
        find_pairs(None, lq, gt, "haze", "{}_low", "clean-{}")
    with pytest.raises(ValueError, match=r"pattern '_lq' of file names needs \{\} once"):
        find_pairs(None, lq, gt, "haze", "_lq")


def test_folders_of_folders_are_matched_by_their_paths(tmp_path: Path) -> None:
    write(tmp_path / "x", range(1, 3))
    for side in ("lq", "gt"):
        (tmp_path / "all" / side / "day").mkdir(parents=True)
        (tmp_path / "x" / side / "1.png").rename(tmp_path / "all" / side / "day" / "1.png")
    names = [p.name for p in find_pairs(None, str(tmp_path / "all/lq"), str(tmp_path / "all/gt"))]
    assert names == ["day/1"]


def test_clean_pairs_are_made_of_clean_images(root: Path) -> None:
    pairs = PairFolders(config(root, "noise", "sandstorm", "clean"), 0, 3)
    assert pairs.counts() == {"noise": 4, "sandstorm": 2, "clean": 3}
    clean = [
        pairs[step, p] for step in range(3) for p in range(3) if pairs.source(step, p)[1] == "clean"
    ]
    assert len(clean) == 3
    assert all(np.array_equal(pair.lq, pair.gt) and pair.label == 2 for pair in clean)


def test_classes_are_those_of_the_folders(root: Path) -> None:
    assert name_classes(config(root)) == ["noise", "sandstorm"]
    one = DataConfig("pairs", lq=str(root / "noise/lq"), gt=str(root / "noise/gt"))
    assert name_classes(one) == ["own"]
    assert name_classes(replace(one, degradation="fog")) == ["fog"]


def test_a_small_pair_is_enlarged_and_one_that_differs_in_size_is_named(root: Path) -> None:
    save(root / "noise/lq/1.png", scene(1)[:20, :24])
    save(root / "noise/gt/1.png", scene(1)[:20, :24])
    save(root / "noise/lq/2.png", scene(2)[:40])
    pairs = PairFolders(config(root, "noise", "sandstorm"), 0, 1)
    small, other = (next(p for p in pairs.pairs if p.name == name) for name in ("1", "2"))
    assert pairs._pair(small, 0, 0).lq.shape == (SIZE, SIZE, 3)
    with pytest.raises(ImageError, match=r"lq/2\.png: it is \d+x40 pixels, its partner .*gt/2\.png is"):
        pairs._pair(other, 0, 0)
    skipping = PairFolders(config(root, "noise", "sandstorm", skip_unreadable=True), 0, 1)
    assert skipping._pair(other, 0, 0).lq.shape == (SIZE, SIZE, 3)


def test_what_is_wrong_with_the_folders_is_one_sentence(root: Path) -> None:
    def refused(match: str, data: DataConfig) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            open_pairs(data, 0, 1)
        assert "\n" not in str(caught.value)

    noise = str(root / "noise")
    refused("not set, or set twice", DataConfig("pairs", classes=["own"]))
    refused("not set, or set twice", config(root, "own", lq=noise, gt=noise))
    refused("not set, or set twice", DataConfig("pairs", lq=noise, classes=["own"]))
    refused("is not a folder", config(root / "nothing", "own"))
    refused("holds no folders of pairs", config(root / "noise/lq", "own"))
    refused("there are no pairs of rain, only of noise, sandstorm", config(root, "noise", "rain"))
    refused("data.degradation names the class of data.lq", config(root, "noise", degradation="noise"))
    refused("data.views.scale only", config(root, "noise", views=Views(color_share=0.5)))

    (root / "sandstorm/gt/6.png").unlink()
    refused(r"1 files in .* have no partner .*6\.bmp", config(root, "noise"))
    (root / "sandstorm/gt/6.png").write_bytes((root / "noise/gt/1.png").read_bytes())
    (root / "sandstorm/gt/6.bmp").write_bytes((root / "noise/gt/1.png").read_bytes())
    refused(r"6\.bmp and .*6\.png have one name", config(root, "noise"))
    (root / "sandstorm/gt/6.bmp").unlink()
    (root / "Hazy Days/lq").mkdir(parents=True)
    refused(r"Hazy Days holds no folder gt/", config(root, "noise"))
    (root / "Hazy Days/gt").mkdir()
    refused(r"the class of a folder in .*=Hazy Days is not valid", config(root, "noise"))
