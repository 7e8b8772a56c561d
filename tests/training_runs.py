"""Real training runs for the tests: the scripts themselves, in processes of their own that can be killed.

A fork server imports the libraries once (they take many seconds); every run is a fork of it, a process like any other.
"""

import csv
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("mini_base", "baseline", "decoder_stage", "stage1", "student")
LIBRARIES = [f"diffrestorer.training.{stage}" for stage in STAGES]

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([*LIBRARIES, "warm_runs"])


def _run_script(
    script: str,
    commands: Sequence[Sequence[str]],
    log: str,
    file_limit: int | None,
    environment: Mapping[str, str],
) -> None:
    os.environ.update(environment)
    multiprocessing.set_start_method(
        None, force=True
    )  # a script's own: what the fork server left would be inherited
    if file_limit is not None:  # a full disk, as a process without privileges can have one
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    path = (ROOT / "scripts" / script).resolve()
    if path.parent.name == "benchmarks":
        sys.path.insert(0, str(path.parent))  # a benchmark imports the modules beside it
    for arguments in commands:
        sys.argv = [script, *arguments]
        runpy.run_path(str(path), run_name="__main__")


def start(
    script: str,
    arguments: Sequence[str],
    log: Path,
    file_limit: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Starts `python scripts/SCRIPT ARGUMENTS` in a process of its own; its output goes to `log`.

    `script`: below scripts/, or `../benchmarks/NAME.py`.

    `file_limit`: no file it writes can grow beyond so many bytes. `environment`: variables beside the test's own.
    """
    process = context.Process(
        target=_run_script, args=(script, [list(arguments)], str(log), file_limit, environment or {})
    )
    process.start()
    return process


def start_ranks(
    script: str, commands: Sequence[Sequence[str]], log: Path, num_processes: int
) -> list[BaseProcess]:
    """Starts a script with one command after the other on several gloo processes, set up as torchrun sets them up.

    Forks start in a second; the launcher's processes, in `run_with_torchrun`, import the libraries anew.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(num_processes):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = context.Process(target=_run_script, args=(script, commands, str(log), None, own))
        process.start()
        processes.append(process)
    return processes


def run_ranks(script: str, commands: Sequence[Sequence[str]], log: Path, num_processes: int) -> None:
    """The same, to the end."""
    for process in start_ranks(script, commands, log, num_processes):
        finish(process, log)


def finish(process: BaseProcess, log: Path, timeout: float = 1800) -> None:
    """Waits for a run that must succeed."""
    process.join(timeout)
    assert process.exitcode == 0, f"exit status {process.exitcode}:\n{log.read_text()}"


def run(script: str, arguments: Sequence[str], log: Path) -> None:
    """Runs a script to its end."""
    finish(start(script, arguments, log), log)


def run_with_torchrun(script: str, arguments: Sequence[str], num_processes: int) -> None:
    """Runs a script the way users do on several devices: the real launcher, one gloo rank a process."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={num_processes}",
    ]
    done = subprocess.run(
        [*launcher, str(ROOT / "scripts" / script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def kill_when(
    process: BaseProcess, path: Path, condition: Callable[[Path], bool], timeout: float = 1800
) -> None:
    """SIGKILL as soon as `condition(path)` holds; the run must not have ended before."""
    signal_when(process, path, condition, signal.SIGKILL, timeout)
    assert process.exitcode == -signal.SIGKILL


def signal_when(
    process: BaseProcess,
    path: Path,
    condition: Callable[[Path], bool],
    sent: signal.Signals,
    timeout: float = 1800,
    workers: bool = False,
) -> None:
    """Sends a signal as soon as `condition(path)` holds, and waits for the end.

    `workers`: to its data workers before, as a scheduler may that signals every process of a job.
    """
    deadline = time.monotonic() + timeout
    while not condition(path):
        assert process.is_alive(), f"the run ended before it could be killed ({process.exitcode})"
        assert time.monotonic() < deadline, f"nothing to kill at {path}"
        time.sleep(0.001)
    for worker in psutil.Process(process.pid).children() if workers else []:
        worker.send_signal(sent)
    os.kill(process.pid or 0, sent)
    process.join(timeout)


def losses(output_dir: Path) -> list[dict[str, float]]:
    """The rows of a run's losses.csv."""
    lines = (output_dir / "losses.csv").read_text().splitlines()  # at once: the run may be writing
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
