"""One owner per folder: a lock that the system drops when its process ends, however it ends."""

import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from diffrestorer.data.storage import NO_SPACE

REQUEUED = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
"""Variables that count how often a scheduler has started a job again."""

REQUEUE_WAIT = 120.0
"""Seconds that a job which was started again waits for the process before it to end."""

POLL_SECONDS = 0.5
LOG = logging.getLogger("diffrestorer.training")


@contextmanager
def own_folder(
    folder: Path, wait: float | None = None, instead: str = "choose another output_dir"
) -> Iterator[None]:
    """Hold a folder for this process while the context lasts.

    The lock is POSIX's record lock on `folder/owner.json`. Forked data workers do not inherit it, and the system drops
    it with the process. The file says who holds it.

    Args:
        folder: is made if there is none.
        wait: seconds to wait for another owner; None: not at all, or `REQUEUE_WAIT` in a requeued job.
        instead: advice to whoever cannot wait.

    Raises:
        ValueError: another process holds the folder; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)

    # The process before a requeued job may still be writing its last checkpoint.
    if wait is None:
        requeued = any(os.environ.get(name, "0") != "0" for name in REQUEUED)
        wait = REQUEUE_WAIT if requeued else 0.0

    # Opened without emptying it: it tells of the owner until the lock is ours.
    with (folder / "owner.json").open("a+b") as file:
        deadline = time.monotonic() + wait
        waits = False
        while not _lock(file):
            if not waits and wait:
                LOG.info("waiting for %s, in use by %s", folder, _read_owner(file))
                waits = True
            if time.monotonic() >= deadline:
                raise ValueError(
                    f"{folder} is in use by {_read_owner(file)}: wait for its end, or {instead}"
                )
            time.sleep(POLL_SECONDS)
        _write_owner(file)
        yield


def _lock(file: BinaryIO) -> bool:
    """Take the lock; false: another process has it. A file system without locks gives it to everyone."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
    return True


def _write_owner(file: BinaryIO) -> None:
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv),
    }
    file.truncate(0)
    file.write(json.dumps(owner).encode() + b"\n")
    file.flush()


def _read_owner(file: BinaryIO) -> str:
    """Return who holds the lock, as far as its file says."""
    file.seek(0)
    try:
        owner = json.loads(file.read())
        return f"process {owner['pid']} on {owner['host']} since {owner['since']} ({owner['command'][:200]})"
    except (ValueError, KeyError, TypeError):
        return "another process"
