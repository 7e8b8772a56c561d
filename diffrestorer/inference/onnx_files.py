"""Writing an ONNX file, whole or not at all, with weights in a second file where they are large."""

import mmap
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from diffrestorer.data.ownership import own_folder
from diffrestorer.data.storage import open_regular

FILE_NAME = "restorer.onnx"
"""Name of the graph in the output folder."""

_WEIGHTS = re.compile(r"restorer-[0-9a-f]{16}\.onnx\.data")
"""Names that `_move` gives to weights."""


def save_whole(save: Callable[[Path], None], folder: Path) -> Path:
    """Write `restorer.onnx` so that it is the old export or the new one, whatever happens meanwhile.

    A graph names the file of its weights. Every export gives that file another name, `restorer-TOKEN.onnx.data`, so
    that no graph is ever beside another one's weights.

    Args:
        save: writes the graph to a path, and its weights to that path with `.data` behind it if they are to be apart.
        folder: is made if there is none.

    Returns:
        The graph's path.

    Raises:
        ValueError: another process exports into the folder.
        OSError: the folder can't be written.
    """
    with own_folder(folder, instead="choose another folder", remove=True):
        # A killed export may have left its files.
        partial = folder / f".{FILE_NAME}.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            return _move(save, folder, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _move(save: Callable[[Path], None], folder: Path, partial: Path) -> Path:
    """Write graph and weights to `partial`, and move them to `folder` when they are on the disk."""
    name = Path(FILE_NAME)
    graph = partial / f"{name.stem}-{secrets.token_hex(8)}{name.suffix}"
    weights = graph.with_name(f"{graph.name}.data")
    save(graph)
    for file in partial.iterdir():
        _flush(file)

    # The weights first: the graph that needs them is the one that replaces the old export.
    if weights.exists():
        os.replace(weights, folder / weights.name)
    os.replace(graph, folder / FILE_NAME)

    # Weights of earlier exports, unless a graph names them: people keep an export under another name.
    files = sorted(folder.iterdir())
    graphs = [file for file in files if name.suffix in file.name and file.suffix != ".data"]
    for old in files:
        if _WEIGHTS.fullmatch(old.name) and not any(_names(graph, old.name) for graph in graphs):
            old.unlink()
    return folder / FILE_NAME


def _names(graph: Path, weights: str) -> bool:
    """Return whether a graph's bytes hold the name of a weights file; one that can't be read might."""
    try:
        with open_regular(graph) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(weights.encode()) >= 0
    except (ValueError, IsADirectoryError):  # an empty file, or none
        return False
    except OSError:
        return True


def _flush(file: Path) -> None:
    """Have a file's content on the disk."""
    with file.open("rb") as written:
        os.fsync(written.fileno())
