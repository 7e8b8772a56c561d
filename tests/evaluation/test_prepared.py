"""Suites of a prepared folder: which pairs belong to which task, and what is said where they are missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_runs import quiet, settings

from diffrestorer.evaluation.prepared import MANIFEST, build_suite
from diffrestorer.evaluation.run import evaluate
from diffrestorer.evaluation.suites import SETS, SUITES

PAIRS = 2


def prepare(root: Path, tasks: dict[str, tuple[str, str, str]], **columns: Any) -> None:
    """A folder as scripts/prepare_data.py makes it: `tasks` maps a shard to (set, degradation, split)."""
    rng = np.random.default_rng(0)
    rows = []
    for name, (dataset, degradation, split) in tasks.items():
        sides = 1 if dataset == "rtts" else 2
        shard = f"pairs/{dataset}/{split}/{name}/00000.npy"
        (root / shard).parent.mkdir(parents=True)
        np.save(root / shard, rng.integers(0, 256, (PAIRS, sides, 64, 64, 3), dtype=np.uint8))
        for row in range(PAIRS):
            gt = f"{shard}#{row}/1" if sides == 2 else None
            rows.append({
                "lq": f"{shard}#{row}/0", "gt": gt, "degradation": degradation, "split": split, "set": dataset,
                "seed": 0, "augmentation": "", "sha256": "", **columns,
            })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), root / MANIFEST)


REAL = {"snow": ("realsnow", "snow", "test"), "haze": ("rtts", "haze", "test")}


def test_tasks_are_told_apart_by_set_and_split(tmp_path: Path) -> None:
    tasks = {task: (SETS[task], task, "test") for task in (*SUITES["single"], *SUITES["mixed"])}
    others = {"training": ("gopro", "blur", "train"), "second": ("raindrop", "raindrop", "test_b")}
    prepare(tmp_path, {**tasks, **others, "a": REAL["snow"], "b": REAL["haze"]})
    for name, wanted in SUITES.items():
        if name == "demo":
            continue
        suite = build_suite(settings(tmp_path / "out", [], suite=name, images=None, data={"root": str(tmp_path)}))
        assert suite.degradations == list(wanted)
        assert len(suite.items) == PAIRS * len(wanted)
        assert not suite.missing
        assert suite.note == ""
    real = suite_items(tmp_path, "real")
    assert [item.gt is None for item in real] == [False] * PAIRS + [True] * PAIRS
    assert real[0].image == "realsnow_00000_00000"
    shard = np.load(tmp_path / "pairs/realsnow/test/a/00000.npy")
    assert np.array_equal(real[1].lq.read(), shard[1, 0])
    assert real[1].gt is not None
    assert np.array_equal(real[1].gt.read(), shard[1, 1])
    assert real[1].lq.size() == (64, 64)


def suite_items(root: Path, name: str) -> tuple[Any, ...]:
    return build_suite(settings(root / "out", [], suite=name, images=None, data={"root": str(root)})).items


def test_real_photos_are_scored_without_reference(tmp_path: Path) -> None:
    prepare(tmp_path, {"a": REAL["snow"], "b": REAL["haze"]})
    keys = {"suite": "real", "metrics": ["psnr"], "images": None}
    scores = evaluate(settings(tmp_path / "out", ["degraded"], data={"root": str(tmp_path)}, **keys), quiet())
    assert [(score.degradation, sorted(score.values)) for score in scores] == [
        *[("real_snow", ["psnr"])] * PAIRS, *[("real_haze", [])] * PAIRS
    ]  # fmt: skip
    page = (tmp_path / "out" / "table1.md").read_text()
    assert "real_haze" in page
    assert "open photos" not in page


def test_what_is_not_prepared_is_said_with_its_command(tmp_path: Path) -> None:
    prepare(tmp_path, {"a": REAL["snow"], "low": ("lol", "low_light", "test")})
    config = settings(tmp_path / "out", [], suite="mixed", data={"root": str(tmp_path)})
    with pytest.raises(ValueError, match=rf"prepare_data\.py set=div2k root=DOWNLOADS out={tmp_path}"):
        build_suite(config)
    suite = build_suite(settings(tmp_path / "out", [], suite="ablation", data={"root": str(tmp_path)}))
    assert suite.degradations == ["low_light", "real_snow"]
    assert suite.missing["haze"] == (
        f"not prepared: python scripts/prepare_data.py set=reside root=DOWNLOADS out={tmp_path}"
    )
    assert "first 1 test images" in suite.note


@pytest.mark.parametrize("damage", ["no folder", "no manifest", "no Parquet", "no column"])
def test_a_folder_that_is_not_prepared_is_refused(tmp_path: Path, damage: str) -> None:
    if damage == "no Parquet":
        (tmp_path / MANIFEST).write_bytes(b"text")
    elif damage == "no column":
        pq.write_table(pa.Table.from_pylist([{"lq": "a"}]), tmp_path / MANIFEST)
    root = tmp_path / "nowhere" if damage == "no folder" else tmp_path
    with pytest.raises(ValueError, match=r"prepare_data\.py out=|prepare the folder again"):
        build_suite(settings(tmp_path / "out", [], suite="mixed", data={"root": str(root)}))


def test_pairs_named_twice_or_without_reference_are_refused(tmp_path: Path) -> None:
    prepare(tmp_path, {"a": REAL["snow"]})
    table = pq.read_table(tmp_path / MANIFEST)
    config = settings(tmp_path / "out", [], suite="real", images=None, data={"root": str(tmp_path)})
    pq.write_table(pa.concat_tables([table, table]), tmp_path / MANIFEST)
    with pytest.raises(ValueError, match="real_snow/realsnow_00000_00000 twice"):
        build_suite(config)
    pq.write_table(table.set_column(1, "gt", pa.array([None] * PAIRS, pa.string())), tmp_path / MANIFEST)
    with pytest.raises(ValueError, match=r"real_snow|has no clean image"):
        build_suite(config)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    prepare(tmp_path, {"a": REAL["snow"]})
    item = suite_items(tmp_path, "real")[0]
    item.lq.path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"00000\.npy#0/0: it cannot be read"):
        item.lq.size()
