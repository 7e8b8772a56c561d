"""Stopping and failing: a checkpoint, one sentence, no traceback, whoever is asked and whoever is stuck."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import training_runs as runs
from soaking import some_now
from tiny_runs import arguments as tiny_arguments
from tiny_runs import train_stage1

from diffrestorer.training.checkpoint import list_checkpoints
from diffrestorer.training.stopping import EXIT_UNFINISHED

STEPS = 60


@pytest.fixture(scope="module")
def arguments(tiny_overrides: list[str], photos_dir: Path) -> list[str]:
    return tiny_arguments(
        tiny_overrides, photos_dir, f"train.max_steps={STEPS}", "train.checkpoint_every=1000"
    )


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    train_stage1(arguments, output)
    return output


def wait_for_rows(output: Path, rows: int, process: BaseProcess, log: Path) -> None:
    while not (output / "losses.csv").exists() or len(runs.losses(output)) < rows:
        assert process.is_alive(), log.read_text()
        time.sleep(0.002)


def workers_of(process: BaseProcess) -> list[psutil.Process]:
    """Its data workers, which are forks of it."""
    main = psutil.Process(process.pid)
    return [child for child in main.children() if child.cmdline() == main.cmdline()]


def ends_with_a_checkpoint(output: Path, log: Path) -> int:
    """The step of the one checkpoint, which losses.csv reaches; nothing is said that a user can't read."""
    text = log.read_text()
    assert "Traceback" not in text, text
    (checkpoint,) = list_checkpoints(output / "checkpoints")
    step = int(checkpoint.name.removeprefix("step_"))
    assert 0 < step < STEPS
    assert len(runs.losses(output)) == step, text
    return step


@pytest.mark.slow
def test_ctrl_c_ends_like_a_signal_of_a_scheduler(
    arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    """A terminal sends it to the data workers as well."""
    output, log = tmp_path / "run", tmp_path / "log"
    command = [*arguments, f"output_dir={output}", "train.num_workers=2"]
    process = runs.start("train_stage1.py", command, log)
    wait_for_rows(output, 2, process, log)
    for worker in workers_of(process):
        worker.send_signal(signal.SIGINT)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(1800)
    assert process.exitcode == 75
    step = ends_with_a_checkpoint(output, log)
    assert f"stopped at step {step} (SIGINT): the same command goes on from there" in log.read_text()
    runs.run("train_stage1.py", command, log)
    assert runs.files_of(output / "model") == runs.files_of(whole / "model")


@pytest.mark.slow
def test_ctrl_c_before_the_first_step_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    output, log = tmp_path / "run", tmp_path / "log"
    process = runs.start("train_stage1.py", [*arguments, f"output_dir={output}"], log)
    while not (output / "config.yaml").exists():
        assert process.is_alive(), log.read_text()
        time.sleep(0.001)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(1800)
    assert process.exitcode == 75, log.read_text()
    assert "Traceback" not in log.read_text()
    assert "(SIGINT): the same command" in log.read_text()


@pytest.mark.soak
def test_a_run_that_waits_for_data_stops_with_a_checkpoint(
    arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    """Its data worker hangs; the signal comes while the main thread waits for it."""
    output, log = tmp_path / "run", tmp_path / "log"
    command = [*arguments, f"output_dir={output}", "train.num_workers=1"]
    process = runs.start("train_stage1.py", command, log)
    wait_for_rows(output, 2, process, log)
    for worker in workers_of(process):
        worker.send_signal(signal.SIGSTOP)
    until_it_stands(output)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(1800)
    assert process.exitcode == 75, log.read_text()
    step = ends_with_a_checkpoint(output, log)
    assert f"stopped at step {step} (SIGTERM)" in log.read_text()
    runs.run("train_stage1.py", command, log)
    assert runs.files_of(output / "model") == runs.files_of(whole / "model")
    assert runs.losses(output) == runs.losses(whole)


def until_it_stands(output: Path) -> None:
    """Wait until no more rows come."""
    rows = -1
    while rows != (rows := len(runs.losses(output))):
        time.sleep(3)
    assert rows < STEPS, "the workers were to be stopped before the end"


@pytest.mark.slow
@pytest.mark.parametrize(
    "stalled",
    [
        pytest.param(0, marks=pytest.mark.soak, id="the main process stalls"),
        pytest.param(1, marks=pytest.mark.soak, id="the other process stalls"),
    ],
)
def test_a_stalled_process_does_not_keep_the_others(
    stalled: int, arguments: list[str], tmp_path: Path
) -> None:
    """One waits for its data for ever; the other, which waits for it, is told to stop."""
    output, log = tmp_path / "run", tmp_path / "log"
    command = [*arguments, f"output_dir={output}", "train.num_workers=1"]
    ranks = runs.start_ranks("train_stage1.py", [command], log, 2)
    wait_for_rows(output, 2, ranks[0], log)
    for worker in workers_of(ranks[stalled]):
        worker.send_signal(signal.SIGSTOP)
    until_it_stands(output)
    os.kill(ranks[1 - stalled].pid or 0, signal.SIGTERM)
    for rank in ranks:
        rank.join(1800)
    assert [rank.exitcode for rank in ranks] == [75, 75], log.read_text()
    ends_with_a_checkpoint(output, log)


@pytest.mark.slow
def test_a_surviving_process_ends_with_a_sentence(arguments: list[str], tmp_path: Path) -> None:
    output, log = tmp_path / "run", tmp_path / "log"
    survivor, killed = runs.start_ranks(
        "train_stage1.py", [[*arguments, f"output_dir={output}"]], log, 2
    )
    wait_for_rows(output, 2, survivor, log)
    killed.kill()
    survivor.join(1800)
    assert survivor.exitcode == 2, log.read_text()
    assert "Traceback" not in log.read_text()
    assert "another process of this run has ended" in log.read_text()


def unreadable(photo: Path) -> None:
    photo.write_bytes(photo.read_bytes()[:1000])


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", some_now([0, 2], 1))
@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (unreadable, "cut off|damaged"),
        pytest.param(Path.unlink, "no such file", marks=pytest.mark.soak),
    ],
)
def test_a_photo_that_goes_bad_ends_with_its_name_and_a_checkpoint(
    harm: Callable[[Path], object],
    reason: str,
    num_workers: int,
    arguments: list[str],
    photos_dir: Path,
    tmp_path: Path,
) -> None:
    """More photos than are kept in memory, so that every one is read again and again."""
    from PIL import Image

    for number in range(300):
        photo = Image.open(sorted(photos_dir.iterdir())[number % 4]).resize((32, 32))
        (tmp_path / "photos").mkdir(exist_ok=True)
        photo.save(tmp_path / "photos" / f"{number:03d}.png")
    output, log = tmp_path / "run", tmp_path / "log"
    root = f"data.root={tmp_path}/photos"
    command = [
        *arguments,
        root,
        "data.degradations=[noise]",
        "train.max_steps=10000",
        f"output_dir={output}",
    ]
    process = runs.start("train_stage1.py", [*command, f"train.num_workers={num_workers}"], log)
    wait_for_rows(output, 2, process, log)
    for photo in sorted((tmp_path / "photos").iterdir())[::2]:
        harm(photo)
    process.join(1800)
    text = log.read_text()
    assert process.exitcode == 2, text
    assert "Traceback" not in text
    (sentence,) = [line for line in text.splitlines() if line.startswith("train_stage1.py: ")]
    assert re.search(rf"photos/\d+\.png: .*({reason})", sentence), sentence
    (checkpoint,) = list_checkpoints(output / "checkpoints")
    assert f"goes on from {checkpoint.name.replace('_', ' ')}" in sentence
    assert checkpoint.name == f"step_{len(runs.losses(output))}"


@pytest.mark.soak
def test_a_killed_data_worker_ends_with_a_sentence_and_a_checkpoint(
    arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "run", tmp_path / "log"
    command = [*arguments, f"output_dir={output}", "train.num_workers=2"]
    process = runs.start("train_stage1.py", command, log)
    wait_for_rows(output, 2, process, log)
    workers_of(process)[0].kill()
    process.join(1800)
    assert process.exitcode == 2, log.read_text()
    ends_with_a_checkpoint(output, log)
    assert "a data worker ended unexpectedly" in log.read_text()
    runs.run("train_stage1.py", command, log)
    assert runs.files_of(output / "model") == runs.files_of(whole / "model")


@pytest.mark.slow
def test_data_that_fail_on_one_process_stop_both(arguments: list[str], tmp_path: Path) -> None:
    output, log = tmp_path / "run", tmp_path / "log"
    command = [*arguments, f"output_dir={output}", "train.num_workers=1"]
    ranks = runs.start_ranks("train_stage1.py", [command], log, 2)
    wait_for_rows(output, 2, ranks[0], log)
    workers_of(ranks[1])[0].kill()
    for rank in ranks:
        rank.join(1800)
    assert [rank.exitcode for rank in ranks] == [75, 2], log.read_text()
    ends_with_a_checkpoint(output, log)


STUCK = """
import os, signal, threading, time
from accelerate import Accelerator
from diffrestorer.training import stopping

stopping.GRACE = stopping.SAVE_SECONDS = 0.5
with stopping.StopSignal() as stop:
    stop.connect(Accelerator(cpu=True), "run", lambda: print("saved", flush=True))
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with stop.changing():  # a sheet that all processes draw, one of which is gone
        time.sleep(1800)
"""


def test_a_run_that_is_stuck_in_what_it_shows_ends_without_saving(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(runs.ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", STUCK],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert ended.returncode == EXIT_UNFINISHED, ended.stderr
    assert "saved" not in ended.stdout
