"""Run a command and measure what it takes of its machine: seconds, memory of all its processes, disk, silence."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL = 1.0
"""Seconds between samples."""


@dataclass
class Watched:
    """What a command did and took.

    Attributes:
        status: exit status; -N: ended by signal N.
        seconds: from start to end.
        first_output, longest_silence: seconds until it first wrote a line, and the longest time without one.
        memory: peak bytes of all its processes together, shared pages counted once (Linux; elsewhere: resident sets).
        largest_process: peak resident bytes of its largest process, with the file pages it mapped.
        gpu_memory: peak bytes in use on all NVIDIA cards, also by others; None without nvidia-smi.
        disk: peak bytes below the folder that is watched.
    """

    status: int = 0
    seconds: float = 0.0
    first_output: float = 0.0
    longest_silence: float = 0.0
    memory: int = 0
    largest_process: int = 0
    gpu_memory: int | None = None
    disk: int = 0


def watch(
    command: Sequence[str],
    log: Path,
    folder: Path,
    cwd: Path,
    kill_when: Callable[[], bool] = lambda: False,
) -> Watched:
    """Run a command to its end, or kill it and its children by SIGKILL as soon as `kill_when()` holds.

    Args:
        log: receives its output, both streams.
        folder: whose size counts as disk taken.
    """
    found = Watched()
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        spoke, length = started, 0
        while process.poll() is None:
            # Memory and disk first: the longer a process lives, the more it has.
            _sample(process.pid, folder, found)

            # Silence: the log does not grow.
            now, size = time.monotonic(), log.stat().st_size
            found.longest_silence = max(found.longest_silence, now - spoke)
            if size > length:
                found.first_output = found.first_output or now - started
                spoke, length = now, size

            if kill_when():
                os.killpg(process.pid, signal.SIGKILL)
            else:
                time.sleep(INTERVAL)
    finally:  # nothing of it outlives an interrupted watch
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        found.status = process.wait()
    found.seconds = time.monotonic() - started
    found.disk = max(found.disk, size_of(folder))
    return found


def _sample(pid: int, folder: Path, found: Watched) -> None:
    """Raise the peaks by what is taken now."""
    found.disk = max(found.disk, size_of(folder))
    memory, largest = memory_of_tree(pid)
    found.memory = max(found.memory, memory)
    found.largest_process = max(found.largest_process, largest)
    if (card := gpu_memory()) is not None:
        found.gpu_memory = max(found.gpu_memory or 0, card)


def memory_of_tree(pid: int) -> tuple[int, int]:
    """Return the bytes of a process and its descendants together, and the largest resident set among them."""
    together, largest = 0, 0
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                memory = process.memory_full_info()
                # A forked data worker shares nearly all of its parent: proportional sizes count that once.
                together += getattr(memory, "pss", memory.rss)
                largest = max(largest, memory.rss)
    return together, largest


def gpu_memory() -> int | None:
    """Return the bytes in use on all NVIDIA cards; None where there is no nvidia-smi or it fails."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    used = [int(line) for line in answer.stdout.split() if line.isdigit()]
    return sum(used) * 2**20 if answer.returncode == 0 and used else None


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; 0 where there is none."""
    files = (
        [path]
        if path.is_file()
        else [Path(parent, name) for parent, _, names in os.walk(path) for name in names]
    )
    total = 0
    for file in files:
        with suppress(FileNotFoundError):  # gone meanwhile: a checkpoint that was renamed, say
            total += file.stat().st_size
    return total
