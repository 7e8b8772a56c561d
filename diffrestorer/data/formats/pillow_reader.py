"""Everything that Pillow decodes right: JPEG, WebP, GIF, BMP, JPEG 2000, AVIF, HEIC by its plug-in, and PIL images."""

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

from diffrestorer.data.formats.colour import rgb_profile, to_rgb
from diffrestorer.data.formats.jpeg_files import read_without_end
from diffrestorer.data.formats.metadata import upright_photo
from diffrestorer.data.formats.photo import ImageError, Photo, check_size

READS_HEIC = find_spec("pillow_heif") is not None
"""Whether the extra `heic` is installed."""

_FORMATS = ["JPEG", "WEBP", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF"]
_MOST_FRAMES = 100


class _CurrentThread(threading.local):
    """The current thread's number of open reads, in the shape of a warning filter's message pattern.

    A filter with this pattern applies to every warning of a thread that reads, and to no other thread's.
    """

    reads = 0

    def match(self, text: str) -> bool:
        """Return whether the thread that issues the warning is reading. `warnings` calls it as `re.Pattern.match`."""
        return self.reads > 0


_current_thread = _CurrentThread()
_SILENCE = ("ignore", _current_thread, Warning, None, 0)  # an entry of warnings.filters


class _Readers:
    """A count of the reads in progress in all threads, and the global settings that last as long as there is one.

    The lock guards the settings only: it is never held while a file is decoded.

    `warnings.catch_warnings` does not serve here. It replaces the filters of the whole process, and two threads that
    overlap in it restore each other's filters, for good. So a single entry is added to the filters and removed again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._limit: int | None = None
        self._silenced: list[list[object]] = []

    def enter(self) -> None:
        """Add a read of the current thread: Pillow's limit is lifted, and the thread's warnings are silenced."""
        with self._lock:
            # Later reads do it again if other code has set a limit in the meantime.
            if self._count == 0 or Image.MAX_IMAGE_PIXELS is not None:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None

            # The first matching filter wins. Other code may have put filters before ours, or replaced the list.
            filters = cast("list[object]", warnings.filters)
            if filters[:1] != [_SILENCE]:
                filters.insert(0, _SILENCE)
                self._silenced.append(filters)

            self._count += 1
            _current_thread.reads += 1

    def leave(self) -> None:
        """Remove a read of the current thread. The last one restores the settings."""
        with self._lock:
            _current_thread.reads -= 1
            self._count -= 1
            if self._count > 0:
                return

            # A limit that other code has set in the meantime stays.
            if Image.MAX_IMAGE_PIXELS is None:
                Image.MAX_IMAGE_PIXELS = self._limit

            # A catch_warnings of other code copies the list: clean the copy in use and the lists that were changed.
            for filters in (*self._silenced, cast("list[object]", warnings.filters)):
                while _SILENCE in filters:
                    filters.remove(_SILENCE)
            self._silenced.clear()


_readers = _Readers()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Lift Pillow's own limit on pixels, which is too low for a panorama, and silence the current thread's warnings.

    Several threads may be inside at the same time. The limit is global, so it is restored when the last one leaves.
    """
    _readers.enter()
    try:
        yield
    finally:
        _readers.leave()


def read_with_pillow(file: BinaryIO, max_pixels: int) -> Photo:
    """Decode an image file of one of the formats that Pillow reads right.

    Raises:
        ImageError: the file is animated or too large, or its pixels are of an unsupported kind.
        Exception: Pillow's readers raise almost anything on damaged data.
    """
    image: Image.Image = Image.open(file, formats=_formats())
    check_size(image.width, image.height, max_pixels)
    if image.format not in ("MPO", "HEIF") and getattr(
        image, "is_animated", False
    ):  # there, the first is the photo
        raise ImageError(
            f"it has {_count_frames(image)} frames (an animation); only still images are supported"
        )
    return _load(image)


def _load(image: Image.Image) -> Photo:
    """Decode an opened image; a JPEG may lack its end."""
    info, file = dict(image.info), getattr(image, "fp", None)
    try:
        image.load()
    except OSError as error:
        if image.format not in ("JPEG", "MPO") or "truncated" not in str(error) or file is None:
            raise
        file.seek(0)
        image = read_without_end(file)
    return _photo(image, info)


def _count_frames(image: Image.Image) -> str:
    """Return the number of frames of an animation. Those of a GIF have to be sought, so not all of them are."""
    if image.format != "GIF":
        return str(getattr(image, "n_frames", 1))
    for number in range(1, _MOST_FRAMES):
        try:
            image.seek(number)
        except EOFError:
            return str(number)
    return f"at least {_MOST_FRAMES}"


def photo_from_pil(image: Image.Image) -> Photo:
    """Return a PIL image as the photo that its file would be read as.

    Raises:
        ImageError: its pixels are 32-bit numbers or of a colour space without a plain conversion.
    """
    with quiet_pillow():
        return _load(image)


def _formats() -> list[str]:
    """Return Pillow's names of the formats, HEIF too where its plug-in is installed."""
    if not READS_HEIC:
        return _FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    return [*_FORMATS, "HEIF"]


def _photo(image: Image.Image, info: Mapping[Any, Any]) -> Photo:
    """Return a decoded PIL image as a photo; `info` is what its file says beside the pixels."""
    profile = info.get("icc_profile")
    profile = profile if isinstance(profile, bytes) and profile else None
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        grey = np.asarray(image).astype(np.uint16)
        pixels, alpha, profile = np.repeat(grey[..., None], 3, axis=2), None, rgb_profile(profile)
    else:
        pixels, alpha, profile = to_rgb(image, profile)

    exif, xmp = info.get("exif"), info.get("xmp")
    exif = exif if isinstance(exif, bytes) else None
    xmp = xmp if isinstance(xmp, bytes | str) else None
    return upright_photo(pixels, alpha, profile, exif, xmp)
