"""JPEG files without their last bytes: read if every pixel is there, refused if not."""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from diffrestorer.data.formats.photo import ImageError

_START_OF_SCAN, _END = 0xDA, b"\xff\xd9"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LARGEST = 1 << 29  # bytes; a larger file without an end is no photo
_CUT_OFF = "the file is cut off"


def read_without_end(file: BinaryIO) -> Image.Image:
    """Decode a JPEG that lacks its end marker, if no pixel depends on what is missing.

    A decoder invents the bits that a cut file lacks. So the file is continued in several ways: the pictures are the
    same if, and only if, none of those bits was needed. Whole scans of a progressive file that are missing change
    nothing there; its scan headers tell.

    Raises:
        ImageError: pixels are missing.
    """
    data = file.read(_LARGEST)
    if len(data) == _LARGEST:
        raise ImageError(_CUT_OFF)
    data = data.removesuffix(b"\xff")  # the first half of the end marker, or of a byte that is needed
    restarts = _check_scans(data)

    # A decoder that has lost its restart marker skips to the next one, so one continuation offers it.
    patterns = (b"\x00", b"\x55", b"\xaa", b"\xfe")
    continuations = [pattern * 4096 for pattern in patterns]
    continuations.append(bytes((0xFF, 0xD0 + restarts % 8)) + b"\x5a" * 4096)

    first: Image.Image | None = None
    for continuation in continuations:
        image = Image.open(io.BytesIO(data + continuation + _END), formats=("JPEG",))
        image.load()
        if first is None:
            first = image
        elif not np.array_equal(np.asarray(first), np.asarray(image)):
            raise ImageError(_CUT_OFF)
    assert first is not None
    return first


def _check_scans(data: bytes) -> int:
    """Refuse a file whose scans leave out bits of a coefficient; return the restart markers in the last scan.

    Source: ITU-T T.81, B.2.3 (scan headers) and G.1.1 (progressive scans).
    """
    components: set[int] = set()
    missing: dict[tuple[int, int], int] = {}
    restarts = 0
    for marker, body, entropy in _segments(data):
        # The frame names the components; each scan sends some bits of some coefficients of some components.
        if marker in _FRAMES:
            components = {body[6 + 3 * i] for i in range(body[5])}
            missing = {(component, place): 1 for component in components for place in range(64)}
        elif marker == _START_OF_SCAN:
            named = body[1 : 1 + 2 * body[0] : 2]
            first, last, bits = body[1 + 2 * body[0] :][:3]
            for component in named:
                for place in range(first, last + 1):
                    missing[component, place] = bits & 15
            restarts = sum(entropy.count(bytes((0xFF, 0xD0 + number))) for number in range(8))
    if not components or any(missing.values()):
        raise ImageError(_CUT_OFF)
    return restarts


def _segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield each segment's marker, its body, and the entropy-coded data that follows a scan header."""
    place = 2
    while place + 4 <= len(data):
        marker, length = struct.unpack_from(">xBH", data, place)
        body = data[place + 4 : place + 2 + length]
        place += 2 + length
        if place > len(data):
            raise ImageError(_CUT_OFF)
        end = place
        if marker == _START_OF_SCAN:
            end = _end_of_scan(data, place)
        yield marker, body, data[place:end]
        place = end


def _end_of_scan(data: bytes, place: int) -> int:
    """Return where the entropy-coded data that begins at `place` ends: at a marker that is no restart."""
    while (place := data.find(b"\xff", place)) >= 0 and place + 1 < len(data):
        following = data[place + 1]
        if following != 0 and not 0xD0 <= following <= 0xD7:
            return place
        place += 2
    return len(data)
