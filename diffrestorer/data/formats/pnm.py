"""PGM and PPM, binary and plain, up to 16 bits.

Pillow reads 16-bit colour as 8-bit, and 16-bit grey as 32-bit.
"""

from typing import BinaryIO

import numpy as np

from diffrestorer.data.formats.photo import ImageError, Photo, check_size

MAGICS = (b"P2", b"P3", b"P5", b"P6")
_NO_HEADER = "it is not an image of a supported format, or its beginning is damaged"
_LONGEST_HEADER = 1 << 16  # bytes; comments may stand in it
_MOST_PLAIN_PIXELS = 1 << 24  # digits take a hundred times the memory of the pixels
_PLAIN_BYTES = 16  # per sample of a plain file: five digits and generous white space


def read_pnm(file: BinaryIO, max_pixels: int) -> Photo:
    """Decode a PGM or PPM file. Source: the pgm(5) and ppm(5) manual pages of Netpbm.

    Raises:
        ImageError: the header is damaged, or the file is too large, cut off or damaged.
    """
    header = file.read(_LONGEST_HEADER)
    magic, (width, height, largest), start = _parse_header(header)
    check_size(width, height, max_pixels)
    if magic in (b"P2", b"P3"):
        check_size(width, height, min(max_pixels, _MOST_PLAIN_PIXELS))
    if not 0 < largest < 65536:
        raise ImageError(f"it claims a largest value of {largest}, which is not from 1 to 65535")
    channels = 3 if magic in (b"P3", b"P6") else 1
    count = width * height * channels

    # Samples of two bytes are big-endian.
    file.seek(start)
    if magic in (b"P5", b"P6"):
        dtype = np.dtype("u1" if largest < 256 else ">u2")
        data = file.read(count * dtype.itemsize)
        samples = np.frombuffer(data, dtype, len(data) // dtype.itemsize)
    else:
        samples = _parse_plain(file.read(count * _PLAIN_BYTES), count)
    if samples.size < count:
        raise ImageError("the file is cut off")
    if samples.max() > largest:
        raise ImageError("the image data is damaged")

    # Any other largest value than the type's own is scaled to it.
    kind = np.uint8 if largest < 256 else np.uint16
    full = np.iinfo(kind).max
    if largest != full:
        samples = (samples.astype(np.uint32) * full + largest // 2) // largest
    pixels = samples.astype(kind).reshape(height, width, channels)
    return Photo(np.ascontiguousarray(np.broadcast_to(pixels, (height, width, 3))))


def _parse_header(header: bytes) -> tuple[bytes, list[int], int]:
    """Return the magic number, the three numbers (width, height, largest value), and where the samples begin."""
    place, numbers = 2, list[int]()
    while len(numbers) < 3:
        # White space, then perhaps comments, up to the next number.
        if not header[place : place + 1].isspace():
            raise ImageError(_NO_HEADER)
        while header[place : place + 1].isspace() or header[place : place + 1] == b"#":
            if header[place : place + 1] == b"#":
                end_of_line = header.find(b"\n", place)
                place = len(header) if end_of_line < 0 else end_of_line
            place += 1
        end = place
        while header[end : end + 1].isdigit() and end < place + 10:
            end += 1
        if end == place:
            raise ImageError(_NO_HEADER)
        numbers.append(int(header[place:end]))
        place = end

    # Exactly one byte of white space stands between the header and the samples.
    if not header[place : place + 1].isspace():
        raise ImageError(_NO_HEADER)
    return header[:2], numbers, place + 1


def _parse_plain(text: bytes, count: int) -> np.ndarray:
    """Return the samples of a plain file."""
    words = text.split(maxsplit=count)[:count]
    if not all(word.isdigit() and len(word) < 6 for word in words):
        raise ImageError("the image data is damaged")
    return np.array(words, dtype=np.bytes_).astype(np.uint32) if words else np.zeros(0, np.uint32)
