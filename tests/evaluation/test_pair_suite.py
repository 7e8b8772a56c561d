"""The suite of a user's own pairs: the same folders and keys as in training, with all tables."""

import csv
from pathlib import Path

import numpy as np
import pytest
from evaluation_runs import quiet, settings
from miniatures import save, scene
from PIL import Image

from diffrestorer.config.schema import PrepareConfig
from diffrestorer.data.images import read_photo
from diffrestorer.evaluation.paper_suites import build_suite
from diffrestorer.evaluation.run import evaluate
from diffrestorer.preparation.prepare import prepare


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pairs of noise, three of a class that nobody else has; one is a JPEG that lies on its side."""
    folder = tmp_path / "own"
    for name, numbers in (("noise", range(1, 3)), ("sandstorm", range(3, 6))):
        for number in numbers:
            clean = np.asarray(Image.fromarray(scene(number)).resize((80, 64)))
            save(folder / name / "gt" / f"{number}.png", clean)
            save(folder / name / "lq" / f"{number}.png", clean // 2)
    lying = Image.open(folder / "noise/lq/1.png").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6
    lying.save(folder / "noise/lq/1.jpg", exif=exif)
    (folder / "noise/lq/1.png").unlink()
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_own_pairs_are_scored_with_all_tables(root: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    keys = {"suite": "pairs", "data": {"root": str(root)}, "images": None, "model": str(model)}
    evaluate(settings(out, ["degraded", "diff_restorer"], **keys), quiet())
    found = {(row["suite"], row["degradation"], row["image"], row["method"]) for row in rows(out)}
    names = [("noise", "1"), ("noise", "2"), *(("sandstorm", str(n)) for n in range(3, 6))]
    assert found == {("pairs", *name, m) for name in names for m in ("degraded", "diff_restorer")}
    assert (out / "restored/diff_restorer/sandstorm/4.png").is_file()
    for name in ("table.md", "table.tex", "standings.md", "standings.csv", "index.html"):
        assert "sandstorm" in (out / name).read_text(), name
    assert "mean of own classes" in (out / "table.md").read_text()
    assert not (out / "table1.md").exists()
    page = (out / "index.html").read_text()
    assert "of 1 own classes" in page
    assert "5 pairs" in page


def test_two_folders_are_a_class_of_a_given_name(root: Path, tmp_path: Path) -> None:
    data = {"lq": str(root / "noise/lq"), "gt": str(root / "noise/gt"), "degradation": "grain"}
    config = settings(tmp_path / "out", ["degraded"], suite="pairs", data=data, images=None)
    suite = build_suite(config)
    assert [item.file for item in suite.items] == ["grain/1.png", "grain/2.png"]
    shapes = [
        read_photo(path).pixels.shape for path in (suite.items[0].lq, suite.items[0].gt or Path())
    ]
    assert shapes == [(64, 80, 3)] * 2, "upright"

    save(root / "noise/lq/2.png", np.zeros((64, 79, 3), np.uint8))
    with pytest.raises(ValueError, match=r"lq/2\.png: it is 79x64 pixels, its partner .* is 80x64"):
        build_suite(config)
    with pytest.raises(ValueError, match=r"not set, or set twice: give data\.lq=FOLDER"):
        build_suite(settings(tmp_path / "out", ["degraded"], suite="pairs"))


def test_names_that_meet_in_one_folder_are_numbered_as_prepared_ones_are(tmp_path: Path) -> None:
    """Slashes, upper case, numbers of others, and names too long for a file."""
    root = tmp_path / "own"
    long = "x" * 200 + "/" + "y" * 200
    names = ["A", "a", "a/b", "a_b", "a_b__2", long, f"{long}2"]
    for number, name in enumerate(names):
        for side in ("lq", "gt"):
            save(root / "noise" / side / f"{name}.png", np.full((64, 64, 3), number, np.uint8))
    config = settings(
        tmp_path / "out", ["degraded"], suite="pairs", data={"root": str(root)}, images=None
    )
    items = build_suite(config).items
    assert [read_photo(item.lq).pixels.max() for item in items] == list(range(len(names)))
    assert len({item.image.lower() for item in items}) == len(names)
    assert [item.image for item in items][:5] == ["A", "a__2", "a_b", "a_b__2", "a_b__2__2"]

    out = tmp_path / "prepared"
    keys = {"set": "pairs", "root": str(root), "out": str(out), "size": 32, "num_workers": 1}
    prepare(PrepareConfig(**keys, split="test"))
    prepared = settings(
        tmp_path / "o", ["degraded"], suite="pairs", data={"root": str(out)}, images=None
    )
    found = {item.image for item in build_suite(prepared).items}
    assert len(found) == len(names)
    assert {f"noise_{item.image}" for item in items[:5]} < found


def test_scores_tell_which_photos_are_the_same(root: Path, tmp_path: Path) -> None:
    """By the clean image's pixels, whatever the files are called and however they are packed."""
    same = Image.open(root / "noise/gt/1.png")
    save(root / "sandstorm/gt/9.png", np.asarray(same))
    save(root / "sandstorm/lq/9.png", np.asarray(same) // 2)
    save(root / "sandstorm/gt/1.png", np.zeros((64, 80, 3), np.uint8))
    save(root / "sandstorm/lq/1.png", np.zeros((64, 80, 3), np.uint8))
    keys = {"suite": "pairs", "data": {"root": str(root)}, "images": None}
    found = evaluate(settings(tmp_path / "out", ["degraded"], **keys), quiet())
    photos = {(score.degradation, score.image): score.photo for score in found}
    assert photos["noise", "1"] == photos["sandstorm", "9"]
    assert len(set(photos.values())) == len(photos) - 1


def test_prepared_pairs_are_a_suite_too(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    (root / "noise/lq/1.jpg").unlink()
    (root / "noise/gt/1.png").unlink()
    shared = {"set": "pairs", "root": str(root), "out": str(out), "size": 32, "num_workers": 1}
    prepare(PrepareConfig(**shared, split="test"))
    suite = build_suite(
        settings(tmp_path / "o", [], suite="pairs", data={"root": str(out)}, images=None)
    )
    assert [item.degradation for item in suite.items] == ["noise"] + ["sandstorm"] * 3
    with pytest.raises(ValueError, match="training and test overlap"):
        prepare(PrepareConfig(**shared))
    prepare(PrepareConfig(out=str(out), check=True))
