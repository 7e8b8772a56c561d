"""Several processes: sharing the work, in each other's way, and stopped in the middle."""

import json
import os
import signal
import time
from pathlib import Path

import cli_runs
import numpy as np
import pytest
from photo_files import files_in, noise, save

from diffrestorer.data.images import read_photo

pytestmark = pytest.mark.slow


@pytest.fixture
def command(random_model: Path, photos: Path, tmp_path: Path) -> list[str]:
    """`diffrestorer restore in -o out`, on the CPU."""
    return [
        "restore",
        str(photos),
        "-o",
        str(tmp_path / "out"),
        "--model",
        str(random_model),
        "--device",
        "cpu",
    ]


@pytest.mark.soak
def test_two_processes_restore_what_one_does(command: list[str], photos: Path, tmp_path: Path) -> None:
    for i in range(5):
        save(photos / f"{i}.png", noise(40, 32))
    (photos / "1.5.png").write_bytes(b"")
    log = tmp_path / "log"
    assert cli_runs.wait(cli_runs.start([*command, "--steps", "2"], log)) == 1
    assert log.read_text().endswith("restored 5, skipped 0 (already there), failed 1\n")
    alone = {
        name: read_photo(tmp_path / "out" / name).pixels.astype(int)
        for name in files_in(tmp_path / "out")
    }
    (tmp_path / "out" / "0.png").unlink()
    (tmp_path / "out" / "3.png").unlink()
    log.unlink()
    for status, said in ((1, "restored 2, skipped 3"), (1, "restored 0, skipped 5")):
        ranks = cli_runs.start_ranks([*command, "--steps", "2"], log, 2)
        assert [cli_runs.wait(rank) for rank in ranks] == [status] * 2
        assert log.read_text().count("restored ") == 1, "one summary"
        assert f"{said} (already there), failed 1\n" in log.read_text()
        log.unlink()
    for name, pixels in alone.items():
        assert np.abs(read_photo(tmp_path / "out" / name).pixels.astype(int) - pixels).max() <= 1

    ranks = cli_runs.start_ranks([*command, "-o", str(photos)], log, 2)
    assert [cli_runs.wait(rank) for rank in ranks] == [2, 2]
    assert len(log.read_text().splitlines()) == 1, "said once"


def test_two_restores_into_one_folder(command: list[str], photos: Path, tmp_path: Path) -> None:
    """Neither replaces what the other has written, nothing is lost, and each says what it skipped."""
    for i in range(8):
        save(photos / f"{i:02}.png", noise(48, 48))
    logs = [tmp_path / "first", tmp_path / "second"]
    runs = [
        cli_runs.start([*command, "--json", "--steps", "5", "--seed", seed], log)
        for seed, log in zip("01", logs, strict=True)
    ]
    assert [cli_runs.wait(run) for run in runs] == [0, 0]
    lines = [
        [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        for log in logs
    ]
    assert [len(own) for own in lines] == [8, 8]
    restored = [{line["output"] for line in own if line["status"] == "restored"} for own in lines]
    skipped = [{line["output"] for line in own if line["status"] == "skipped"} for own in lines]
    assert restored[0] == skipped[1]
    assert restored[1] == skipped[0]
    names = {str(tmp_path / "out" / name) for name in files_in(tmp_path / "out")}
    assert restored[0] | restored[1] == names
    assert len(names) == 8
    for name in names:
        assert read_photo(name).pixels.shape == (48, 48, 3)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stopped_run_leaves_whole_files_only(
    command: list[str], photos: Path, tmp_path: Path, name: str
) -> None:
    for i in range(40):
        save(photos / f"{i:02}.png", noise(96, 96))
    out, log = tmp_path / "out", tmp_path / "log"
    run = cli_runs.start([*command, "--steps", "10"], log)
    deadline = time.monotonic() + 1800
    while not (out.is_dir() and any(out.glob("*.png"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(run.pid or 0, getattr(signal, name))
    assert cli_runs.wait(run) == 130
    files = files_in(out)
    assert 0 < len(files) < 40
    assert log.read_text() == f"stopped; {len(files)} restored so far stand\n"
    for file in files:
        assert read_photo(out / file).pixels.shape == (96, 96, 3)
