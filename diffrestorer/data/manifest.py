"""The folder of prepared pairs: shards of uint8 pixels that are mapped into memory, and one Parquet manifest.

A shard `pairs/SET/SPLIT/DEGRADATION/00000.npy` is an array (pairs, 2, size, size, 3): degraded, clean; without ground
truth there is one instead of 2. `00000.json` beside it holds its rows. The address of an image is `SHARD.npy#row/side`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from diffrestorer.data.archives import whole_file

MANIFEST = "manifest.parquet"
SCHEMA = pa.schema(
    [
        ("lq", pa.string()),
        ("gt", pa.string()),
        ("degradation", pa.string()),
        ("split", pa.string()),
        ("set", pa.string()),
        ("seed", pa.int64()),
        ("augmentation", pa.string()),
        ("sha256", pa.string()),
    ]
)
"""`sha256` is of the pair's pixels as stored, degraded then clean; `augmentation` says what both went through."""


def address(shard: str, row: int, side: int) -> str:
    """`pairs/gopro/train/blur/00000.npy#5/0`."""
    return f"{shard}#{row}/{side}"


def split_address(text: str) -> tuple[str, int]:
    """Shard and row of an address.

    Raises:
        ValueError: it is none.
    """
    shard, mark, place = text.rpartition("#")
    row = place.partition("/")[0]
    if not mark or not row.isdigit():
        raise ValueError(f"{text!r} is not the address of a prepared image (SHARD.npy#row/side)")
    return shard, int(row)


def row_hash(pixels: np.ndarray) -> str:
    """SHA-256 of a stored pair (1 or 2, size, size, 3)."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def write_manifest(folder: Path) -> int:
    """Gathers the rows of all shards below `folder` into its manifest, in the order of their paths.

    Returns:
        The number of rows.
    """
    files = sorted(folder.glob("pairs/*/*/*/*.json"))
    rows: list[dict[str, Any]] = [row for file in files if file.stem != "plan" for row in json.loads(file.read_text())]
    with whole_file(folder / MANIFEST) as file:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), file)
    return len(rows)


def read_batches(folder: Path, columns: list[str]) -> Iterator[dict[str, list[Any]]]:
    """The manifest's rows a few thousand at a time, a list a column.

    Raises:
        ValueError: there is no manifest, or it is damaged or lacks a column.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} holds no {MANIFEST}: make it with scripts/prepare_data.py out={folder}")
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in SCHEMA.names if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
            for batch in file.iter_batches(8192, columns=columns):
                yield batch.to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({str(error).splitlines()[0]}); prepare the folder again") from None


def verify(folder: Path, advance: Callable[[int], None] = lambda rows: None) -> Table:
    """Compares every stored pair with its checksum.

    Args:
        advance: told the number of rows that were just verified.

    Returns:
        The number of pairs by set, split and degradation.

    Raises:
        ValueError: pairs differ from the manifest, are missing, or files are unreadable; how many and the first ones.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    wrong: list[str] = []
    shard, pixels = "", np.empty(0)
    for batch in read_batches(folder, ["lq", "degradation", "split", "set", "sha256"]):
        for lq, *group, digest in zip(
            batch["lq"], batch["set"], batch["split"], batch["degradation"], batch["sha256"], strict=True
        ):
            counts[group[0], group[1], group[2]] += 1
            name, row = split_address(lq)
            if name != shard:
                shard, pixels = name, _open(folder / name)
            if row >= len(pixels) or row_hash(pixels[row]) != digest:
                wrong.append(lq)
        advance(len(batch["lq"]))
    if not counts:
        raise ValueError(f"{folder / MANIFEST} names no pair")
    if wrong:
        raise ValueError(
            f"{len(wrong):,} of {counts.total():,} pairs in {folder} are damaged or missing: {', '.join(wrong[:5])}; "
            "remove those shards (.npy and .json) and run the same preparation again"
        )
    table = Table("set", "split", "degradation", "pairs")
    for group, count in sorted(counts.items()):
        table.add_row(*group, f"{count:,}")
    return table


def _open(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError):
        return np.empty(0)
