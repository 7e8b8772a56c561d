"""The layouts of a TIFF file that are known to be decoded right, and the refusal of all others.

Source: Adobe, TIFF Revision 6.0, and its supplements.
"""

from typing import BinaryIO

import tifffile
from tifffile import COMPRESSION, PHOTOMETRIC

from diffrestorer.data.formats.photo import ImageError, check_size

COLOURS: dict[int, int] = {
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.SEPARATED: 4,
    PHOTOMETRIC.YCBCR: 3,
}
"""Samples that the colours of a photometric interpretation take."""

FAX = (COMPRESSION.CCITTRLE, COMPRESSION.CCITTFAX3, COMPRESSION.CCITTFAX4)

DAMAGED = "the image data is damaged"
CUT_OFF = "the file is cut off"

_LOSSLESS = (
    COMPRESSION.NONE,
    COMPRESSION.LZW,
    COMPRESSION.ADOBE_DEFLATE,
    COMPRESSION.DEFLATE,
    COMPRESSION.PACKBITS,
    COMPRESSION.LZMA,
    COMPRESSION.ZSTD,
)
_LARGEST_TILE = 1 << 22  # pixels; larger ones only in large pictures: a tile is decoded whole


def check_layout(page: tifffile.TiffPage) -> None:
    """Refuse layouts that are not known to be decoded right.

    Raises:
        ImageError: the reason.
    """
    photometric, bits = page.photometric, page.tags.valueof("BitsPerSample", 1)
    if photometric not in COLOURS:
        name = getattr(photometric, "name", photometric)
        raise ImageError(f"its colours are in the space {name}; convert it to RGB first")

    # Tags that have no safe default, and each tag once.
    if "PhotometricInterpretation" not in page.tags or "Compression" not in page.tags:
        raise ImageError("it does not say what its numbers stand for (a required tag is missing)")
    codes = [tag.code for tag in page.tags]
    if len(codes) != len(set(codes)):
        raise ImageError(DAMAGED)

    # Samples: all of one width, unsigned.
    widths = set(bits) if isinstance(bits, tuple) else {bits}
    formats = page.tags.valueof("SampleFormat", 1)
    formats = set(formats) if isinstance(formats, tuple) else {formats}
    if widths & {24, 32, 64}:
        raise ImageError("its pixels are 32-bit numbers; only 8-bit and 16-bit images are supported")
    if formats - {1, 4}:
        raise ImageError(
            "its samples are signed or floating-point numbers; only 8-bit and 16-bit images are supported"
        )
    allowed = {8, 16} if COLOURS[photometric] > 1 else {1, 2, 4, 8, 16}
    if photometric == PHOTOMETRIC.PALETTE:
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
    bilevel = widths == {1} and photometric in (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK)
    known = (
        compression in _LOSSLESS
        or (compression in FAX and bilevel)
        or (compression == COMPRESSION.JPEG and widths == {8})
    )
    if not known or (photometric == PHOTOMETRIC.YCBCR and compression != COMPRESSION.JPEG):
        name = getattr(compression, "name", compression)
        raise ImageError(
            f"it is compressed in a way that is not supported here ({name}); save it as a plain TIFF first"
        )
    plain_jpeg = (
        photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR)
        and page.samplesperpixel == COLOURS[photometric]
    )
    if compression == COMPRESSION.JPEG and not plain_jpeg:
        raise ImageError(
            "it is compressed in a way that is not supported here (JPEG); save it as a plain TIFF first"
        )
    planes = page.tags.valueof("PlanarConfiguration", 1)
    if page.predictor not in (1, 2) or page.imagedepth > 1 or planes not in (1, 2):
        raise ImageError("it is laid out in a way that is not supported; save it as a plain TIFF first")


def _check_further_samples(page: tifffile.TiffPage, bits: int | tuple[int, ...]) -> None:
    """Refuse samples beyond the colours that are neither opacity nor selections; one may go without a name.

    Raises:
        ImageError: their number.
    """
    photometric = page.photometric
    further, names = page.samplesperpixel - COLOURS[photometric], len(page.extrasamples)
    right_number = 0 <= further <= (1 if COLOURS[photometric] == 1 else 4)
    right_names = names == further or (names == 0 and further == 1)
    right_bits = not isinstance(bits, tuple) or len(bits) == page.samplesperpixel
    if not (right_number and right_names and right_bits):
        raise ImageError(
            f"it has {page.samplesperpixel} samples per pixel, a layout that is not supported"
        )


def check_segments(file: BinaryIO, page: tifffile.TiffPage, size: int) -> None:
    """Refuse a file that lacks strips or tiles, or their ends: they would be decoded as black or grey."""
    offsets, counts = page.dataoffsets, page.databytecounts
    across, down = 1, -(-page.imagelength // max(1, page.rowsperstrip))
    if page.is_tiled:
        if min(page.tilewidth, page.tilelength) < 1:
            raise ImageError(DAMAGED)
        check_size(
            page.tilewidth, page.tilelength, max(4 * page.imagewidth * page.imagelength, _LARGEST_TILE)
        )
        across, down = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    expected = across * down * (page.samplesperpixel if page.planarconfig == 2 else 1)
    if len(offsets) != expected or len(counts) != expected:
        raise ImageError(DAMAGED)
    bits = page.tags.valueof("BitsPerSample", 1)
    row = page.imagewidth * (sum(bits) if isinstance(bits, tuple) else bits * page.samplesperpixel)
    if page.compression == COMPRESSION.NONE and sum(counts) < page.imagelength * row // 8:
        raise ImageError(CUT_OFF)
    for offset, count in zip(offsets, counts, strict=True):
        if count <= 0 or offset <= 0:
            raise ImageError("parts of the picture are missing")
        if offset + count > size:
            raise ImageError(CUT_OFF)
        if page.compression == COMPRESSION.JPEG:
            file.seek(offset + count - 4)
            if b"\xff\xd9" not in file.read(4):
                raise ImageError(CUT_OFF)
