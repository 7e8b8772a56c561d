"""The suite's files: a function of the seed alone, and repaired where they are not what the seed gives."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.config.evaluating import EvaluateConfig
from diffrestorer.evaluation.paper_suites import build_suite
from diffrestorer.evaluation.suites import DEMO_PHOTOS


def files(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*.png"))
    }


def config(folder: Path, **keys: int) -> EvaluateConfig:
    return EvaluateConfig(output_dir=str(folder), **{"size": 96, **keys})  # type: ignore[arg-type]


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    suite = build_suite(config(tmp_path / "a"))
    build_suite(config(tmp_path / "b"))
    build_suite(config(tmp_path / "c", seed=1))
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b
    assert len(a) == len(DEMO_PHOTOS) * (1 + len(DEGRADATIONS) + len(MIXTURES))
    assert a["suite/gt/coffee.png"] == c["suite/gt/coffee.png"]
    assert a["suite/lq/noise/coffee.png"] != c["suite/lq/noise/coffee.png"]
    assert suite.degradations == [*DEGRADATIONS, *MIXTURES]
    assert suite.images == list(DEMO_PHOTOS)
    for item in suite.items:
        assert item.gt is not None
        assert (
            np.asarray(Image.open(item.gt)).shape
            == np.asarray(Image.open(item.lq)).shape
            == (96, 96, 3)
        )


def test_a_photo_does_not_depend_on_the_others(tmp_path: Path) -> None:
    build_suite(config(tmp_path / "all"))
    build_suite(config(tmp_path / "two", images=2))
    assert files(tmp_path / "two").items() <= files(tmp_path / "all").items()


def test_right_files_are_kept_and_wrong_ones_replaced(tmp_path: Path) -> None:
    suite = build_suite(config(tmp_path, images=1))
    before = files(tmp_path)
    kept, damaged = suite.items[0].lq, suite.items[1].lq
    stamp = kept.stat().st_mtime_ns
    damaged.write_bytes(damaged.read_bytes()[:100])
    build_suite(config(tmp_path, images=1))
    assert kept.stat().st_mtime_ns == stamp
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"suite": "mixd"}, "choose from demo, single, real, mixed, all, ablation"),
        ({"suite": "real"}, r"diffrestorer prepare set=realsnow root=DOWNLOADS out=PREPARED"),
        ({"size": 500}, "64 to 288"),
        ({"images": 6}, "1 to 5 open photos"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_suite(EvaluateConfig(output_dir=str(tmp_path), **keys))  # type: ignore[arg-type]
