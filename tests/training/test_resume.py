"""A run killed at any moment and started again ends exactly like one that was never stopped."""

import contextlib
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import training_runs as runs

STEPS, EVERY = 12, 4


@pytest.fixture(scope="module")
def arguments(tiny_overrides: list[str], photos_dir: Path) -> list[str]:
    return [
        *tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=64", f"train.max_steps={STEPS}",
        "train.global_batch_size=2", "train.num_workers=0", "train.log_every=1", f"train.checkpoint_every={EVERY}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    runs.run("train_stage1.py", [*arguments, f"output_dir={output}"], output / "log")
    return output


def after(step: int) -> Callable[[Path], bool]:
    return lambda output: (output / "losses.csv").exists() and len(runs.losses(output)) > step


def inside_a_checkpoint(output: Path) -> bool:
    return any((output / "checkpoints").glob(".step_*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(after(1), marks=pytest.mark.soak, id="early"),
        pytest.param(after(9), marks=pytest.mark.soak, id="late"),
        pytest.param(inside_a_checkpoint, id="in a checkpoint"),
    ],
)
def test_a_killed_run_ends_like_one_that_was_not(
    moment: Callable[[Path], bool], arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = [*arguments, f"output_dir={output}"]
    runs.kill_when(runs.start("train_stage1.py", command, tmp_path / "log"), output, moment)
    assert not (output / "model").exists()
    runs.run("train_stage1.py", command, tmp_path / "log")

    assert runs.files_of(output / "model") == runs.files_of(uninterrupted / "model")
    assert runs.losses(output) == runs.losses(uninterrupted)


def num_rows(output: Path) -> int:
    path = output / "losses.csv"
    return len(path.read_text().splitlines()) if path.exists() else 0


def unfinished(output: Path) -> set[tuple[str, int]]:
    """Checkpoints that are being written, or were when an earlier kill came."""
    found = set()
    for path in (output / "checkpoints").glob(".step_*.partial"):
        with contextlib.suppress(FileNotFoundError):  # finished meanwhile
            found.add((path.name, path.stat().st_ino))
    return found


def kill_at_a_moment(processes: Sequence[BaseProcess], output: Path, moments: random.Random) -> str:
    """SIGKILL to every process: while libraries load, in a step, or as a checkpoint is written, as chance has it."""
    kind = moments.choice(["at once", "in a step", "in a step", "in a checkpoint"])
    rows, left_over = num_rows(output), unfinished(output)
    conditions = {
        "at once": lambda: True,
        "in a step": lambda: num_rows(output) > rows,
        "in a checkpoint": lambda: bool(unfinished(output) - left_over),
    }
    while not conditions[kind]() and all(process.is_alive() for process in processes):
        time.sleep(0.0005)
    if kind != "in a checkpoint":
        time.sleep(moments.uniform(0, 0.7))
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    return kind if any(process.exitcode == -signal.SIGKILL for process in processes) else "too late"


@pytest.mark.soak
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_again_and_again_ends_like_one_that_was_not(
    seed: int, num_processes: int, arguments: list[str], tmp_path: Path
) -> None:
    """Five kills a run, thirty in all; micro batches, so that they fall between the halves of a step too."""
    moments = random.Random(seed)
    options = [
        "train.max_steps=60",
        "train.global_batch_size=4",
        "train.micro_batch_size=1",
        f"seed={seed}",
    ]
    whole = [*arguments, *options, f"output_dir={tmp_path}/whole"]
    killed = [*arguments, *options, f"output_dir={tmp_path}/killed"]

    def start(command: list[str]) -> list[BaseProcess]:
        return runs.start_ranks("train_stage1.py", [command], tmp_path / "log", num_processes)

    for process in start(whole):
        runs.finish(process, tmp_path / "log")
    done = [kill_at_a_moment(start(killed), tmp_path / "killed", moments) for _ in range(5)]
    for process in start(killed):
        runs.finish(process, tmp_path / "log")

    assert "too late" not in done
    recorded = json.loads((tmp_path / "killed" / "environment.json").read_text())
    assert recorded["num_processes"] == num_processes
    assert runs.files_of(tmp_path / "killed" / "model") == runs.files_of(
        tmp_path / "whole" / "model"
    ), done
    assert runs.losses(tmp_path / "killed") == runs.losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(
    arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(uninterrupted, output)
    shutil.rmtree(output / "model")
    weights = output / "checkpoints" / f"step_{STEPS}" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    runs.run("train_stage1.py", [*arguments, f"output_dir={output}"], tmp_path / "log")

    assert "step_12 is damaged" in (tmp_path / "log").read_text()
    assert runs.files_of(output / "model") == runs.files_of(uninterrupted / "model")


@pytest.mark.slow
def test_another_configuration_is_refused(
    arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    process = runs.start(
        "train_stage1.py", [*arguments, f"output_dir={uninterrupted}", "train.lr=0.5"], tmp_path / "log"
    )
    process.join(1800)
    assert process.exitcode not in (0, None)
    assert "train.lr: 1e-05 -> 0.5" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_two_processes_equal_one(arguments: list[str], uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    five_steps = [a.replace(f"train.max_steps={STEPS}", "train.max_steps=5") for a in arguments]
    runs.run_ranks("train_stage1.py", [[*five_steps, f"output_dir={output}"]], tmp_path / "log", 2)

    assert json.loads((output / "environment.json").read_text())["num_processes"] == 2
    for two, one in zip(runs.losses(output), runs.losses(uninterrupted), strict=False):
        assert two == pytest.approx(one, rel=1e-5)
    assert len(runs.losses(output)) == 5


@pytest.mark.slow
def test_a_stop_is_agreed_on_and_another_number_of_processes_goes_on(
    arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    """Two processes, of which one is told to stop, then one to the end: the losses of one all the way."""
    output, log = tmp_path / "run", tmp_path / "log"
    command = [*arguments, f"output_dir={output}", "train.checkpoint_every=1000"]
    told, other = runs.start_ranks("train_stage1.py", [command], log, 2)[::-1]
    runs.signal_when(told, output, after(1), signal.SIGTERM)
    other.join(1800)
    assert (told.exitcode, other.exitcode) == (75, 75), log.read_text()
    steps = len(runs.losses(output))
    assert (output / "checkpoints" / f"step_{steps}").is_dir()
    runs.run("train_stage1.py", command, log)

    assert steps < STEPS
    assert len(runs.losses(output)) == STEPS
    for mixed, one in zip(runs.losses(output), runs.losses(uninterrupted), strict=True):
        assert mixed == pytest.approx(one, rel=1e-5)


@pytest.mark.soak
def test_one_two_and_four_processes_have_the_same_losses(arguments: list[str], tmp_path: Path) -> None:
    found = {}
    for num_processes in (1, 2, 4):
        output = tmp_path / str(num_processes)
        options = ["train.max_steps=20", "train.global_batch_size=8", "train.micro_batch_size=2"]
        command = [*arguments, *options, f"output_dir={output}"]
        runs.run_ranks("train_stage1.py", [command], tmp_path / "log", num_processes)
        assert json.loads((output / "environment.json").read_text())["num_processes"] == num_processes
        found[num_processes] = runs.losses(output)
    assert len(found[1]) == 20
    for num_processes in (2, 4):
        for several, one in zip(found[num_processes], found[1], strict=True):
            assert several == pytest.approx(one, rel=1e-5), num_processes
