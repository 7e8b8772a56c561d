"""One owner per folder: a lock that the system drops when its process ends, however it ends."""

import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from diffrestorer.data.storage import NO_SPACE

REQUEUED = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
"""Variables that count how often a scheduler has started a job again."""

REQUEUE_WAIT = 120.0
"""Seconds that a job which was started again waits for the process before it to end."""

POLL_SECONDS = 0.5
_REOPENED = 20  # times that a file is opened whose name others have removed; numbers of files may change by themselves
LOG = logging.getLogger("diffrestorer.training")


class FolderInUseError(ValueError):
    """Another process holds a folder."""


@contextmanager
def own_folder(
    folder: Path,
    wait: float | None = None,
    instead: str = "choose another output_dir",
    shared: bool = False,
    remove: bool = False,
) -> Iterator[None]:
    """Hold a folder for this process while the context lasts.

    The lock is POSIX's record lock on `folder/owner.json`. Forked data workers do not inherit it, and the system drops
    it with the process. The file says who holds it.

    Args:
        folder: is made if there is none.
        wait: seconds to wait for another owner; None: not at all, or `REQUEUE_WAIT` in a requeued job.
        instead: advice to whoever cannot wait.
        shared: hold it together with others that share it.
        remove: remove `owner.json` at the end, as the last that holds it.

    Raises:
        FolderInUseError: another process holds the folder; the message names it.
    """
    path = folder / "owner.json"

    # The process before a requeued job may still be writing its last checkpoint.
    if wait is None:
        requeued = any(os.environ.get(name, "0") != "0" for name in REQUEUED)
        wait = REQUEUE_WAIT if requeued else 0.0

    deadline = time.monotonic() + wait
    waits = False
    while (file := _acquire(path, shared)) is None:
        if not waits and wait:
            LOG.info("waiting for %s, in use by %s", folder, _read_owner(path))
            waits = True
        if time.monotonic() >= deadline:
            raise FolderInUseError(
                f"{folder} is in use by {_read_owner(path)}: wait for its end, or {instead}"
            )
        time.sleep(POLL_SECONDS)

    # Removed while it is locked, so that nobody who comes later is without a file that others see.
    with file:
        try:
            _write_owner(file, shared)
            yield
        finally:
            if remove and (not shared or _lock(file, shared=False)):
                with suppress(OSError):
                    path.unlink()


def _acquire(path: Path, shared: bool) -> BinaryIO | None:
    """Open the owner's file, made if there is none, and lock it; None: another process has it."""
    for further in reversed(range(_REOPENED)):
        # Opened without emptying it: it tells of the owner until the lock is ours.
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+b")
        except FileNotFoundError:  # its folder was removed in between
            if not further:
                raise
            continue

        # An owner that has just ended may have removed the file: nobody else would see a lock on it.
        try:
            locked = _lock(file, shared)
            if locked and (_is_named(file, path) or not further):
                return file
        except BaseException:
            file.close()
            raise
        file.close()
        if not locked:
            return None
    raise AssertionError("the last attempt returns or raises")


def _lock(file: BinaryIO, shared: bool) -> bool:
    """Take the lock; false: another process has it. A file system without locks gives it to everyone."""
    try:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
    return True


def _is_named(file: BinaryIO, path: Path) -> bool:
    """Return whether an open file is the one that a path names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _write_owner(file: BinaryIO, shared: bool) -> None:
    """Write who holds the lock: a line, below those of the others that share it."""
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv),
    }
    if not shared:
        file.truncate(0)
    file.write(json.dumps(owner).encode() + b"\n")
    file.flush()


def _read_owner(path: Path) -> str:
    """Return who holds the lock, as far as its file says: the last to come that may hold it."""
    try:
        owners = [json.loads(line) for line in path.read_bytes().splitlines()]
        owner = [owner for owner in owners if _may_hold(owner)][-1]
        return f"process {owner['pid']} on {owner['host']} since {owner['since']} ({owner['command'][:200]})"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


def _may_hold(owner: dict[str, Any]) -> bool:
    """Return whether a line may tell of another process that holds the lock: only its own machine knows its end."""
    if owner["host"] != socket.gethostname():
        return True
    if owner["pid"] == os.getpid():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
