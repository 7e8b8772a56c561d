"""The small files of a run: written whole and only when they change, sealed by a checksum, copied into checkpoints."""

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffrestorer.data.storage import write_bytes

KEPT = ("config.yaml", "data.json", "losses.csv", "validation.csv", "tracker.json")
"""Files of `output_dir` of which every checkpoint holds a copy, so that a damaged one can be rebuilt."""


class DamagedFileError(ValueError):
    """A file whose content is not what was written; the message names it."""


def write_changed(path: Path, data: bytes) -> None:
    """Write a file whole, unless it already holds `data`. A folder of its name makes room."""
    with suppress(OSError):
        if path.read_bytes() == data:
            return
    if path.is_dir() and not path.is_symlink():
        remove(path)
    write_bytes(path, data)


def remove(path: Path) -> None:
    """Remove a file, or a folder that lies where a file belongs."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def seal(content: Any) -> str:
    """Return JSON text that holds `content` and its checksum."""
    return json.dumps({"content": content, "sha256": _digest(content)}, indent=1) + "\n"


def write_sealed(path: Path, content: Any) -> None:
    """Write JSON content with its checksum, whole, unless the file already holds it."""
    write_changed(path, seal(content).encode())


def read_sealed(path: Path) -> Any:
    """Read what `write_sealed` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it cannot be read, or its content does not match its checksum.
    """
    try:
        return unseal(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged ({error})") from None


def unseal(data: bytes) -> Any:
    """Return the content of sealed JSON.

    Raises:
        ValueError: it is no JSON, holds something else, or does not match its checksum.
    """
    try:
        sealed = json.loads(data.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(sealed, dict) or set(sealed) != {"content", "sha256"}:
        raise ValueError("it has no content with a checksum")
    if _digest(sealed["content"]) != sealed["sha256"]:
        raise ValueError("it does not match its checksum")
    return sealed["content"]


def read_kept(output_dir: Path) -> dict[str, bytes]:
    """Return the files that checkpoints hold copies of, by name, as they are now."""
    found = {}
    for name in KEPT:
        with suppress(OSError):
            found[name] = (output_dir / name).read_bytes()
    return found


def remove_leftovers(output_dir: Path) -> None:
    """Remove what a killed run was about to write: temporary files, unfinished and retired folders."""
    for pattern in (".*.tmp", "*/.*.tmp", ".config.yaml.*"):
        for path in output_dir.glob(pattern):
            remove(path)
    for pattern in (".*.partial", ".*.old", "checkpoints/.*.partial", "checkpoints/.*.old"):
        for folder in output_dir.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def _digest(content: Any) -> str:
    """Return the SHA-256 of JSON content, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
