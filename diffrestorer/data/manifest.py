"""The folder of prepared pairs: one Parquet manifest, training pixels to be mapped into memory, test images as PNG.

- `pairs/SET/train/CLASS/00000.npy` is a uint8 array (pairs, 2, 3, size, size): degraded, clean. The address of an image
  in it is `SHARD.npy#pair/side`.
- `pairs/SET/test/CLASS/lq/NAME.png` and `gt/NAME.png` are test images, so that any program can restore them. They are
  not compressed: all have one size, mode, encoding and length in bytes, which tell nothing of the class.
- `pairs/SET/train/CLASS/00000.pairs` holds the same pairs compressed (compressed_shard.py), at the same addresses.
- `00000.json` beside them records what a shard holds; the manifest gathers those.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from diffrestorer.data.compressed_shard import SUFFIX, CompressedShard, FileBytes
from diffrestorer.data.images import ImageError, read_photo
from diffrestorer.data.remote import Location, RemoteArray, RemotePath, StorageError
from diffrestorer.data.storage import is_special, open_regular, whole_file

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
"""`lq`, `gt`: addresses relative to the folder, `gt` null without ground truth. `augmentation`: what both images went
through besides a plain resize; empty for nothing. `sha256`: of the pair's pixels as stored, degraded, then clean."""

_SHARDS = "pairs/*/*/*/*.json"


def address(shard: str, row: int, side: int) -> str:
    """Return the address of an image in a shard, such as `pairs/gopro/train/blur/00000.npy#5/0`."""
    return f"{shard}#{row}/{side}"


def split_address(text: str) -> tuple[str, int]:
    """Return the shard and the row of an address.

    Raises:
        ValueError: it is none.
    """
    shard, mark, place = text.rpartition("#")
    row = place.partition("/")[0]
    if not mark or not row.isdigit():
        raise ValueError(f"{text!r} is not the address of a training image (SHARD.npy#pair/side)")
    return shard, int(row)


def is_row(text: str) -> bool:
    """Return whether an address is a row of a shard, and no file of its own: files may have `#` in their names."""
    return not text.endswith(".png")


@runtime_checkable
class Shard(Protocol):
    """The pairs of a shard, raw or compressed, local or remote: shape (pairs, 2, 3, size, size)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return pairs, sides, channels, height and width."""

    def __getitem__(self, row: int, /) -> np.ndarray:
        """Return the pair of a row, uint8 (2, 3, size, size)."""


def open_shard(path: Location) -> Shard:
    """Open a shard. A local raw one is mapped into memory as an array; writing to it leaves the file alone.

    Raises:
        ValueError: it is missing, damaged or no shard. A row of a compressed or a remote one raises it when it is read.
    """
    try:
        pixels = _open_remote(path) if isinstance(path, RemotePath) else _open_local(path)
    except StorageError:
        raise
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
        advice = (
            "copy it there again" if isinstance(path, RemotePath) else "--check finds what is damaged"
        )
        raise ValueError(f"{path} cannot be read ({reason}); {advice}") from None
    if pixels.dtype != np.uint8 or len(pixels.shape) != 5 or tuple(pixels.shape[1:3]) != (2, 3):
        raise ValueError(f"{path} does not hold pairs: {pixels.dtype} {pixels.shape}")
    return pixels


def _open_local(path: Path) -> "np.ndarray | CompressedShard":
    if is_special(path):
        raise ValueError("it is not a regular file")
    if path.suffix == SUFFIX:
        return CompressedShard(FileBytes(open_regular(path)), str(path))
    return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))


def _open_remote(path: RemotePath) -> RemoteArray | CompressedShard:
    source = path.open_bytes()
    return (CompressedShard if path.name.endswith(SUFFIX) else RemoteArray)(source, str(path))


def pair_hash(*images: np.ndarray) -> str:
    """Return the SHA-256 of a stored pair: of the bytes of its images as they are laid out on disk."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class CleanImage:
    """A clean image's identity: size and SHA-256 of its file. `split` is `train` or a test split."""

    name: str
    split: str
    size: int
    sha256: str


def write_manifest(folder: Path) -> int:
    """Gather the records of all shards below `folder` into its manifest, in the order of their paths.

    Returns:
        The number of rows.
    """
    rows = [row for record in _records(folder) for row in record["rows"]]
    with whole_file(folder / MANIFEST) as file:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), file)
    return len(rows)


def clean_images(folder: Path) -> Iterator[CleanImage]:
    """Yield the clean images that the shards below `folder` were made from."""
    for record in _records(folder):
        yield from (CleanImage(*image) for image in record["clean"])


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of the shards below `folder`, in the order of their paths."""
    for file in sorted(folder.glob(_SHARDS)):
        if file.stem == "plan":
            continue
        with open_regular(file) as content:
            try:
                record = json.load(content)
            except ValueError:
                raise ValueError(
                    f"{file} is damaged: remove it, and the command that prepared it makes its shard again"
                ) from None
        yield record


def manifest_file(folder: Location) -> Path:
    """Return the manifest of a prepared folder; of a remote one, a local copy.

    Raises:
        ValueError: there is none, or it cannot be fetched.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {MANIFEST}: make it with `diffrestorer prepare out={folder}`"
            if isinstance(folder, Path)
            else f"{folder} holds no {MANIFEST}: copy a folder there that `diffrestorer prepare` made"
        )
    return path.download() if isinstance(path, RemotePath) else path


def read_batches(folder: Location, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """Yield the manifest's rows, a few thousand at a time, as a list per column.

    Raises:
        ValueError: there is no manifest, or it is damaged or lacks a column.
    """
    path = manifest_file(folder)
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in SCHEMA.names if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
            for batch in file.iter_batches(8192, columns=list(columns)):
                yield batch.to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); prepare the folder again"
        ) from None


@dataclass(frozen=True)
class StoredPair:
    """A test pair on disk: what every method is given and scored against.

    Attributes:
        set, split, degradation: where it belongs.
        name: of the image, unique within (set, split, degradation).
        lq, gt: PNG files of one size; `gt` is None without ground truth.
        sha256: of the pixels, see `SCHEMA`.
    """

    set: str
    split: str
    degradation: str
    name: str
    lq: Path
    gt: Path | None
    sha256: str

    def read(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Read the degraded and the clean image, uint8 (h, w, 3), and compare them with the checksum.

        Raises:
            ValueError: a file is missing or differs from what was prepared.
        """
        try:
            images = [read_photo(path).pixels for path in (self.lq, self.gt) if path is not None]
        except ImageError as error:
            raise ValueError(f"the pair of {self.lq} cannot be read: {error}") from None
        if pair_hash(*images) != self.sha256:
            raise ValueError(
                f"the pair of {self.lq} is not what was prepared; --check finds what is damaged"
            )
        return images[0], images[1] if self.gt else None


def list_test_pairs(folder: Path, split: str = "test") -> dict[tuple[str, str], list[StoredPair]]:
    """Return the test pairs of a prepared folder by (set, degradation), in the order of the manifest.

    Args:
        split: `test`, or another test split (Raindrop's `test_b`).

    Raises:
        ValueError: there is no manifest, it is damaged, or it has no such pair.
    """
    found: dict[tuple[str, str], list[StoredPair]] = defaultdict(list)
    for batch in read_batches(folder, SCHEMA.names):
        for lq, gt, degradation, row_split, name, sha256 in zip(
            *(batch[key] for key in ("lq", "gt", "degradation", "split", "set", "sha256")), strict=True
        ):
            if row_split == split:
                clean = None if gt is None else folder / gt
                pair = StoredPair(name, split, degradation, Path(lq).stem, folder / lq, clean, sha256)
                found[name, degradation].append(pair)
    if not found:
        raise ValueError(f"{folder / MANIFEST} has no pairs of split {split}")
    return dict(found)


def verify(folder: Path, advance: Callable[[int], None] = lambda rows: None) -> Table:
    """Compare every stored pair with its checksum.

    Args:
        advance: told the number of rows that were just verified.

    Returns:
        The number of pairs by set, split and degradation.

    Raises:
        ValueError: pairs differ from the manifest or are missing; how many and the first ones.
    """
    # Threads read and hash, a few shards stay open.
    counts: Counter[tuple[str, str, str]] = Counter()
    wrong: list[str] = []
    open_once = lru_cache(maxsize=8)(open_shard)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in read_batches(folder, SCHEMA.names):
            counts.update(zip(batch["set"], batch["split"], batch["degradation"], strict=True))
            rows = (batch["lq"], batch["gt"], batch["sha256"])
            agree = pool.map(partial(_agrees, folder, open_once), *rows)
            wrong += [lq for lq, right in zip(batch["lq"], agree, strict=True) if not right]
            advance(len(batch["lq"]))
    if not counts:
        raise ValueError(f"{folder / MANIFEST} names no pair")
    if wrong:
        raise ValueError(
            f"{len(wrong):,} of {counts.total():,} pairs in {folder} are damaged or missing: {', '.join(wrong[:5])}; "
            f"remove the folders they are in and run the same preparation again"
        )

    # Everything agrees: what there is.
    table = Table("set", "split", "degradation", "pairs")
    for group, count in sorted(counts.items()):
        table.add_row(*group, f"{count:,}")
    return table


def _agrees(
    folder: Path, open_once: Callable[[Path], Shard], lq: str, gt: str | None, sha256: str
) -> bool:
    """Return whether a pair is there and has its checksum."""
    try:
        if not is_row(lq):
            files = (folder / name for name in (lq, gt) if name is not None)
            return pair_hash(*(read_photo(file).pixels for file in files)) == sha256
        shard, row = split_address(lq)
        return pair_hash(open_once(folder / shard)[row]) == sha256
    except (ValueError, IndexError):
        return False
