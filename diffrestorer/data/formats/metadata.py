"""EXIF, XMP and orientation. Damaged metadata never costs the picture: it is left out."""

import io
import re
import struct

import numpy as np
from PIL import Image

from diffrestorer.data.formats.directories import (
    EXIF_IFD,
    ORDERS,
    Directory,
    read_directory,
    write_directory,
)
from diffrestorer.data.formats.photo import Photo

EXIF_PREFIX = b"Exif\x00\x00"
"""Bytes that precede the EXIF block in JPEG and WebP files."""

_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0xA002, 0xA003
_SHORT = 3

DESCRIPTIVE: tuple[int, ...] = (
    *(0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298),
    *range(0x9C9B, 0x9CA0),
)
"""Tags of a TIFF's own directory that describe the photo: description, make, model, software, date, artist, copyright;
then Windows' title, comment, author, keywords and subject."""


def find_orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the orientation (1-8) that the EXIF block states, else the XMP packet; 1 if neither does."""
    found: object = None
    if exif is not None:
        try:
            parsed = Image.Exif()
            parsed.load(exif)
            found = parsed.get(_ORIENTATION)
        except Exception:  # whatever is wrong in the EXIF block, the pixels are fine
            found = None
    if found is None and xmp is not None:
        stated = re.search(rb"""tiff:Orientation(?:\s*=\s*["']|>\s*)(\d)""", xmp)
        found = int(stated[1]) if stated else None
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def upright_photo(
    pixels: np.ndarray,
    alpha: np.ndarray | None,
    icc_profile: bytes | None,
    exif: bytes | None,
    xmp: bytes | str | None,
    orientation: int | None = None,
) -> Photo:
    """Return what a file holds as a photo turned upright, with metadata that agree.

    Args:
        pixels: RGB (h, w, 3) as stored.
        alpha: opacity (h, w) as stored, or None.
        icc_profile: the RGB profile of the pixels, or None.
        exif: the EXIF block, with or without its prefix, or None.
        xmp: the XMP packet, or None.
        orientation: from 1 to 8; None finds it in the EXIF block or the XMP packet.
    """
    packet = xmp.encode() if isinstance(xmp, str) else xmp
    block = None if exif is None else exif.removeprefix(EXIF_PREFIX)
    if orientation is None:
        orientation = find_orientation(block, packet)
    pixels = turn_upright(pixels, orientation)
    alpha = None if alpha is None else turn_upright(alpha, orientation)
    block = upright_exif(block, width=pixels.shape[1], height=pixels.shape[0])
    return Photo(pixels, alpha, icc_profile, block, upright_xmp(packet))


def turn_upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return an array (h, w, ...) as the EXIF orientation says it is to be seen."""
    if orientation in (5, 6, 7, 8):
        array = np.swapaxes(array, 0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def upright_exif(block: bytes | None, width: int, height: int) -> bytes | None:
    """Return the EXIF block of a photo that has been turned upright.

    Three things change, in place, so that a camera's private notes keep their offsets: the orientation becomes 1, the
    size becomes that of the upright photo, and the thumbnail, which shows the degraded photo, is unlinked.

    Returns:
        The block, or None if it is damaged.
    """
    if block is None:
        return None
    data = bytearray(block)
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(bytes(data[:4]))
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        exif = _patch(data, order, first, {_ORIENTATION: 1})
        _unlink_next(data, order, first)
        if exif is not None:
            _patch(data, order, exif, {_WIDTH: width, _HEIGHT: height})
    except struct.error:
        return None
    return bytes(data)


def _patch(data: bytearray, order: str, start: int, values: dict[int, int]) -> int | None:
    """Overwrite integer tags of the directory at `start`; return the offset of its EXIF directory if it has one."""
    exif = None
    # A directory: the number of its entries, then tag, type, count and value (or its offset) of each.
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHII", data, place)
        if tag == EXIF_IFD:
            exif = value
        if tag in values:
            code = "HH" if kind == _SHORT and values[tag] < 65536 else "I"
            numbers = (values[tag], 0)[: len(code)]
            struct.pack_into(
                f"{order}HI{code}", data, place + 2, _SHORT if code == "HH" else 4, 1, *numbers
            )
    return exif


def _unlink_next(data: bytearray, order: str, start: int) -> None:
    """Cut the chain of directories after the one at `start`."""
    (count,) = struct.unpack_from(f"{order}H", data, start)
    struct.pack_into(f"{order}I", data, start + 2 + 12 * count, 0)


def upright_xmp(packet: bytes | None) -> bytes | None:
    """Return the XMP packet of a photo that has been turned upright; None if there is none."""
    if not packet:
        return None
    packet = re.sub(rb"""(tiff:Orientation\s*=\s*["'])\d+""", rb"\g<1>1", packet)
    return re.sub(rb"(<tiff:Orientation>\s*)\d+", rb"\g<1>1", packet)


def describing_directory(exif: bytes) -> Directory:
    """Return the entries of an EXIF block that describe the photo and not its pixels; none of a damaged one."""
    order = ORDERS.get(exif[:2])
    if order is None or len(exif) < 8:
        return Directory("<")
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    return read_directory(io.BytesIO(exif), order, start, DESCRIPTIVE)


def describing_exif(directory: Directory) -> bytes | None:
    """Return an EXIF block of the descriptive entries of a TIFF's directory; None if it has none."""
    entries = {tag: entry for tag, entry in directory.entries.items() if tag in DESCRIPTIVE}
    described = Directory(directory.order, entries, directory.nested)
    if not entries and not directory.nested:
        return None
    header = {"<": b"II*\x00", ">": b"MM\x00*"}[directory.order]
    start = 8
    return header + struct.pack(f"{directory.order}I", start) + write_directory(described, start)
