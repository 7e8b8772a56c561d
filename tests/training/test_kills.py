"""SIGKILL aimed at the moments in which a run writes its files: the same command goes on, bit for bit."""

import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import training_runs as runs
from tiny_runs import copy_run, train_stage1

from diffrestorer.training.kept_files import write_sealed

WRITES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate")
"""Audit events of Python that change a folder; `open` where it is for writing."""


@pytest.fixture(scope="module")
def changed(unfinished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unfinished run as if it had begun under other free keys, so that its next start rewrites files."""
    output = copy_run(unfinished, tmp_path_factory.mktemp("changed") / "run")
    for name in ("config.yaml", "environment.json"):
        text = (output / name).read_text()
        (output / name).write_text(
            text.replace("log_every: 1", "log_every: 3").replace("cpu", "another device")
        )
    (output / "data_files.json").unlink()
    write_sealed(output / "data.json", {"fingerprint": "", "contents": ""})
    shutil.copy(output / "checkpoints" / "step_6" / "data.json", output / "data.json")
    return output


def _train_with_hook(command: list[str], output: str, kill_at: int | None, log: str) -> None:
    """Train in a process of its own: note the moments at which it changes its folder, or die right after one."""
    moments: list[str] = []
    dying = False

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal dying
        if dying:  # the event before has happened by now, and nothing of what follows it
            dying = False  # the kill is an event, too
            os.kill(os.getpid(), signal.SIGKILL)
        if (
            event not in WRITES
            or not values
            or output not in str(values[0])
            or "train.log" in str(values[0])
        ):
            return
        if event == "open" and (values[1] is None or not set(values[1]) & set("wax+")):
            return
        # A file appears under its name by a rename.
        target = f" {values[1]}" if event == "os.rename" else ""
        moments.append(f"{event} {values[0]}{target}")
        dying = len(moments) - 1 == kill_at

    sys.addaudithook(hook)
    train_stage1(command, Path(output))
    Path(log).write_text("\n".join(moments))


def run_until(command: list[str], output: Path, kill_at: int | None, log: Path) -> int:
    process = runs.context.Process(
        target=_train_with_hook, args=(command, str(output), kill_at, str(log))
    )
    process.start()
    process.join(1800)
    assert process.exitcode is not None
    return process.exitcode


def killed_at(
    moments: list[str], arguments: list[str], changed: Path, finished: Path, folder: Path
) -> None:
    log = folder / "moments"
    for moment in moments:
        output = copy_run(changed, folder / "run")
        number = int(moment.split(" ", 1)[0])
        assert run_until(arguments, output, number, log) == -signal.SIGKILL, moment
        train_stage1(arguments, output)
        assert runs.files_of(output / "model") == runs.files_of(finished / "model"), moment
        assert (output / "losses.csv").read_bytes() == (finished / "losses.csv").read_bytes(), moment
        assert not list(output.rglob(".*.tmp")), moment


@pytest.fixture(scope="module")
def moments(arguments: list[str], changed: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every moment of a resumed run at which it changes its folder, numbered."""
    folder = tmp_path_factory.mktemp("moments")
    output = copy_run(changed, folder / "run")
    assert run_until(arguments, output, None, folder / "log") == 0, "it was to end"
    found = (folder / "log").read_text().splitlines()
    assert all(
        any(name in line for line in found)
        for name in ("config.yaml", "losses.csv", "state.json", "model")
    )
    return [f"{number} {line}" for number, line in enumerate(found)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "losses.csv",
        *(pytest.param(n, marks=pytest.mark.soak) for n in ("config.yaml", "data_files.json")),
    ],
)
def test_a_kill_at_a_rewrite_loses_nothing(
    name: str,
    moments: list[str],
    arguments: list[str],
    changed: Path,
    finished: Path,
    tmp_path: Path,
) -> None:
    aimed = [moment for moment in moments if name in moment]
    killed_at([random.Random(name).choice(aimed)], arguments, changed, finished, tmp_path)


@pytest.mark.soak
def test_twenty_kills_at_rewrites_lose_nothing(
    moments: list[str], arguments: list[str], changed: Path, finished: Path, tmp_path: Path
) -> None:
    chosen = random.Random(0).sample(moments, 20)
    killed_at(chosen, arguments, changed, finished, tmp_path)
