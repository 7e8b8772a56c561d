"""Suites of a prepared folder: which pairs belong to which task, and what is said where they are missing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_runs import quiet, settings
from PIL import Image

from diffrestorer.data.manifest import MANIFEST, SCHEMA
from diffrestorer.evaluation.paper_suites import build_suite
from diffrestorer.evaluation.run import evaluate
from diffrestorer.evaluation.suites import SETS, SUITES
from diffrestorer.preparation.catalog import CATALOG

PAIRS = 2


def prepare(root: Path, tasks: Sequence[tuple[str, str, str]]) -> None:
    """A folder as scripts/prepare_data.py makes it, of sets, degradations and splits."""
    rng = np.random.default_rng(0)
    rows = []
    for dataset, degradation, split in tasks:
        for number in range(PAIRS):
            names: list[str | None] = [None, None]
            for side, name in enumerate(("lq", "gt")[: 1 if dataset == "rtts" else 2]):
                names[side] = f"pairs/{dataset}/{split}/{degradation}/{name}/photo{number}.png"
                (root / str(names[side])).parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / str(names[side]))
            values = (*names, degradation, split, dataset, 0, "", "")
            rows.append(dict(zip(SCHEMA.names, values, strict=True)))
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), root / MANIFEST)


SNOW, HAZE = ("realsnow", "snow", "test"), ("rtts", "haze", "test")


def test_tasks_are_told_apart_by_set_and_split(tmp_path: Path) -> None:
    tasks = [(SETS[task], task, "test") for task in (*SUITES["single"], *SUITES["mixed"])]
    others = [
        ("gopro", "blur", "train"),
        ("raindrop", "raindrop", "test_b"),
        ("photos", "blur", "test"),
        SNOW,
        HAZE,
    ]
    prepare(tmp_path, [*tasks, *others])
    for name, wanted in SUITES.items():
        if name == "demo":
            continue
        suite = build_suite(
            settings(tmp_path / "out", [], suite=name, images=None, data={"root": str(tmp_path)})
        )
        assert suite.degradations == list(wanted)
        assert len(suite.items) == PAIRS * len(wanted)
        assert not suite.missing
        assert suite.note == ""
    real = suite_items(tmp_path, "real")
    assert [item.gt is None for item in real] == [False] * PAIRS + [True] * PAIRS
    assert [item.image for item in real[:PAIRS]] == ["photo0", "photo1"]
    assert real[0].lq == tmp_path / "pairs/realsnow/test/snow/lq/photo0.png"
    assert "photos" not in {item.lq.parts[-5] for item in suite_items(tmp_path, "all")}


def test_the_sets_of_the_tasks_are_those_of_the_catalog() -> None:
    made = {
        (entry.name, product.degradation)
        for entry in CATALOG.values()
        for part in entry.parts
        for product in part.products
        if part.split == "test"
    }
    assert made == {(name, task.removeprefix("real_")) for task, name in SETS.items()}


def test_own_photos_stand_in_and_the_table_says_so(tmp_path: Path) -> None:
    prepare(tmp_path, [("photos", "blur+noise", "test"), ("div2k", "jpeg+blur+noise", "test")])
    suite = build_suite(
        settings(tmp_path / "out", [], suite="mixed", images=None, data={"root": str(tmp_path)})
    )
    assert suite.degradations == ["blur+noise", "jpeg+blur+noise"]
    assert suite.note.startswith("blur+noise: measured on own photos")


def suite_items(root: Path, name: str) -> tuple[Any, ...]:
    return build_suite(
        settings(root / "out", [], suite=name, images=None, data={"root": str(root)})
    ).items


def test_real_photos_are_scored_without_reference(tmp_path: Path) -> None:
    prepare(tmp_path, [SNOW, HAZE])
    keys = {"suite": "real", "metrics": ["psnr"], "images": None}
    scores = evaluate(
        settings(tmp_path / "out", ["degraded"], data={"root": str(tmp_path)}, **keys), quiet()
    )
    assert [(score.degradation, sorted(score.values)) for score in scores] == [
        *[("real_snow", ["psnr"])] * PAIRS, *[("real_haze", [])] * PAIRS
    ]  # fmt: skip
    page = (tmp_path / "out" / "table1.md").read_text()
    assert "real_haze" in page
    assert "open photos" not in page


def test_what_is_not_prepared_is_said_with_its_command(tmp_path: Path) -> None:
    prepare(tmp_path, [SNOW, ("lol", "low_light", "test")])
    config = settings(tmp_path / "out", [], suite="mixed", data={"root": str(tmp_path)})
    with pytest.raises(
        ValueError, match=rf"diffrestorer prepare set=div2k root=DOWNLOADS out={tmp_path}"
    ):
        build_suite(config)
    suite = build_suite(settings(tmp_path / "out", [], suite="ablation", data={"root": str(tmp_path)}))
    assert suite.degradations == ["low_light", "real_snow"]
    assert suite.missing["haze"] == (
        f"not prepared: diffrestorer prepare set=reside root=DOWNLOADS out={tmp_path}"
    )
    assert "first 1 test images" in suite.note


@pytest.mark.parametrize("damage", ["no folder", "no manifest", "no Parquet", "no column"])
def test_a_folder_that_is_not_prepared_is_refused(tmp_path: Path, damage: str) -> None:
    if damage == "no Parquet":
        (tmp_path / MANIFEST).write_bytes(b"text")
    elif damage == "no column":
        pq.write_table(pa.Table.from_pylist([{"lq": "a"}]), tmp_path / MANIFEST)
    root = tmp_path / "nowhere" if damage == "no folder" else tmp_path
    with pytest.raises(ValueError, match=r"(?s)manifest\.parquet.*\n  diffrestorer prepare set=div2k"):
        build_suite(settings(tmp_path / "out", [], suite="mixed", data={"root": str(root)}))


@pytest.mark.parametrize("suite", ["mixed", "pairs"])
def test_a_url_is_refused(tmp_path: Path, suite: str) -> None:
    config = settings(tmp_path / "out", [], suite=suite, data={"root": "s3://bucket/pairs"})
    with pytest.raises(
        ValueError, match=r"s3://bucket/pairs is a URL, which only training reads: copy"
    ):
        build_suite(config)


def test_pairs_named_twice_or_without_reference_are_refused(tmp_path: Path) -> None:
    prepare(tmp_path, [SNOW])
    table = pq.read_table(tmp_path / MANIFEST)
    config = settings(tmp_path / "out", [], suite="real", images=None, data={"root": str(tmp_path)})
    pq.write_table(pa.concat_tables([table, table]), tmp_path / MANIFEST)
    with pytest.raises(ValueError, match="real_snow/photo0 twice"):
        build_suite(config)
    pq.write_table(
        table.set_column(1, "gt", pa.array([None] * PAIRS, pa.string())), tmp_path / MANIFEST
    )
    with pytest.raises(ValueError, match=r"real_snow|has no clean image"):
        build_suite(config)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    prepare(tmp_path, [SNOW])
    suite_items(tmp_path, "real")[0].lq.write_bytes(b"")
    config = settings(tmp_path / "out", ["degraded"], suite="real", data={"root": str(tmp_path)})
    with pytest.raises(ValueError, match=r"lq/photo0\.png: it cannot be read"):
        evaluate(config, quiet())
