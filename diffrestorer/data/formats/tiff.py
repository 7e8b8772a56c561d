"""TIFF: the one picture of a file is found by its tags, and decoded only in layouts that are known to come out right.

Source: Adobe, TIFF Revision 6.0, and its supplements. One decoder (tifffile) reads everything, so that no failure is
answered by another decoder's idea of the file.
"""

import logging
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import Image
from PIL.ExifTags import Base
from tifffile import PHOTOMETRIC

from diffrestorer.data.formats.colour import rgb_profile, to_rgb
from diffrestorer.data.formats.directories import XMP, read_directory
from diffrestorer.data.formats.metadata import DESCRIPTIVE, describing_exif, upright_photo
from diffrestorer.data.formats.photo import ImageError, Photo, check_size
from diffrestorer.data.formats.tiff_layouts import COLOURS, DAMAGED, FAX, check_layout, check_segments

MAGICS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")

_MOST_PAGES = 64  # thumbnails, masks and pages that are looked at; a file with more is no photo

_RAW = (PHOTOMETRIC.CFA, PHOTOMETRIC.LINEAR_RAW)
_IS_RAW = "it is a camera's raw file; develop it to TIFF or JPEG first"

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
        check_layout(page)
        check_segments(file, page, size)
        samples = _decode(page)
        if page.compression in FAX:
            _confirm_fax(file, index, samples)
        orientation = page.tags.valueof("Orientation", 1)
        profile = page.tags.valueof("InterColorProfile")
        pixels, alpha, profile = _to_photo(
            page, samples, profile if isinstance(profile, bytes) else None
        )

        exif, xmp = _read_metadata(file, tiff, index)

    return upright_photo(
        pixels, alpha, profile, exif, xmp, orientation if orientation in range(1, 9) else 1
    )


def _find_picture(tiff: tifffile.TiffFile) -> tuple[tifffile.TiffPage, int]:
    """Return the page that holds the photo, and its number in the file (0 for one in a subdirectory)."""
    chain = _read_chain(tiff)
    nested = _read_nested(tiff)
    if any("DNGVersion" in page.tags or page.photometric in _RAW for page in (*chain, *nested)):
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
            raise ImageError(DAMAGED)
        if len(chain) == _MOST_PAGES:
            raise ImageError(f"it has more than {_MOST_PAGES} pages; only still images are supported")
        chain.append(page)


def _read_nested(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """Return the pages in subdirectories of the first page."""
    offsets = tiff.pages.first.tags.valueof("SubIFDs") or ()
    offsets = offsets if isinstance(offsets, tuple) else (offsets,)
    if len(offsets) > _MOST_PAGES:
        raise ImageError(DAMAGED)
    nested = []
    for number, offset in enumerate(offsets):
        tiff.filehandle.seek(offset)  # tifffile begins to read where the file stands
        nested.append(tifffile.TiffPage(tiff, index=(0, number)))
    return nested


def _is_picture(page: tifffile.TiffPage) -> bool:
    """Return whether a page is neither a thumbnail nor a mask."""
    return not page.is_reduced and not page.is_mask


def _decode(page: tifffile.TiffPage) -> np.ndarray:
    """Return the samples (h, w, c)."""
    samples = page.asarray(maxworkers=1)
    height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
    if samples.size != height * width * channels:
        raise ImageError(DAMAGED)
    if page.planarconfig == 2 and channels > 1:
        return np.moveaxis(samples.reshape(channels, height, width), 0, 2)
    return samples.reshape(height, width, channels)


def _confirm_fax(file: BinaryIO, index: int, samples: np.ndarray) -> None:
    """Refuse a fax picture that two decoders read differently: none of them reports damage."""
    file.seek(0)
    image = Image.open(file, formats=("TIFF",))
    image.seek(index)
    black_is_zero = np.asarray(image) ^ (
        image.getexif().get(Base.PhotometricInterpretation) == PHOTOMETRIC.MINISWHITE
    )
    if not np.array_equal(black_is_zero, samples[..., 0].astype(bool)):
        raise ImageError(DAMAGED)


def _to_photo(
    page: tifffile.TiffPage, samples: np.ndarray, profile: bytes | None
) -> tuple[np.ndarray, np.ndarray | None, bytes | None]:
    """Return RGB, alpha and the profile of the RGB, of decoded samples."""
    photometric, colours = page.photometric, COLOURS[page.photometric]
    bits = page.tags.valueof("BitsPerSample", 1)
    bits = bits[0] if isinstance(bits, tuple) else bits
    colour, alpha = samples[..., :colours], _find_alpha(page, samples, colours)

    # Grey of few bits takes the full range; zero may be white.
    if photometric == PHOTOMETRIC.PALETTE:
        colour = _look_up(page, colour[..., 0])
    elif bits < 8:
        colour = (colour.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
    if photometric == PHOTOMETRIC.MINISWHITE:
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
    if photometric == PHOTOMETRIC.SEPARATED:
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
        raise ImageError(DAMAGED)
    shift = 8 if palette.max() > 255 else 0
    return (palette >> shift).astype(np.uint8).T[places]


def _read_metadata(
    file: BinaryIO, tiff: tifffile.TiffFile, index: int
) -> tuple[bytes | None, bytes | None]:
    """Return an EXIF block of what a page's directory says of the photo, and its XMP packet."""
    place = tiff.pages[index].offset
    wanted = (*DESCRIPTIVE, XMP)
    directory = read_directory(file, tiff.byteorder, place, wanted, tiff.is_bigtiff)
    packet = directory.entries.get(XMP)
    return describing_exif(directory), None if packet is None else packet.data
