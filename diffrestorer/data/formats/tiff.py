"""TIFF: the one picture of a file is found by its tags, and decoded only in layouts that are known to come out right.

Source: Adobe, TIFF Revision 6.0, and its supplements. One decoder (tifffile) reads everything, so that no failure is
answered by another decoder's idea of the file.
"""

import logging
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import Image

from diffrestorer.data.formats.colour import rgb_profile, to_rgb
from diffrestorer.data.formats.metadata import tiff_exif, upright_photo
from diffrestorer.data.formats.photo import ImageError, Photo, check_size

MAGICS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")

_MOST_PAGES = 64  # thumbnails, masks and pages that are looked at; a file with more is no photo
_LARGEST_TILE = 1 << 22  # pixels; larger ones only in large pictures: a tile is decoded whole

# Tags.
_SUBFILE = 254
_OLD_SUBFILE = 255
_ORIENTATION = 274
_SAMPLE_FORMAT = 339
_SUB_DIRECTORIES = 330
_BITS = 258
_COMPRESSION = 259
_PHOTOMETRIC = 262
_PLANES = 284
_XMP = 700
_PROFILE = 34675
_DNG_VERSION = 50706

# Bits of the subfile type.
_REDUCED = 1
_MASK = 4

# Photometric interpretations, and the samples that their colours take.
_WHITE_IS_ZERO = 0
_BLACK_IS_ZERO = 1
_RGB = 2
_PALETTE = 3
_CMYK = 5
_YCBCR = 6
_RAW = (32803, 34892)  # colour filter array, linear raw
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}

# Compressions.
_JPEG, _FAX = 7, (2, 3, 4)
_LOSSLESS = (
    1,
    5,
    8,
    32946,
    32773,
    34925,
    50000,
)  # none, LZW, Deflate (two codes), PackBits, LZMA, Zstandard

_IS_RAW = "it is a camera's raw file; develop it to TIFF or JPEG first"
_DAMAGED, _CUT_OFF = "the image data is damaged", "the file is cut off"

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters of a damaged file is raised


def read_tiff(file: BinaryIO, max_pixels: int) -> Photo:
    """Decode the one picture of full size in a TIFF file.

    Raises:
        ImageError: the file has several pictures or none, is too large, cut off or damaged, or has a layout that is not
            known to be decoded right.
    """
    size = file.seek(0, 2)
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page, index = _find_picture(tiff)
        check_size(page.imagewidth, page.imagelength, max_pixels)
        _check_layout(page)
        _check_segments(file, page, size)
        samples = _decode(page)
        if page.compression in _FAX:
            _confirm_fax(file, index, samples)
        orientation = page.tags.valueof(_ORIENTATION, 1)
        profile, xmp = page.tags.valueof(_PROFILE), page.tags.valueof(_XMP)
        pixels, alpha, profile = _to_photo(
            page, samples, profile if isinstance(profile, bytes) else None
        )

    exif = _read_exif(file, index)
    xmp = xmp if isinstance(xmp, bytes | str) else None
    return upright_photo(
        pixels, alpha, profile, exif, xmp, orientation if orientation in range(1, 9) else 1
    )


def _find_picture(tiff: tifffile.TiffFile) -> tuple[tifffile.TiffPage, int]:
    """Return the page that holds the photo, and its number in the file (0 for one in a subdirectory)."""
    chain = _read_chain(tiff)
    nested = _read_nested(tiff)
    if any(_DNG_VERSION in page.tags or page.photometric in _RAW for page in (*chain, *nested)):
        raise ImageError(_IS_RAW)

    # Some files keep a preview in the chain and the photo in a subdirectory.
    pictures = [(page, index) for index, page in enumerate(chain) if _is_picture(page)]
    below = [(page, 0) for page in nested if _is_picture(page)]
    if not pictures:
        pictures = below
    if not pictures:
        raise ImageError("it holds thumbnails only, and no photo")

    # ImageJ keeps several images under one directory.
    several = len(pictures)
    if tiff.is_imagej:
        several = max(several, int((tiff.imagej_metadata or {}).get("images", 1)))
    if several > 1:
        raise ImageError(f"it has {several} pages; only still images are supported")
    photo, index = pictures[0]
    if any(page.imagewidth > photo.imagewidth for page, _ in below):
        raise ImageError("it has 2 pictures, of which the first is smaller; save the one that is meant")
    return photo, index


def _read_chain(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """Return the pages of a file, if they are few enough."""
    chain: list[tifffile.TiffPage] = []
    while True:
        try:
            page = tiff.pages[len(chain)]
        except IndexError:
            return chain
        if not isinstance(page, tifffile.TiffPage):
            raise ImageError(_DAMAGED)
        if len(chain) == _MOST_PAGES:
            raise ImageError(f"it has more than {_MOST_PAGES} pages; only still images are supported")
        chain.append(page)


def _read_nested(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """Return the pages in subdirectories of the first page."""
    offsets = tiff.pages.first.tags.valueof(_SUB_DIRECTORIES) or ()
    offsets = offsets if isinstance(offsets, tuple) else (offsets,)
    if len(offsets) > _MOST_PAGES:
        raise ImageError(_DAMAGED)
    nested = []
    for number, offset in enumerate(offsets):
        tiff.filehandle.seek(offset)  # tifffile begins to read where the file stands
        nested.append(tifffile.TiffPage(tiff, index=(0, number)))
    return nested


def _is_picture(page: tifffile.TiffPage) -> bool:
    """Return whether a page is neither a thumbnail nor a mask."""
    kind = page.tags.valueof(_SUBFILE, 0)
    old_kind = page.tags.valueof(_OLD_SUBFILE, 1)
    return not kind & (_REDUCED | _MASK) and old_kind != 2


def _check_layout(page: tifffile.TiffPage) -> None:
    """Refuse layouts that are not known to be decoded right.

    Raises:
        ImageError: the reason.
    """
    photometric, bits = page.photometric, page.tags.valueof(_BITS, 1)
    if photometric not in _COLOURS:
        name = getattr(photometric, "name", photometric)
        raise ImageError(f"its colours are in the space {name}; convert it to RGB first")

    # Tags that have no safe default, and each tag once.
    if _PHOTOMETRIC not in page.tags or _COMPRESSION not in page.tags:
        raise ImageError("it does not say what its numbers stand for (a required tag is missing)")
    codes = [tag.code for tag in page.tags]
    if len(codes) != len(set(codes)):
        raise ImageError(_DAMAGED)

    # Samples: all of one width, unsigned.
    widths = set(bits) if isinstance(bits, tuple) else {bits}
    formats = page.tags.valueof(_SAMPLE_FORMAT, 1)
    formats = set(formats) if isinstance(formats, tuple) else {formats}
    if widths & {24, 32, 64}:
        raise ImageError("its pixels are 32-bit numbers; only 8-bit and 16-bit images are supported")
    if formats - {1, 4}:
        raise ImageError(
            "its samples are signed or floating-point numbers; only 8-bit and 16-bit images are supported"
        )
    allowed = {8, 16} if _COLOURS[photometric] > 1 else {1, 2, 4, 8, 16}
    if photometric == _PALETTE:
        allowed = {1, 2, 4, 8}
    if len(widths) != 1 or not widths <= allowed:
        raise ImageError(
            f"its samples have {' and '.join(map(str, sorted(widths)))} bits, a layout that is not supported"
        )

    _check_compression(page, widths)
    _check_further_samples(page, bits)


def _check_compression(page: tifffile.TiffPage, widths: set[int]) -> None:
    """Refuse compressions and predictors that are not known to be decoded right.

    Raises:
        ImageError: the reason.
    """
    # Each compression with the kinds of pictures that it is used for.
    photometric, compression = page.photometric, page.compression
    bilevel = widths == {1} and photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    known = (
        compression in _LOSSLESS
        or (compression in _FAX and bilevel)
        or (compression == _JPEG and widths == {8})
    )
    if not known or (photometric == _YCBCR and compression != _JPEG):
        name = getattr(compression, "name", compression)
        raise ImageError(
            f"it is compressed in a way that is not supported here ({name}); save it as a plain TIFF first"
        )
    plain_jpeg = (
        photometric in (_BLACK_IS_ZERO, _RGB, _YCBCR) and page.samplesperpixel == _COLOURS[photometric]
    )
    if compression == _JPEG and not plain_jpeg:
        raise ImageError(
            "it is compressed in a way that is not supported here (JPEG); save it as a plain TIFF first"
        )
    planes = page.tags.valueof(_PLANES, 1)
    if page.predictor not in (1, 2) or page.imagedepth > 1 or planes not in (1, 2):
        raise ImageError("it is laid out in a way that is not supported; save it as a plain TIFF first")


def _check_further_samples(page: tifffile.TiffPage, bits: int | tuple[int, ...]) -> None:
    """Refuse samples beyond the colours that are neither opacity nor selections; one may go without a name.

    Raises:
        ImageError: their number.
    """
    photometric = page.photometric
    further, names = page.samplesperpixel - _COLOURS[photometric], len(page.extrasamples)
    right_number = 0 <= further <= (1 if _COLOURS[photometric] == 1 else 4)
    right_names = names == further or (names == 0 and further == 1)
    right_bits = not isinstance(bits, tuple) or len(bits) == page.samplesperpixel
    if not (right_number and right_names and right_bits):
        raise ImageError(
            f"it has {page.samplesperpixel} samples per pixel, a layout that is not supported"
        )


def _check_segments(file: BinaryIO, page: tifffile.TiffPage, size: int) -> None:
    """Refuse a file that lacks strips or tiles, or their ends: they would be decoded as black or grey."""
    offsets, counts = page.dataoffsets, page.databytecounts
    across, down = 1, -(-page.imagelength // max(1, page.rowsperstrip))
    if page.is_tiled:
        if min(page.tilewidth, page.tilelength) < 1:
            raise ImageError(_DAMAGED)
        check_size(
            page.tilewidth, page.tilelength, max(4 * page.imagewidth * page.imagelength, _LARGEST_TILE)
        )
        across, down = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    expected = across * down * (page.samplesperpixel if page.planarconfig == 2 else 1)
    if len(offsets) != expected or len(counts) != expected:
        raise ImageError(_DAMAGED)
    bits = page.tags.valueof(_BITS, 1)
    row = page.imagewidth * (sum(bits) if isinstance(bits, tuple) else bits * page.samplesperpixel)
    if page.compression == 1 and sum(counts) < page.imagelength * row // 8:
        raise ImageError(_CUT_OFF)
    for offset, count in zip(offsets, counts, strict=True):
        if count <= 0 or offset <= 0:
            raise ImageError("parts of the picture are missing")
        if offset + count > size:
            raise ImageError(_CUT_OFF)
        if page.compression == _JPEG:
            file.seek(offset + count - 4)
            if b"\xff\xd9" not in file.read(4):
                raise ImageError(_CUT_OFF)


def _decode(page: tifffile.TiffPage) -> np.ndarray:
    """Return the samples (h, w, c)."""
    samples = page.asarray(maxworkers=1)
    height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
    if samples.size != height * width * channels:
        raise ImageError(_DAMAGED)
    if page.planarconfig == 2 and channels > 1:
        return np.moveaxis(samples.reshape(channels, height, width), 0, 2)
    return samples.reshape(height, width, channels)


def _confirm_fax(file: BinaryIO, index: int, samples: np.ndarray) -> None:
    """Refuse a fax picture that two decoders read differently: none of them reports damage."""
    file.seek(0)
    image = Image.open(file, formats=("TIFF",))
    image.seek(index)
    black_is_zero = np.asarray(image) ^ (image.getexif().get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
    if not np.array_equal(black_is_zero, samples[..., 0].astype(bool)):
        raise ImageError(_DAMAGED)


def _to_photo(
    page: tifffile.TiffPage, samples: np.ndarray, profile: bytes | None
) -> tuple[np.ndarray, np.ndarray | None, bytes | None]:
    """Return RGB, alpha and the profile of the RGB, of decoded samples."""
    photometric, colours = page.photometric, _COLOURS[page.photometric]
    bits = page.tags.valueof(_BITS, 1)
    bits = bits[0] if isinstance(bits, tuple) else bits
    colour, alpha = samples[..., :colours], _find_alpha(page, samples, colours)

    # Grey of few bits takes the full range; zero may be white.
    if photometric == _PALETTE:
        colour = _look_up(page, colour[..., 0])
    elif bits < 8:
        colour = (colour.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
    if photometric == _WHITE_IS_ZERO:
        colour = np.iinfo(colour.dtype).max - colour

    # Colours that were multiplied by the opacity are divided by it again.
    if alpha is not None and page.extrasamples[:1] == (1,):
        full = np.iinfo(colour.dtype).max
        opacity = np.maximum(alpha, 1).astype(np.uint64)[..., None]
        colour = np.minimum((colour.astype(np.uint64) * full + opacity // 2) // opacity, full).astype(
            colour.dtype
        )

    if colour.dtype == np.uint8 and colour.shape[2] != 3:
        mode = "CMYK" if colour.shape[2] == 4 else "L"
        image = Image.fromarray(
            np.ascontiguousarray(colour if mode == "CMYK" else colour[..., 0]), mode
        )
        pixels, _, profile = to_rgb(image, profile)
        return pixels, alpha, profile
    if photometric == _CMYK:
        raise ImageError("its colours are CMYK of 16 bits; convert it to RGB or to 8 bits first")
    return np.broadcast_to(colour, (*colour.shape[:2], 3)), alpha, rgb_profile(profile)


def _find_alpha(page: tifffile.TiffPage, samples: np.ndarray, colours: int) -> np.ndarray | None:
    """Return the opacity (h, w), or None. A further channel that is named unspecified (a selection) is none."""
    if samples.shape[2] == colours or samples.dtype not in (np.uint8, np.uint16):
        return None
    named = page.extrasamples
    if named and named[0] not in (1, 2):
        return None
    return samples[..., colours]


def _look_up(page: tifffile.TiffPage, places: np.ndarray) -> np.ndarray:
    """Return 8-bit RGB by the palette, whose entries have 16 bits, or 8 in files of some old programs."""
    palette = page.colormap
    if palette is None or palette.shape[0] != 3 or places.max() >= palette.shape[1]:
        raise ImageError(_DAMAGED)
    shift = 8 if palette.max() > 255 else 0
    return (palette >> shift).astype(np.uint8).T[places]


def _read_exif(file: BinaryIO, index: int) -> bytes | None:
    """Return an EXIF block of what a page's directory says of the photo; Pillow reads the nested directories."""
    try:
        file.seek(0)
        image = Image.open(file, formats=("TIFF",))
        image.seek(index)
        return tiff_exif(image)
    except Exception:  # Pillow fails on much that tifffile reads; the pixels are fine
        return None
