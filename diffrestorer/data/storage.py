"""Writing files: each output appears under its name whole, or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

RESERVE_BYTES = 1 << 28
"""Disk that is left free: a quarter of a GiB."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where nothing more can be written: a full disk, a quota, a file's limit."""


def free_bytes(folder: Path) -> int:
    """What may be written below an existing folder."""
    return max(shutil.disk_usage(folder).free - RESERVE_BYTES, 0)


@contextmanager
def whole_file(path: Path) -> Iterator[BufferedWriter]:
    """A file that appears under its name when it is complete and on the disk, or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, and its folder, so that it appears whole or not at all, even if the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file so that it appears whole or not at all."""
    write_bytes(path, text.encode())
