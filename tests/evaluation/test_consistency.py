"""Consistency: zero for the clean image under every class, larger for an invented one."""

from pathlib import Path

import cv2
import numpy as np
from evaluation_runs import quiet, settings
from PIL import Image

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.evaluation.paper_suites import build_suite
from diffrestorer.evaluation.restoring.outputs import read_pixels
from diffrestorer.evaluation.run import evaluate
from diffrestorer.evaluation.scoring.consistency import consistency
from diffrestorer.evaluation.suites import Item


def items(folder: Path) -> list[Item]:
    return list(build_suite(settings(folder, [], size=96, images=2)).items)


def invented(gt: np.ndarray) -> np.ndarray:
    """The photo with an object that is not there: a striped disc over a ninth of it."""
    rows, columns = np.mgrid[: gt.shape[0], : gt.shape[1]]
    disc = (rows - 48) ** 2 + (columns - 48) ** 2 < 18**2
    image = gt.copy()
    image[disc] = np.where((rows // 4 % 2)[disc][:, None], 250, 10)
    return image


def test_the_clean_image_is_consistent_under_every_class(tmp_path: Path) -> None:
    found = items(tmp_path)
    assert {item.degradation for item in found} == {*DEGRADATIONS, *MIXTURES}
    for item in found:
        assert item.gt is not None
        assert item.draw is not None
        assert consistency(read_pixels(item.gt), read_pixels(item.lq), item.degradation, item.draw) == 0


def test_an_invented_object_is_not_and_weighs_more_than_a_soft_image(tmp_path: Path) -> None:
    for item in items(tmp_path):
        assert item.gt is not None
        assert item.draw is not None
        gt, lq = read_pixels(item.gt), read_pixels(item.lq)
        images = (invented(gt), cv2.GaussianBlur(gt, (3, 3), 0.6))
        hallucinated, soft = (consistency(image, lq, item.degradation, item.draw) for image in images)
        assert 0 < soft < hallucinated, item.file


def test_tables_show_it_and_say_where_it_has_no_value(tmp_path: Path) -> None:
    keys = {"metrics": ["psnr", "consistency"], "size": 96}
    for item in items(tmp_path):
        assert item.gt is not None
        copy = tmp_path / "clean" / item.file
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(read_pixels(item.gt)).save(copy)
    scores = evaluate(
        settings(tmp_path, ["degraded", f"perfect={tmp_path / 'clean'}"], **keys), quiet()
    )
    assert {score.values["consistency"] for score in scores if score.method == "perfect"} == {0.0}
    assert all(score.values["consistency"] > 0 for score in scores if score.method == "degraded")
    assert "## CONSISTENCY (RMSE of 255 levels) ↓" in (tmp_path / "table.md").read_text()
    again = evaluate(settings(tmp_path, ["degraded", f"perfect={tmp_path / 'clean'}"], **keys), quiet())
    assert [score.values for score in again] == [score.values for score in scores], (
        "kept scores are those computed"
    )


def test_items_of_other_suites_have_no_draw(tmp_path: Path) -> None:
    assert Item("single", "noise", "photo", tmp_path, None).draw is None
