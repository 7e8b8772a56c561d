"""Unpacking downloads safely: images only, never outside the folder, no links, whole or not at all."""

import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from diffrestorer.data.images import IMAGE_SUFFIXES

ARCHIVE_SUFFIXES: tuple[str, ...] = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Suffixes, in lower case, of the archives that are looked into."""

_RESERVE_BYTES = 1 << 28  # disk that stays free


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks the images of a .zip or .tar below `folder`, in a subfolder named after the archive.

    Links are refused, as are names that lead out of the folder. A folder that is already there is complete and reused.

    Returns:
        The subfolder.

    Raises:
        ValueError: the archive is damaged or cut off, holds a link or an unsafe name, or does not fit on the disk.
    """
    target = folder / f"{archive.name}.{zlib.crc32(str(archive.resolve()).encode()):08x}"
    if target.exists():
        return target
    partial = folder / f".{target.name}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, size, content in _members(archive):
            _write(archive, partial, name, size, content)
        os.replace(partial, target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged or cut off ({error}); download it again") from None
    except RuntimeError as error:  # zipfile: a password, an unknown compression
        raise ValueError(f"{archive} cannot be unpacked ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of every image; every other member is only checked."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                link = (member.external_attr >> 16) & 0o170000 == 0o120000
                name = _safe_name(archive, member.filename.replace("\\", "/"), link)
                if not member.is_dir() and _is_wanted(name):
                    with packed.open(member) as content:
                        yield name, member.file_size, content
        return
    with tarfile.open(archive) as unpacked:
        for entry in unpacked:
            special = not (entry.isfile() or entry.isdir())
            name = _safe_name(archive, entry.name, special)
            content = unpacked.extractfile(entry) if entry.isfile() and _is_wanted(name) else None
            if content is not None:
                yield name, entry.size, content


def _safe_name(archive: Path, name: str, link: bool) -> str:
    path = PurePosixPath(name)
    if link:
        raise ValueError(f"{archive} holds a link or special file ({name!r}), which is refused")
    if path.is_absolute() or ".." in path.parts or "\0" in name or (len(name) > 1 and name[1] == ":"):
        raise ValueError(f"{archive} holds {name!r}, a name that leads out of its folder, which is refused")
    return path.as_posix()


def _is_wanted(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _write(archive: Path, folder: Path, name: str, size: int, content: IO[bytes]) -> None:
    free = shutil.disk_usage(folder).free - _RESERVE_BYTES
    if size > free:
        raise ValueError(f"{archive} does not fit on the disk: {name} needs {size:,} bytes, {max(free, 0):,} are left")
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as output:
        left = size
        while left and (block := content.read(min(left, 1 << 20))):
            output.write(block)
            left -= len(block)
    if left or content.read(1):
        raise ValueError(f"{archive} is damaged or cut off: {name} has another size than stated; download it again")


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
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
