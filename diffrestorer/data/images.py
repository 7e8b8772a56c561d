"""Reading and writing photo files: a failure is one clear sentence, and an output appears whole or not at all."""

import os
import secrets
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from diffrestorer.data.formats import png, pnm, tiff
from diffrestorer.data.formats.encoding import FORMATS, encode
from diffrestorer.data.formats.photo import ImageError, Photo
from diffrestorer.data.formats.pillow_reader import READS_HEIC, photo_from_pil, quiet_pillow, read_with_pillow
from diffrestorer.data.storage import open_regular

__all__ = [
    "FOREIGN_SUFFIXES",
    "FORMATS",
    "IMAGE_SUFFIXES",
    "ImageError",
    "Photo",
    "as_photo",
    "find_images",
    "read_photo",
    "write_photo",
]

_HEIC_SUFFIXES = (".heic", ".heif", ".hif")
_PLAIN_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".jp2", ".avif",
)  # fmt: skip

IMAGE_SUFFIXES: frozenset[str] = frozenset(_PLAIN_SUFFIXES + (_HEIC_SUFFIXES if READS_HEIC else ()))
"""Suffixes, in lower case, by which a folder search knows images. A file named outright is judged by its contents."""

_NEEDS_HEIC = 'it is a HEIC photo; pip install "diffrestorer[heic]" reads it'
_IS_JXL = "it is a JPEG XL image, which is not supported; convert it first"
_IS_RAW = "it is a camera's raw file; develop it to TIFF or JPEG first"
_RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mos", ".mrw", ".nef", ".nrw", ".orf",
    ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip

FOREIGN_SUFFIXES: dict[str, str] = {
    **({} if READS_HEIC else dict.fromkeys(_HEIC_SUFFIXES, _NEEDS_HEIC)),
    ".jxl": _IS_JXL,
    **dict.fromkeys(_RAW_SUFFIXES, _IS_RAW),
}
"""Suffixes, in lower case, of photos that cannot be read, and the reason: a folder search reports them."""

_LONGEST_MAGIC = 16  # bytes
_MOST_PIXELS = 200_000_000


def read_photo(path: str | Path, max_pixels: int = _MOST_PIXELS) -> Photo:
    """Decode an image file to upright RGB.

    Palette, grey, 1-bit and CMYK become RGB (8-bit grey and CMYK through their ICC profile if they carry a sound one).
    16-bit PNG, TIFF, PGM and PPM stay 16-bit. The EXIF orientation is applied. The photo of a JPEG with several
    pictures (MPO) or of a TIFF with thumbnails is read. Metadata never cost a picture: damaged ones are left out.

    Args:
        path: the file; its contents, not its suffix, tell the format.
        max_pixels: largest width x height, checked in the header before anything is decoded.

    Raises:
        ImageError: no such file, a folder, no permission, empty, not an image, too large, animated, cut off, damaged,
            or of a layout that is not known to be decoded right.
    """
    try:
        with open_regular(path) as file:
            return _decode(file, max_pixels)
    except ImageError:
        raise
    except IsADirectoryError as error:
        raise ImageError("it is a folder, not an image") from error
    except Exception as error:  # on damaged data the readers raise almost anything
        raise ImageError(_explain(error)) from error


def _decode(file: BinaryIO, max_pixels: int) -> Photo:
    """Decode an open file by the reader that its first bytes ask for."""
    magic = file.read(_LONGEST_MAGIC)
    if not magic:
        raise ImageError("the file is empty")
    if foreign := _name_foreign(magic):
        raise ImageError(foreign)
    file.seek(0)
    with quiet_pillow():
        if magic.startswith(png.SIGNATURE):
            return png.read_png(file, max_pixels)
        if magic.startswith(tiff.MAGICS):
            return tiff.read_tiff(file, max_pixels)
        if magic.startswith(pnm.MAGICS):
            return pnm.read_pnm(file, max_pixels)
        return read_with_pillow(file, max_pixels)


def _name_foreign(magic: bytes) -> str | None:
    """Return why a file that begins with `magic` cannot be read; None if nothing is known against it."""
    if magic.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return _IS_JXL
    if magic.startswith((b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\x00", b"FOVb")) or magic[8:10] == b"CR":
        return _IS_RAW
    brand = magic[8:12] if magic[4:8] == b"ftyp" else b""
    if brand == b"crx ":
        return _IS_RAW
    heic = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
    return _NEEDS_HEIC if brand in heic and not READS_HEIC else None


def _explain(error: Exception) -> str:
    """Return what a failure to read means, as a sentence."""
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


def as_photo(image: Image.Image) -> Photo:
    """Return a PIL image as the photo that `read_photo` makes of its file.

    A PNG, TIFF or PNM that Pillow has opened and not yet decoded is read from its file, since Pillow turns some of them
    into other or fewer-bit colours. A decoded one, or a later frame, is what Pillow made of it.

    Raises:
        ImageError: as `read_photo` does.
    """
    file = getattr(image, "fp", None)
    undecoded = bool(getattr(image, "tile", None)) and image.tell() == 0
    try:
        if file is not None and undecoded and image.format in ("PNG", "TIFF", "PPM"):
            return _reread(file)
        _check_pillow_tiff(image)
        return photo_from_pil(image)
    except ImageError:
        raise
    except Exception as error:  # as in read_photo
        raise ImageError(_explain(error)) from error


def _reread(file: BinaryIO) -> Photo:
    """Decode the file that an image was opened from, and leave it where it stood."""
    place = file.tell()
    try:
        file.seek(0)
        return _decode(file, _MOST_PIXELS)
    finally:
        file.seek(place)


def _check_pillow_tiff(image: Image.Image) -> None:
    """Refuse the TIFFs that Pillow decodes wrongly, once it has decoded them."""
    tags = getattr(image, "tag_v2", {})
    bits, colour, planes, extra = (tags.get(tag) for tag in (258, 262, 284, 338))
    deep = bits is not None and 16 in bits
    if deep and (colour == 0 or planes == 2 or (extra and extra[0] == 1)):
        raise ImageError("Pillow decodes this 16-bit TIFF wrongly; give the path of the file instead of the image")


def write_photo(path: str | Path, photo: Photo, format: str = "png", overwrite: bool = True) -> bool:
    """Write an image file that appears whole or not at all.

    It is written to a hidden temporary file in the same folder, which then takes the final name. A failure or an
    interruption removes that file (only SIGKILL at that very moment can leave it). The ICC profile, EXIF and XMP are
    kept, with the orientation of an upright photo.

    Args:
        path: the output; its folder exists.
        photo: uint16 pixels stay 16-bit in png and tif, and become 8-bit in the other formats.
        format: `png`, `tif`, `jpg` (quality 95, 4:4:4; alpha is dropped) or `webp` (quality 95).
        overwrite: whether an older file of that name is replaced.

    Returns:
        Whether it was written: False if something has the name already and `overwrite` is false.

    Raises:
        ImageError: the image is too large for the format, the file cannot be written, or something that is no regular
            file has its name.
        ValueError: the format is none of these.
    """
    data = encode(photo, format)
    temporary = Path(path).parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not overwrite:
            return _take_free_name(temporary, path)
        _refuse_special_file(path)
        os.replace(temporary, path)
        return True
    except OSError as error:
        raise ImageError(f"it cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_special_file(path: str | Path) -> None:
    """Refuse to replace a pipe, a device or a socket by a file."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
        raise ImageError("it cannot be written (its name belongs to a pipe, a device or a socket)")


def _take_free_name(temporary: Path, path: str | Path) -> bool:
    """Give a file its name unless something has it already; return whether it got it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links; two writers at the very same moment: the later one wins
        if os.path.lexists(path):
            return False
        os.replace(temporary, path)
    return True


def find_images(
    folder: str | Path,
    on_error: Callable[[Path, ImageError], object] | None = None,
    on_foreign: Callable[[Path, str], object] | None = None,
) -> list[Path]:
    """Return the files below `folder`, at any depth, with a suffix in `IMAGE_SUFFIXES`, sorted by their POSIX path.

    Hidden files and folders are skipped, links to folders are not followed.

    Args:
        folder: where to search.
        on_error: told of a folder that cannot be listed, and why; the search goes on without it.
        on_foreign: told of each photo in a format that cannot be read, and why, by its suffix.

    Raises:
        ImageError: without `on_error`, a folder cannot be listed: its images would be lost without a word.
    """

    def refuse(error: OSError) -> None:
        """Report a folder that cannot be listed."""
        name = os.path.relpath(error.filename, folder)
        if on_error is None:
            raise ImageError(f"its folder {name!r} cannot be listed ({error.strerror})") from error
        on_error(Path(error.filename), ImageError(f"it cannot be listed ({error.strerror})"))

    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    found.sort(key=lambda file: file.relative_to(folder).as_posix())
    if on_foreign is not None:
        _report_foreign(found, on_foreign)
    return [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES]


def _report_foreign(files: Sequence[Path], on_foreign: Callable[[Path, str], object]) -> None:
    """Report the photos whose suffix tells that they cannot be read."""
    for file in files:
        if why := FOREIGN_SUFFIXES.get(file.suffix.lower()):
            on_foreign(file, why)
