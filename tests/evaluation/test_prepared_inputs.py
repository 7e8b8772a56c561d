"""Consistency and the study kit on prepared test sets: their inputs are found, and degraded again."""

import json
from pathlib import Path

import cv2
import pytest
from evaluation_runs import quiet, settings
from PIL import Image

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.config.schema import PrepareConfig
from diffrestorer.evaluation.paper_suites import build_suite
from diffrestorer.evaluation.restoring.outputs import read_pixels
from diffrestorer.evaluation.run import evaluate
from diffrestorer.evaluation.scoring.consistency import consistency
from diffrestorer.evaluation.study.blind_pairs import choose_pairs
from diffrestorer.evaluation.study.kit import make_study
from diffrestorer.evaluation.suites import Item
from diffrestorer.preparation.prepare import prepare

TASKS = (*DEGRADATIONS, *MIXTURES)


@pytest.fixture(scope="module")
def prepared(photos_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of two own photos under every class and mixture, 96 pixels a side."""
    folder = tmp_path_factory.mktemp("prepared_photos")
    for name in ("astronaut", "coffee"):
        (folder / "photos" / name).mkdir(parents=True)
        photo = Image.open(photos_dir / f"{name}.png")
        photo.save(folder / "photos" / name / "photo.png")
    out = folder / "prepared"
    root = str(folder / "photos")
    prepare(PrepareConfig("photos", root, str(out), size=96, fit="crop", split="test", num_workers=1))
    return out


def items(prepared: Path, suite: str) -> tuple[Item, ...]:
    config = settings(prepared, [], suite=suite, images=None, data={"root": str(prepared)})
    return build_suite(config).items


def outputs(folder: Path, prepared: Path) -> list[str]:
    """Write outputs of `perfect`, the clean image, and of `soft`, a blurred one; return the methods."""
    for item in items(prepared, "mixed"):
        assert item.gt is not None
        gt = read_pixels(item.gt)
        for name, pixels in (("perfect", gt), ("soft", cv2.GaussianBlur(gt, (5, 5), 2))):
            (folder / name / item.file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name / item.file)
    return ["degraded", *(f"{name}={folder / name}" for name in ("perfect", "soft"))]


def test_the_clean_image_is_consistent_under_every_class(prepared: Path) -> None:
    found = [*items(prepared, "single"), *items(prepared, "mixed")]
    assert [item.degradation for item in found] == [task for task in TASKS for _ in range(2)]
    for item in found:
        assert item.gt is not None
        assert item.draw is not None
        gt, lq = read_pixels(item.gt), read_pixels(item.lq)
        assert consistency(gt, lq, item.degradation, item.draw) == 0
        assert consistency(255 - gt, lq, item.degradation, item.draw) > 5


def test_tables_and_a_study_are_made_of_prepared_sets(prepared: Path, tmp_path: Path) -> None:
    methods = outputs(tmp_path / "outputs", prepared)
    run = tmp_path / "run"
    keys = {"suite": "mixed", "images": None, "metrics": ["psnr", "consistency"]}
    scores = evaluate(settings(run, methods, data={"root": str(prepared)}, **keys), quiet())

    values = {name: [score for score in scores if score.method == name] for name in ("perfect", "soft")}
    assert {score.values["consistency"] for score in values["perfect"]} == {0.0}
    assert all(score.values["consistency"] > 0 for score in values["soft"])
    assert "96" not in (run / "table.md").read_text().split("\n\n")[0], "no size of open photos"

    # The pairs show the prepared inputs, and the page holds their pixels.
    pairs = choose_pairs([run], 100, 0)
    assert {pair.place: pair.input for pair in pairs} == {
        f"{item.degradation}/{item.image}": item.lq for item in items(prepared, "mixed")
    }
    assert make_study([run], tmp_path / "study", 3, 0) == 3
    key = json.loads((tmp_path / "study" / "key.json").read_text())["pairs"]
    inputs = {pair.place: pair.input for pair in pairs}
    for number, pair in enumerate(key):
        shown = tmp_path / "study" / "page" / "images" / f"{number:04d}_input.png"
        assert (read_pixels(shown) == read_pixels(inputs[pair["place"]])).all()


def test_a_study_without_its_inputs_is_refused(prepared: Path, tmp_path: Path) -> None:
    methods = outputs(tmp_path / "outputs", prepared)
    moved = tmp_path / "moved"
    moved.symlink_to(prepared)
    run = tmp_path / "run"
    evaluate(settings(run, methods, suite="mixed", data={"root": str(moved)}), quiet())
    moved.unlink()
    with pytest.raises(ValueError, match=r"prepared folder can't be read .*moved"):
        choose_pairs([run], 4, 0)
    (run / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"config\.yaml"):
        choose_pairs([run], 4, 0)


@pytest.mark.parametrize("change", ["steps", "synthesis", "gone"])
def test_consistency_is_refused_where_inputs_came_degraded(
    change: str, prepared: Path, tmp_path: Path
) -> None:
    """Sets that were degraded elsewhere, in part or wholly, or under settings without a name."""
    plans = {file: file.read_text() for file in prepared.glob("pairs/photos/test/*+*/plan.json")}
    assert len(plans) == len(MIXTURES)
    config = settings(
        tmp_path, ["degraded"], suite="mixed", metrics=["consistency"], data={"root": str(prepared)}
    )
    try:
        for file, text in plans.items():
            plan = json.loads(text)
            if change == "steps":
                plan["steps"] = plan["steps"][1:]
            elif change == "synthesis":
                plan["synthesis"]["noise"]["sigma"] = [10.0, 20.0]
            file.write_text(json.dumps(plan))
            if change == "gone":
                file.unlink()
        with pytest.raises(ValueError, match="none of these inputs was degraded by this package"):
            evaluate(config, quiet())
        assert not list(tmp_path.iterdir()), "refused before anything is written"
    finally:
        for file, text in plans.items():
            file.write_text(text)
