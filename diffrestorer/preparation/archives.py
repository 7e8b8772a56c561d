"""Archives of downloads, unpacked safely, and the images found in folders and in them."""

import lzma
import math
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path, PurePosixPath

from diffrestorer.data.images import IMAGE_SUFFIXES
from diffrestorer.data.ownership import own_folder
from diffrestorer.data.storage import fit_name, free_bytes, is_special

ARCHIVE_SUFFIXES: tuple[str, ...] = (".tar.gz", ".tar.bz2", ".tar.xz", ".zip", ".tar", ".tgz")
"""Suffixes, in lower case, of the archives that are looked into; of two that fit a name the longer comes first."""


def list_files(root: Path, unpacked: Path) -> dict[str, Path]:
    """Return every image below `root` and in the archives there, by its POSIX path, which starts with root's name.

    Args:
        root: a folder or an archive.
        unpacked: where archives are unpacked, also those inside one another.

    Raises:
        ValueError: `root` is missing or can't be listed; an archive is damaged or unsafe.
    """
    if not root.exists():
        raise ValueError(
            f"root={root} does not exist; give the folder (or the archive) of the downloads"
        )
    if root.is_file():
        suffix = _archive_suffix(root.name)
        if suffix is None:
            raise ValueError(f"root={root} is neither a folder nor a .zip or .tar archive")
        name, folder = root.name.removesuffix(suffix), unpack(root, unpacked)
    else:
        name, folder = root.resolve().name, root
    return {f"{name}/{relative}": path for relative, path in _walk(folder, unpacked).items()}


def _walk(folder: Path, unpacked: Path) -> dict[str, Path]:
    """Return the images below `folder` by their path in it; an archive counts as a folder of its name."""

    def refuse(error: OSError) -> None:
        """Refuse a folder that cannot be listed."""
        raise ValueError(f"{error.filename} cannot be listed ({error.strerror})") from error

    # Sorted, so that every run finds the files in one order.
    files: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if _is_visible(name))
        for name in sorted(filter(_is_visible, names)):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if is_special(path):
                raise ValueError(f"{path} is not a regular file; remove it")
            if (suffix := _archive_suffix(name)) is not None:
                members = _walk(unpack(path, unpacked), unpacked)
                files |= {
                    f"{relative[: -len(suffix)]}/{member}": file for member, file in members.items()
                }
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                files[relative] = path
    return files


def _archive_suffix(name: str) -> str | None:
    """Return the suffix by which a file is an archive; None if it is none."""
    return next(
        (name[-len(suffix) :] for suffix in ARCHIVE_SUFFIXES if name.lower().endswith(suffix)), None
    )


def _is_visible(name: str) -> bool:
    """Return whether a name is neither hidden nor a leftover of macOS."""
    return not name.startswith((".", "__MACOSX"))


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the images of a .zip or .tar, and the archives in it, into a subfolder of `folder`.

    Links are refused, as are names that lead out of the folder. A subfolder that is already there is complete and used
    again; a changed archive gets another one.

    Returns:
        The subfolder.

    Raises:
        ValueError: the archive is damaged or cut off, holds a link or an unsafe name, or does not fit on the disk.
    """
    # The archive's place, size and time name its subfolder.
    status = archive.stat()
    identity = f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}"
    target = folder / fit_name(archive.name, f".{zlib.crc32(identity.encode()):08x}")
    if target.exists():
        return target

    # Members go to a hidden folder, and take the name together. Machines that share `folder` do so in turn.
    partial = folder / fit_name(f".{target.name}", ".tmp")
    try:
        with own_folder(partial, wait=math.inf):
            if not target.exists():
                os.replace(_fill(archive, partial), target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{archive} is damaged or cut off ({error}); download it again") from None
    except (RuntimeError, OSError) as error:  # zipfile: a password, an unknown compression; a full disk
        raise ValueError(f"{archive} cannot be unpacked ({error})") from None
    return target


def _fill(archive: Path, partial: Path) -> Path:
    """Write the images and inner archives of an archive to a subfolder, and return that. A failure leaves nothing."""
    content = partial / "content"
    shutil.rmtree(content, ignore_errors=True)
    content.mkdir()
    try:
        for name, size, member in _members(archive):
            _write(archive, content, name, size, member)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return content


def _members(archive: Path) -> Iterator[tuple[str, int, BufferedIOBase]]:
    """Yield name, size and content of every image and inner archive; every other member is only checked."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                link = (member.external_attr >> 16) & 0o170000 == 0o120000
                name = _safe_name(archive, member.filename.replace("\\", "/"), link)
                if not member.is_dir() and _is_wanted(name):
                    with packed.open(member) as content:
                        yield name, member.file_size, content  # type: ignore[misc] # typeshed says IO[bytes]
        return
    with tarfile.open(archive) as unpacked:
        for entry in unpacked:
            special = not (entry.isfile() or entry.isdir())
            name = _safe_name(archive, entry.name, special)
            file = unpacked.extractfile(entry) if entry.isfile() and _is_wanted(name) else None
            if file is not None:
                yield name, entry.size, file  # type: ignore[misc]


def _safe_name(archive: Path, name: str, link: bool) -> str:
    """Return the member's name as a POSIX path; refuse links and names that lead out of the folder."""
    path = PurePosixPath(name)
    if link:
        raise ValueError(f"{archive} holds a link or special file ({name!r}), which is refused")
    if path.is_absolute() or ".." in path.parts or "\0" in name or (len(name) > 1 and name[1] == ":"):
        raise ValueError(
            f"{archive} holds {name!r}, a name that leads out of its folder, which is refused"
        )
    return path.as_posix()


def _is_wanted(name: str) -> bool:
    """Return whether a member is a visible image or archive."""
    path = PurePosixPath(name)
    known = path.suffix.lower() in IMAGE_SUFFIXES or _archive_suffix(name) is not None
    return known and all(map(_is_visible, path.parts))


def _write(archive: Path, folder: Path, name: str, size: int, content: BufferedIOBase) -> None:
    """Write a member, no more of it than the `size` it states."""
    if size > (free := free_bytes(folder)):
        raise ValueError(
            f"{archive} does not fit on the disk: {name} needs {size:,} bytes, {free:,} are free"
        )

    # A member that states a small size and holds more (a bomb) is stopped there.
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as output:
        left = size
        while left and (block := content.read(min(left, 1 << 20))):
            output.write(block)
            left -= len(block)
    if left or content.read(1):
        raise ValueError(
            f"{archive} is damaged or cut off: {name} has another size than stated; download it again"
        )
