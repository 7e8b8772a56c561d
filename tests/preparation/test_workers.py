"""Workers that are killed: one sentence, and the same command goes on."""

import functools
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from miniatures import make, photos, tree

from diffrestorer.config.schema import PrepareConfig
from diffrestorer.preparation.prepare import prepare
from diffrestorer.preparation.workers import run_all

ENDED = r"one of 2 processes ended unexpectedly, .* give num_workers=1, and the same command goes on"


def test_results_come_in_order_and_a_task_s_own_error_is_raised() -> None:
    tasks = [(functools.partial(operator.neg, number), 1) for number in range(20)]
    done: list[int] = []
    assert run_all(tasks, 2, done.append) == [-number for number in range(20)]
    assert sum(done) == 20
    with pytest.raises(ZeroDivisionError):
        run_all([*tasks, (functools.partial(operator.truediv, 1, 0), 1)], 2, done.append)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_task_whose_process_is_killed(sent: signal.Signals) -> None:
    """By the kernel for want of memory, by a scheduler, by a library's fault."""
    tasks = [(functools.partial(operator.neg, number), 1) for number in range(20)]
    tasks[7] = (functools.partial(signal.raise_signal, sent), 1)
    with pytest.raises(ValueError, match=ENDED) as error:
        run_all(tasks, 2, lambda items: None)
    assert error.value.__suppress_context__


def find_processes() -> tuple[psutil.Process, psutil.Process] | None:
    """The process that forks workers and one of them, if there are two."""
    for server in psutil.Process().children():
        workers = server.children()
        if "forkserver" in " ".join(server.cmdline()) and len(workers) == 2:
            return server, workers[0]
    return None


def kill_below(killed: list[int], out: Path, whose: str) -> None:
    """Kills a process below this one as soon as a shard is being written: a worker, or the one that forks them."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        found = find_processes()
        if found is not None and list(out.glob("pairs/*/*/*/.*.tmp")):
            process = found[whose == "worker"]
            process.kill()
            killed.append(process.pid)
            return


@pytest.mark.soak
@pytest.mark.parametrize("whose", ["worker", "server"])
def test_a_preparation_whose_worker_is_killed_goes_on(whose: str, tmp_path: Path) -> None:
    root, out, killed = photos(tmp_path / "photos", *range(1, 17)), tmp_path / "out", []
    killer = threading.Thread(target=kill_below, args=(killed, out, whose))
    killer.start()
    config = PrepareConfig("photos", str(root), str(out), size=256, num_workers=2)
    with pytest.raises(ValueError, match=ENDED):
        prepare(config)
    killer.join()
    assert killed
    prepare(config)
    make("photos", root, tmp_path / "one", size=256, budget=None)
    assert tree(out) == tree(tmp_path / "one")


@pytest.mark.soak
@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_ctrl_c_is_one_sentence(num_workers: int, seconds: float, tmp_path: Path) -> None:
    """It goes to every process of the terminal; while the workers' libraries are imported, and later."""
    # Twenty-four photos are done in two seconds.
    root, out = photos(tmp_path / "photos", *range(1, 97)), tmp_path / "out"
    words = [sys.executable, "-m", "diffrestorer", "prepare", "set=photos", f"root={root}"]
    words += [f"out={out}", "size=256", f"num_workers={num_workers}"]
    # A suite that runs in the background of a shell ignores Ctrl-C, and what it starts would, too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    with process:
        while not list(out.glob("pairs/*/*/*/plan.json")):
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=600)
    assert process.returncode == 130, said
    assert "stopped; nothing is lost: the same command goes on" in said

    # A worker that was just starting may still complain of its parent's end.
    assert "KeyboardInterrupt" not in said
    assert not (out / "owner.json").exists()
    make("photos", root, out, size=256, budget=None)
    make("photos", root, tmp_path / "one", size=256, budget=None)
    assert tree(out) == tree(tmp_path / "one")
