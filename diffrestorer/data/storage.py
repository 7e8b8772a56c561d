"""Files: each output appears under its name whole or not at all, and inputs are regular files that cannot hang."""

import errno
import hashlib
import os
import secrets
import shutil
import stat
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path

RESERVE_BYTES = 1 << 28
"""Disk that is left free: a quarter of a GiB."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a system that can write no more: a full disk, a quota, a limit on the size of files."""

LONGEST_NAME = 255
"""Bytes that a file's name may have on the usual file systems."""


def free_bytes(folder: Path) -> int:
    """Return how many bytes may be written below an existing folder."""
    return max(shutil.disk_usage(folder).free - RESERVE_BYTES, 0)


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file to read its bytes. A pipe or a device is refused at once: reading it could wait forever.

    Raises:
        IsADirectoryError: it is a folder.
        OSError: it cannot be opened, or is no regular file.
    """
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - the caller closes it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for anybody at the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def find_special_file(path: Path) -> Path | None:
    """Return `path`, or the first thing below it, that is a pipe, a device or a socket; None if there is none."""
    found = [path]
    if path.is_dir():
        found += [Path(parent, name) for parent, _, names in os.walk(path) for name in names]
    return next((file for file in found if is_special(file)), None)


def is_special(path: Path) -> bool:
    """Return whether `path` is a pipe, a device or a socket, which may make a reader wait forever."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def fit_name(name: str, suffix: str = "") -> str:
    """Return `name` with `suffix`, shortened in the middle where the file system would refuse it.

    Different names stay different: the checksum of the whole name takes the place of what is cut.
    """
    room = LONGEST_NAME - len(os.fsencode(suffix))
    encoded = os.fsencode(name)
    if len(encoded) <= room:
        return name + suffix
    mark = f"~{zlib.crc32(encoded):08x}"
    kept = encoded[: room - len(mark)].decode(errors="ignore")
    return kept + mark + suffix


@contextmanager
def whole_file(path: Path) -> Iterator[BufferedWriter]:
    """Yield a file to write that appears under its name when it is complete and on the disk, or not at all."""
    partial = path.with_name(f".{_mark(path)}-{secrets.token_hex(8)}.tmp")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_unfinished(files: Iterable[Path]) -> None:
    """Remove what interrupted runs left of files before they had their names.

    Nobody may be writing these files, nor others that differ from them in the suffix only; everything else is safe.
    """
    marks: dict[Path, set[str]] = defaultdict(set)
    for file in files:
        marks[file.parent].add(_mark(file))

    # Each folder is listed once, however many files it holds.
    for folder, own in marks.items():
        for leftover in folder.glob(".*-*.tmp"):
            if leftover.name[1:].partition("-")[0] in own:
                leftover.unlink(missing_ok=True)


def _mark(path: Path) -> str:
    """Return the beginning of the names that a file has while it is written: a hash, since its own may be too long."""
    return hashlib.blake2b(os.fsencode(path.stem), digest_size=8).hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, and its folder, so that it appears whole or not at all, even if the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file so that it appears whole or not at all."""
    write_bytes(path, text.encode())
