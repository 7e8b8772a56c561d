"""Reading and writing photo files: a failure is one clear sentence, and an output appears whole or not at all."""

import io
import os
import secrets
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin, UnidentifiedImageError

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")
)
"""Suffixes, in lower case, by which a folder search knows images. A file named outright is judged by its contents."""

FORMATS: tuple[str, ...] = ("png", "jpg", "webp")
"""What `write_photo` writes."""

_READERS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"},
    "webp": {"format": "WEBP", "quality": 95},
}
_LONGEST_SIDE = {"png": 2**31 - 1, "jpg": 65500, "webp": 16383}
_ORIENTATION_TAG, _SUBFILE_TAG, _BITS_TAG = 0x0112, 254, 258
_PNG_HEADER_BYTES = 33  # signature and IHDR
_pillow_lock = threading.Lock()


class ImageError(ValueError):
    """An image file that can't be read or written. The message is one sentence and leaves the path to the caller."""


@dataclass(frozen=True)
class Photo:
    """A decoded photo, upright.

    Attributes:
        pixels: RGB (h, w, 3), uint8 or uint16, full range.
        alpha: opacity (h, w) of the same type, or None where the file has none.
        icc_profile: the RGB profile that `pixels` are in; None stands for sRGB.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels are uint8 or uint16 (h, w, 3), got {self.pixels.dtype} {self.pixels.shape}")
        alpha = self.alpha
        if alpha is not None and (alpha.shape != self.pixels.shape[:2] or alpha.dtype != self.pixels.dtype):
            raise ValueError(f"alpha has the size and type of the pixels, got {alpha.dtype} {alpha.shape}")


def read_photo(path: str | Path, max_pixels: int = 200_000_000) -> Photo:
    """Decode an image file to upright RGB.

    Palette, grey, 1-bit and CMYK become RGB (CMYK and 8-bit grey through their ICC profile if they carry one); 16-bit
    PNG and TIFF stay 16-bit; EXIF orientation is applied. Of a JPEG with several pictures (MPO) the main one is read.

    Args:
        path: the file; its contents, not its suffix, tell the format.
        max_pixels: largest width x height, checked in the header before anything is decoded.

    Raises:
        ImageError: no such file, a folder, no permission, empty, not an image, too large, animated, cut off or damaged.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise ImageError("it is a folder, not an image" if stat.S_ISDIR(mode) else "it is not a regular file")
        with open(path, "rb") as file:
            return _decode(file, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # on damaged data Pillow's readers raise almost anything
        raise ImageError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """What a failure to read means, as a sentence."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "there is no permission to read it"
    if isinstance(error, OSError) and error.errno is not None:
        return f"it cannot be read ({error.strerror})"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a supported format, or its beginning is damaged"
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    cut_off = "truncated" in str(error).lower() or isinstance(error, EOFError)
    return "the file is cut off" if cut_off else "the image data is damaged"


def write_photo(path: str | Path, photo: Photo, format: str = "png", overwrite: bool = True) -> bool:
    """Write an image file that appears whole or not at all, over an older one if there is one and `overwrite` is true.

    It is written to a hidden temporary file in the same folder, then takes the final name; a failure or an interruption
    removes that file (only SIGKILL at that very moment can leave it). The ICC profile is kept, in a 16-bit PNG too; no
    other metadata is, so that no viewer rotates an upright photo again.

    Args:
        path: the output; its folder exists.
        photo: uint16 pixels become a 16-bit PNG, or 8-bit in the other formats.
        format: `png`, `jpg` (quality 95, 4:4:4; alpha is dropped) or `webp` (quality 95).

    Returns:
        Whether it was written: not where something has the name already and `overwrite` is false.

    Raises:
        ImageError: the image is too large for the format, or the file can't be written.
        ValueError: the format is none of these.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown image format {format!r}; choose one of {', '.join(FORMATS)}")
    if max(photo.pixels.shape[:2]) > _LONGEST_SIDE[format]:
        raise ImageError(f"a {format} file holds at most {_LONGEST_SIDE[format]} pixels a side")
    data = _encode(photo, format)
    temporary = Path(path).parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not overwrite:
            return _name_new(temporary, path)
        os.replace(temporary, path)
        return True
    except OSError as error:
        raise ImageError(f"it cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _name_new(temporary: Path, path: str | Path) -> bool:
    """Gives a file its name unless something has it already."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links; two writers at the very same moment: the later one wins
        if os.path.lexists(path):
            return False
        os.replace(temporary, path)
    return True


def find_images(folder: str | Path, on_error: Callable[[Path, ImageError], object] | None = None) -> list[Path]:
    """Files below `folder`, at any depth, with a suffix in `IMAGE_SUFFIXES`, sorted by their POSIX path in it.

    Hidden files and folders are skipped, links to folders are not followed.

    Args:
        on_error: told of a folder that can't be listed, and why; the search goes on without it.

    Raises:
        ImageError: without `on_error`, where a folder can't be listed: its images would be lost without a word.
    """

    def refuse(error: OSError) -> None:
        name = os.path.relpath(error.filename, folder)
        if on_error is None:
            raise ImageError(f"its folder {name!r} cannot be listed ({error.strerror})") from error
        on_error(Path(error.filename), ImageError(f"it cannot be listed ({error.strerror})"))

    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    images = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(images, key=lambda file: file.relative_to(folder).as_posix())


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Lift Pillow's own limit on pixels (global, too low for a panorama), and keep its warnings off the terminal."""
    with _pillow_lock, warnings.catch_warnings():
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(file: BinaryIO, max_pixels: int) -> Photo:
    header = file.read(_PNG_HEADER_BYTES)
    if not header:
        raise ImageError("the file is empty")
    with _quiet_pillow():
        file.seek(0)
        image = Image.open(file, formats=_READERS)
        if image.width * image.height > max_pixels:
            raise ImageError(f"it claims {image.width}x{image.height} pixels, more than the limit of {max_pixels}")
        frames = _count_frames(image)
        if frames > 1:
            what = "pages" if image.format == "TIFF" else "frames (an animation)"
            raise ImageError(f"it has {frames} {what}; only still images are supported")
        deep = _is_deep(image, header)
        image.load()
        orientation = _orientation(image)
    profile = image.info.get("icc_profile") or None
    file.seek(0)
    if deep and (array := cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)) is not None:
        pixels, alpha = _split_deep(array)
    elif image.mode.startswith("I;16"):
        pixels, alpha = _split_deep(np.asarray(image).astype(np.uint16))
    else:
        pixels, alpha, profile = _split_8bit(image, profile)
    if profile is not None and profile[16:20] != b"RGB ":
        profile = None
    return Photo(_upright(pixels, orientation), None if alpha is None else _upright(alpha, orientation), profile)


def _count_frames(image: Image.Image) -> int:
    """Frames or pages; the further pictures of an MPO and the thumbnails of a TIFF are not counted."""
    frames = getattr(image, "n_frames", 1)
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1 if image.format == "MPO" else int(frames)
    pages = 0
    for frame in reversed(range(frames)):  # ends at the first
        image.seek(frame)
        pages += not image.tag_v2.get(_SUBFILE_TAG, 0) & 1
    return pages


def _is_deep(image: Image.Image, header: bytes) -> bool:
    """Whether the file holds 16-bit samples that Pillow would cut to 8: OpenCV reads them, Pillow finds the damage."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.mode in ("RGB", "RGBA") and 16 in image.tag_v2.get(_BITS_TAG, ())
    return image.format == "PNG" and header[24] == 16  # the bit depth in IHDR


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1-8; 1 where there is none or the EXIF block is damaged. Pillow has applied a TIFF's itself."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # whatever is wrong in the EXIF block, the pixels are fine
        return 1


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        array = np.swapaxes(array, 0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def _split_deep(array: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Grey (h, w) or OpenCV's BGR(A) (h, w, 3 or 4) to RGB and alpha."""
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2), None
    return array[..., 2::-1], array[..., 3] if array.shape[2] == 4 else None


def _split_8bit(image: Image.Image, profile: bytes | None) -> tuple[np.ndarray, np.ndarray | None, bytes | None]:
    """RGB, alpha and the profile that the RGB is in."""
    if image.mode in ("I", "F"):
        raise ImageError("its pixels are 32-bit numbers; only 8-bit and 16-bit images are supported")
    alpha = None
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        image = image.convert("L" if image.mode in ("L", "LA") else "RGB")
    if profile is not None and (image.mode, profile[16:20]) in (("CMYK", b"CMYK"), ("L", b"GRAY")):
        source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        with suppress(ImageCms.PyCMSError):  # a profile for other devices: the plain conversion below
            return np.asarray(ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")), alpha, None
    return np.asarray(image.convert("RGB")), alpha, profile


def _encode(photo: Photo, format: str) -> bytes:
    alpha = None if format == "jpg" else photo.alpha
    channels = photo.pixels if alpha is None else np.dstack((photo.pixels, alpha))
    if photo.pixels.dtype == np.uint16 and format == "png":
        order = [2, 1, 0, 3][: channels.shape[2]]
        data = cv2.imencode(".png", channels[..., order])[1].tobytes()
        return data[:_PNG_HEADER_BYTES] + _profile_chunk(photo.icc_profile) + data[_PNG_HEADER_BYTES:]
    if photo.pixels.dtype == np.uint16:
        channels = ((channels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(channels)).save(file, icc_profile=photo.icc_profile, **_SAVE_OPTIONS[format])
    return file.getvalue()


def _profile_chunk(profile: bytes | None) -> bytes:
    """The PNG chunk that carries an ICC profile, which OpenCV can't write (PNG specification, 11.3.2.3 iCCP)."""
    if profile is None:
        return b""
    body = b"iCCP" + b"ICC profile\x00\x00" + zlib.compress(profile)
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
