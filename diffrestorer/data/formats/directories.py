"""Directories of a TIFF file or an EXIF block: entries are copied byte by byte, whatever text or notes they hold.

Source: Adobe, TIFF Revision 6.0, section 2, and its extension to 64 bits (BigTIFF).
"""

import struct
from collections.abc import Collection
from dataclasses import dataclass, field
from io import BytesIO
from typing import BinaryIO

EXIF_IFD, GPS_IFD, _INTEROPERABILITY_IFD = 0x8769, 0x8825, 0xA005
XMP = 700
"""Tag of the XMP packet in a TIFF's directory."""

ORDERS = {b"II": "<", b"MM": ">"}
"""Byte order, as `struct` names it, by the first two bytes of a TIFF file or an EXIF block."""

BYTE, SHORT, LONG, UNDEFINED = 1, 3, 4, 7
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_OFFSETS = {4: "I", 13: "I", 16: "Q", 18: "Q"}  # LONG, IFD, LONG8, IFD8
_NESTED = {EXIF_IFD: (_INTEROPERABILITY_IFD,), GPS_IFD: (), _INTEROPERABILITY_IFD: ()}
_MOST_BYTES = (
    1 << 26
)  # of all values that are read; values may overlap, so a small file could claim any number
_MOST_ENTRIES = 65_535


@dataclass(frozen=True)
class Entry:
    """A tag's value.

    Attributes:
        kind: its type, by TIFF's number.
        count: number of values of that type.
        data: the values, in the byte order of their directory.
    """

    kind: int
    count: int
    data: bytes


@dataclass
class Directory:
    """The entries of a directory and the directories that it refers to, by tag.

    Attributes:
        order: `<` or `>`, the byte order of every value.
    """

    order: str
    entries: dict[int, Entry] = field(default_factory=dict)
    nested: dict[int, "Directory"] = field(default_factory=dict)

    def set(self, tag: int, kind: int, *values: int) -> None:
        """Set a tag to SHORT or LONG numbers."""
        code = {SHORT: "H", LONG: "I"}[kind]
        data = struct.pack(f"{self.order}{len(values)}{code}", *values)
        self.entries[tag] = Entry(kind, len(values), data)


def read_directory(
    file: BinaryIO | BytesIO, order: str, start: int, wanted: Collection[int], big: bool = False
) -> Directory:
    """Read a directory and its EXIF, GPS and interoperability directories. Damaged entries are left out.

    Args:
        file: a TIFF file or an EXIF block.
        order: byte order, `<` or `>`.
        start: offset of the directory in the file.
        wanted: tags that are read of it; of nested directories all are.
        big: whether offsets have 64 bits.
    """
    return _Reader(file, order, big).read(start, wanted, (EXIF_IFD, GPS_IFD))


class _Reader:
    """Reads directories, and no more bytes than a photo's metadata have.

    Args:
        file, order, big: as `read_directory` takes them.
    """

    def __init__(self, file: BinaryIO | BytesIO, order: str, big: bool) -> None:
        self.file = file
        self.order = order
        self.left = _MOST_BYTES
        self.count_code, self.entry_code = ("Q", "HHQ8s") if big else ("H", "HHI4s")

    def read(self, start: int, wanted: Collection[int] | None, nested: Collection[int]) -> Directory:
        """Read a directory; `wanted` None for all entries, `nested` its directories' tags."""
        directory = Directory(self.order)
        for tag, kind, count, place in self._entries(start):
            # A nested directory is named by its offset.
            if tag in _NESTED:
                if tag in nested and kind in _OFFSETS and count == 1:
                    (offset,) = struct.unpack_from(self.order + _OFFSETS[kind], place)
                    directory.nested[tag] = self.read(offset, None, _NESTED[tag])
                continue

            # A damaged entry does not cost the others.
            if wanted is None or tag in wanted:
                data = self._value(kind, count, place)
                if data is not None:
                    directory.entries[tag] = Entry(kind, count, data)
        return directory

    def _entries(self, start: int) -> list[tuple[int, int, int, bytes]]:
        """Return tag, type, count and the field of value or offset of each entry that is there."""
        layout = struct.Struct(self.order + self.entry_code)
        counted = struct.Struct(self.order + self.count_code)
        head = self._bytes(start, counted.size)
        if head is None:
            return []
        (number,) = counted.unpack(head)
        data = self.file.read(min(number, _MOST_ENTRIES) * layout.size)
        whole = len(data) // layout.size
        return list(layout.iter_unpack(data[: whole * layout.size]))

    def _value(self, kind: int, count: int, place: bytes) -> bytes | None:
        """Return the bytes of a value, which stand in the entry if they fit; None if it is damaged."""
        size = _BYTES.get(kind, 0) * count
        if size == 0:
            return None
        if size <= len(place):
            return place[:size]
        (offset,) = struct.unpack(f"{self.order}{'I' if len(place) == 4 else 'Q'}", place)
        return self._bytes(offset, size)

    def _bytes(self, start: int, size: int) -> bytes | None:
        """Return bytes of the file; None if they are not there, or too many have been read."""
        if size > self.left or start >= 1 << 63:
            return None
        self.file.seek(start)
        data = self.file.read(size)
        self.left -= len(data)
        return data if len(data) == size else None


def write_directory(directory: Directory, start: int) -> bytes:
    """Return a directory of 32-bit offsets to stand at `start` in its file, with values and nested directories behind.

    Raises:
        struct.error: an offset has more than 32 bits.
    """
    order = directory.order
    tags = sorted({*directory.entries, *directory.nested})
    head = bytearray(struct.pack(f"{order}H", len(tags)))
    behind = bytearray()
    values_at = start + len(head) + 12 * len(tags) + 4

    # Entries stand in the order of their tags, every value at an even offset.
    for tag in tags:
        place = values_at + len(behind)
        nested = directory.nested.get(tag)
        if nested is not None:
            head += struct.pack(f"{order}HHII", tag, LONG, 1, place)
            behind += write_directory(nested, place)
            continue
        entry = directory.entries[tag]
        head += struct.pack(f"{order}HHI", tag, entry.kind, entry.count)
        if len(entry.data) <= 4:
            head += entry.data.ljust(4, b"\x00")
        else:
            head += struct.pack(f"{order}I", place)
            behind += entry.data + bytes(len(entry.data) % 2)

    # No directory follows.
    return bytes(head + bytes(4) + behind)
