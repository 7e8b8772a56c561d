"""How long visitors' photos and results are kept, by the times of their files."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

KEEP_SECONDS = 3600
"""Time for which visitors' uploads and results are kept after their last use."""


def sweep(folder: Path) -> int:
    """Remove files and empty folders older than `KEEP_SECONDS` below a folder; return the bytes of the files that stay.

    Gradio's `delete_cache` removes only files that a component has received or shown. The single results of a job of
    several photos, and results of visitors who left meanwhile, are known to nobody else. Age is the time since a file
    was written or renewed, so that a file being written stays. Any thread may sweep at any time.

    Args:
        folder: where uploads and results lie, at any depth; it stays itself.
    """
    oldest = time.time() - KEEP_SECONDS
    total = 0
    for parent, _, names in os.walk(folder, topdown=False):
        # The folder's time comes first: removing a file in it sets it to now.
        is_old = _is_older(parent, oldest)
        for name in names:
            total += _remaining_bytes(os.path.join(parent, name), oldest)
        if is_old and Path(parent) != folder:
            with suppress(OSError):  # it is not empty, or another thread removed it
                os.rmdir(parent)
    return total


def renew(files: Iterable[str]) -> None:
    """Count the age of files from now on. A job renews its photos and results, since it may take more than an hour."""
    for file in files:
        with suppress(OSError):  # a sweep was faster
            os.utime(file)


def _is_older(path: str, oldest: float) -> bool:
    """Return whether something was last changed before a time, in seconds since the epoch."""
    try:
        return os.lstat(path).st_mtime < oldest
    except OSError:  # removed meanwhile
        return False


def _remaining_bytes(file: str, oldest: float) -> int:
    """Remove a file that was last changed before a time; return its size if it stays, else 0."""
    try:
        status = os.lstat(file)
        if status.st_mtime >= oldest:
            return status.st_size
        os.unlink(file)
    except OSError:  # removed meanwhile
        pass
    return 0
