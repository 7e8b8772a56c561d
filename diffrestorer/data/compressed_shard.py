"""A shard of losslessly compressed pairs: a header, a table of places and checksums, and a frame per pair.

It stands for a `.npy` shard of the same pairs. A row is read by seeking, so memory does not grow with the shard.

Tar streams (webdataset) are no choice for either kind. A stream is read from its start and shuffled in a buffer, so the
pair of (step, position) would depend on the workers, their number and what they read before. Training needs it to
depend on the seed alone: then one order holds for any number of processes, and a run that resumes at a step goes on
with exactly the pairs that an uninterrupted run would see.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol, runtime_checkable

import imagecodecs
import numpy as np

from diffrestorer.data.pair_codecs import CODECS, Pixels

SUFFIX = ".pairs"
"""Suffix of compressed shards."""

_MAGIC = b"DRPAIRS1"
_HEADER = struct.Struct("<8s8s5I")  # magic, codec, shape


@runtime_checkable
class ByteSource(Protocol):
    """Bytes that can be read from any place: a local file or a remote object."""

    size: int

    def read(self, start: int, length: int) -> bytes:
        """Return bytes; fewer than `length` where the source ends."""


class FileBytes:
    """The bytes of an open local file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def read(self, start: int, length: int) -> bytes:
        """Return bytes; fewer than `length` where the file ends."""
        return os.pread(self._file.fileno(), length, start)


class CompressedShard:
    """The pairs of a compressed shard, decoded one at a time: `shard[row]` is uint8 (2, 3, size, size).

    Args:
        source: of its bytes.
        name: for messages.

    Attributes:
        dtype, shape: of all pairs together, uint8 (pairs, 2, 3, size, size).

    Raises:
        ValueError: it is damaged or no shard; a row that is read is damaged or was never made.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, source: ByteSource, name: str) -> None:
        self._source = source
        self._name = name

        # The header, which tells how long the table is.
        head = source.read(0, _HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            raise ValueError(f"{name} is no shard of pairs")
        _, codec, *shape = _HEADER.unpack(head)
        rows = shape[0]
        length = _table_bytes(rows)
        self.shape: tuple[int, ...] = tuple(shape)

        # The table with its own checksum, so that no frame is looked for in the wrong place.
        fits = _HEADER.size + length + 4 <= source.size
        packed = source.read(_HEADER.size, length + 4) if fits else b""
        body, checksum = packed[:length], packed[length:]
        if len(packed) < length + 4 or checksum != _checksum(head + body):
            raise ValueError(f"{name} is damaged at its start")
        entry = np.frombuffer(body, _table_type(rows))[0]
        self._places, self._checksums = entry["places"], entry["checksums"]
        self._codec = CODECS.get(codec.rstrip(b"\0").decode("ascii", "replace"))
        if self._codec is None:
            raise ValueError(f"{name} is compressed by {codec!r}, which this version does not know")
        if source.size != self._places[rows]:
            raise ValueError(f"{name} has {source.size:,} bytes instead of {self._places[rows]:,}")

    def __getitem__(self, row: int) -> Pixels:
        """Read and decode a pair."""
        if not 0 <= row < self.shape[0]:
            raise ValueError(f"{self._name} has no pair {row}, only {self.shape[0]}")
        start, end = int(self._places[row]), int(self._places[row + 1])
        if start == end:
            raise ValueError(f"{self._name} has no pair {row}: its photo could not be read")

        # Frames carry no checksum of their own that every codec compares.
        frame = self._source.read(start, end - start)
        assert self._codec is not None
        if imagecodecs.deflate_crc32(frame) != self._checksums[row]:
            raise ValueError(
                f"{self._name}#{row} is damaged: its bytes are not those that were written"
            )
        try:
            return self._codec.decode(frame, self.shape[1:])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self._name}#{row} cannot be decoded ({error})") from None


class ShardWriter:
    """Writes the pairs of a compressed shard, in the order of their rows; rows that are left out stay empty."""

    def __init__(self, file: BinaryIO, codec: str, shape: tuple[int, ...]) -> None:
        self._file = file
        self._head = _HEADER.pack(_MAGIC, codec.encode(), *shape)
        self._codec = CODECS[codec]
        self._entry = np.zeros((), _table_type(shape[0]))
        self._next = 0
        self._end = _HEADER.size + self._entry.itemsize + 4
        file.seek(self._end)

    def write(self, row: int, pixels: Pixels) -> None:
        """Append the pair of a row, uint8 (2, 3, size, size)."""
        assert row >= self._next, "rows are written in order"
        frame = self._codec.encode(pixels)
        self._file.write(frame)
        self._entry["places"][self._next : row + 1] = self._end
        self._entry["checksums"][row] = imagecodecs.deflate_crc32(frame)
        self._next = row + 1
        self._end += len(frame)

    def finish(self) -> None:
        """Write the header and the table, whose place at the start was left free."""
        self._entry["places"][self._next :] = self._end
        body = self._head + self._entry.tobytes()
        self._file.seek(0)
        self._file.write(body + _checksum(body))


@contextmanager
def shard_writer(file: BinaryIO, codec: str, shape: tuple[int, ...]) -> Iterator[ShardWriter]:
    """Yield a writer of a compressed shard's pairs; the shard is complete after the block."""
    writer = ShardWriter(file, codec, shape)
    yield writer
    writer.finish()


def _table_type(rows: int) -> np.dtype:
    """Return the type of a shard's table: the places of its frames and the end of the last, and their CRC-32."""
    return np.dtype([("places", "<u8", (rows + 1,)), ("checksums", "<u4", (rows,))])


def _table_bytes(rows: int) -> int:
    """Return the length of a shard's table, without making the type of a table that cannot be."""
    return 8 * (rows + 1) + 4 * rows


def _checksum(data: bytes) -> bytes:
    return int(imagecodecs.deflate_crc32(data)).to_bytes(4, "little")
