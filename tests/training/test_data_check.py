"""The training data before the first step: contents count, and what cannot be read is named or skipped."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import training_runs as runs
from accelerate import Accelerator
from miniatures import make as make_pairs
from miniatures import photos
from PIL import Image
from tiny_runs import arguments as tiny_arguments
from tiny_runs import train_stage1

from diffrestorer.config.schema import DataConfig
from diffrestorer.data.manifest import open_shard
from diffrestorer.data.pairs import SynthesisedPairs
from diffrestorer.data.prepared import PreparedPairs
from diffrestorer.training import data_check
from diffrestorer.training.data_check import check_data

LOG = logging.getLogger("test")


@pytest.fixture
def photos_copy(photos_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos_dir, tmp_path / "photos"))


def check(output: Path, root: Path, allow: bool = False, skip: bool = False) -> SynthesisedPairs:
    output.mkdir(exist_ok=True)
    pairs = SynthesisedPairs(DataConfig("photos", str(root), 32, skip_unreadable=skip), 0, 2)
    check_data(output, pairs, allow, skip, Accelerator(cpu=True), LOG)
    return pairs


def replace_in_place(path: Path) -> None:
    """Another picture of the same size in bytes and, as far as `touch` can, of the same time."""
    before = path.stat()
    data = bytearray(path.with_name("coffee.png").read_bytes())
    other = Image.fromarray(np.full((160, 160, 3), 7, np.uint8))
    other.save(path)
    data = path.read_bytes()
    assert len(data) < before.st_size
    # What follows the end of a PNG is ignored.
    path.write_bytes(data + bytes(before.st_size - len(data)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_contents_count(photos_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same photos elsewhere are the same data; another photo of the same name, size and date is not."""
    check(tmp_path / "run", photos_copy)
    check(tmp_path / "run", Path(shutil.copytree(photos_copy, tmp_path / "moved")))
    replace_in_place(photos_copy / "rocket.png")
    with pytest.raises(ValueError, match=r"are not those that the run in .*changed: rocket\.png\)"):
        check(tmp_path / "run", photos_copy)
    check(tmp_path / "run", photos_copy, allow=True)
    assert "the training data changed since this run began" in caplog.text
    check(tmp_path / "run", photos_copy)


def test_a_known_photo_is_not_read_again(
    photos_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(tmp_path / "run", photos_copy)
    monkeypatch.setattr(data_check, "read_photo", lambda path: pytest.fail(f"{path} is read again"))
    check(tmp_path / "run", photos_copy)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_unreadable_photo_is_named_or_skipped(
    content: bytes | None, photos_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = photos_copy / "coffee.png"
    bad.write_bytes(bad.read_bytes()[:2000] if content is None else content)
    with pytest.raises(
        ValueError,
        match=r"1 of 4 files .* cannot be read \(.*coffee\.png: .*data\.skip_unreadable=true",
    ):
        check(tmp_path / "run", photos_copy)
    pairs = check(tmp_path / "run", photos_copy, skip=True)
    assert "1 of 4 files of the training data are skipped" in caplog.text

    # The next photo by name takes its place; nothing else is drawn otherwise.
    shutil.copy(photos_copy / "rocket.png", bad)
    with_rocket = SynthesisedPairs(DataConfig("photos", str(photos_copy), 32), 0, 2)
    for step in range(16):
        np.testing.assert_array_equal(pairs[step, 0].lq, with_rocket[step, 0].lq)


def test_a_photo_that_goes_bad_may_be_skipped_from_then_on(photos_copy: Path, tmp_path: Path) -> None:
    check(tmp_path / "run", photos_copy)
    (photos_copy / "coffee.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"coffee\.png"):
        check(tmp_path / "run", photos_copy)
    check(tmp_path / "run", photos_copy, skip=True)


def test_nothing_readable_is_refused(photos_copy: Path, tmp_path: Path) -> None:
    for path in photos_copy.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 4 files"):
        check(tmp_path / "run", photos_copy, skip=True)


def test_shards_are_compared_with_the_manifest_where_they_changed(tmp_path: Path) -> None:
    make_pairs("photos", photos(tmp_path / "photos", 1, 2), tmp_path / "out", size=32, budget=None)
    pairs = PreparedPairs(DataConfig("manifest", str(tmp_path / "out"), 32, ["noise", "rain"]), 3, 2)
    (tmp_path / "run").mkdir()

    def start() -> None:
        check_data(tmp_path / "run", pairs, False, False, Accelerator(cpu=True), LOG)

    start()
    shard = tmp_path / "out" / pairs.shards[0]
    os.utime(shard)
    start()  # touched, and the same
    pixels = np.array(open_shard(shard))
    pixels[0, 0, 0, 0, 0] ^= 1
    np.save(shard, pixels)
    with pytest.raises(ValueError, match=f"changed: {pairs.shards[0]}"):
        start()
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"files of the training data cannot be read \(.*00000\.npy"):
        start()


@pytest.mark.slow
def test_a_run_with_a_bad_photo_ends_before_its_first_step_or_skips_it(
    tiny_overrides: list[str], photos_copy: Path, tmp_path: Path
) -> None:
    (photos_copy / "coffee.png").write_bytes(b"no image")
    command = [*tiny_arguments(tiny_overrides, photos_copy), "train.max_steps=4"]
    with pytest.raises(ValueError, match=r"coffee\.png"):
        train_stage1(command, tmp_path / "run")
    assert not (tmp_path / "run" / "losses.csv").exists()
    train_stage1([*command, "data.skip_unreadable=true"], tmp_path / "run")
    assert len(runs.losses(tmp_path / "run")) == 4
