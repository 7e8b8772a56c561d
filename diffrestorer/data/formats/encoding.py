"""Encoding photos as PNG, JPEG, WebP and TIFF, with their profile and what a camera wrote about them."""

import io
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from diffrestorer.data.formats.directories import (
    BYTE,
    LONG,
    SHORT,
    UNDEFINED,
    XMP,
    Directory,
    Entry,
    write_directory,
)
from diffrestorer.data.formats.metadata import describing_directory
from diffrestorer.data.formats.photo import ImageError, Photo
from diffrestorer.data.formats.png import HEADER_BYTES, metadata_chunks

FORMATS: tuple[str, ...] = ("png", "jpg", "webp", "tif")
"""Formats that photos are written in, named by their suffixes."""

_LONGEST_SIDE = {"png": 2**31 - 1, "jpg": 65500, "webp": 16383, "tif": 2**31 - 1}
_LARGEST_JPEG_BLOCK = 65_000  # bytes of EXIF or XMP; a JPEG segment holds 65,533
_LARGEST_TIFF = 2**32 - (1 << 16)
_TOO_LARGE = "it is too large for a tif file; choose --format png"
_HEADER = 8  # bytes of a TIFF's header
_STRIP_OFFSET, _STRIP_BYTES, _ICC = 273, 279, 34675
_DEFLATE, _RGB, _HORIZONTAL, _UNASSOCIATED = 8, 2, 2, 2


def encode(photo: Photo, format: str) -> bytes:
    """Encode a photo.

    Args:
        photo: uint16 pixels stay 16-bit in png and tif, and become 8-bit in the other formats.
        format: `png`, `tif` (both lossless), `jpg` (quality 95, 4:4:4; alpha is dropped) or `webp` (quality 95).

    Raises:
        ImageError: the photo is too large for the format.
        ValueError: the format is none of these.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown image format {format!r}; choose one of {', '.join(FORMATS)}")
    if max(photo.pixels.shape[:2]) > _LONGEST_SIDE[format]:
        raise ImageError(f"a {format} file holds at most {_LONGEST_SIDE[format]} pixels a side")

    # Colour and opacity in one array.
    alpha = None if format == "jpg" else photo.alpha
    channels = photo.pixels if alpha is None else np.dstack((photo.pixels, alpha))
    channels = np.ascontiguousarray(channels)
    if format == "png":
        return _encode_png(channels, photo)
    if format == "tif":
        return _encode_tiff(channels, photo)
    if channels.dtype == np.uint16:
        channels = ((channels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return _encode_lossy(Image.fromarray(channels), photo, format)


def _encode_png(channels: np.ndarray, photo: Photo) -> bytes:
    """Encode a PNG and put its metadata behind the header."""
    if channels.dtype == np.uint16:
        data = bytes(imagecodecs.png_encode(channels))
    else:
        file = io.BytesIO()
        Image.fromarray(channels).save(file, "PNG")
        data = file.getvalue()
    return data[:HEADER_BYTES] + metadata_chunks(photo) + data[HEADER_BYTES:]


def _encode_lossy(image: Image.Image, photo: Photo, format: str) -> bytes:
    """Encode a JPEG or a WebP. Blocks that a JPEG's segments cannot hold are left out."""
    blocks: dict[str, Any] = {"icc_profile": photo.icc_profile, "exif": photo.exif, "xmp": photo.xmp}
    options: dict[str, Any] = {"format": "WEBP", "quality": 95}
    if format == "jpg":
        options = {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"}
        for name in ("exif", "xmp"):
            block = blocks[name]
            if block is not None and len(block) > _LARGEST_JPEG_BLOCK:
                blocks[name] = None

    # Pillow takes an EXIF block with its prefix in a JPEG, and without it elsewhere.
    if format == "jpg" and blocks["exif"] is not None:
        blocks["exif"] = b"Exif\x00\x00" + blocks["exif"]
    file = io.BytesIO()
    image.save(file, **options, **{name: block for name, block in blocks.items() if block is not None})
    return file.getvalue()


def _encode_tiff(channels: np.ndarray, photo: Photo) -> bytes:
    """Encode a TIFF of one deflated strip: Pillow writes no 16-bit RGB, tifffile no EXIF."""
    height, width, samples = channels.shape
    if channels.nbytes > _LARGEST_TIFF:
        raise ImageError(_TOO_LARGE)

    # What describes the photo keeps its bytes, so the file has the byte order of the EXIF block.
    directory = Directory("<") if photo.exif is None else describing_directory(photo.exif)
    if photo.icc_profile is not None:
        directory.entries[_ICC] = Entry(UNDEFINED, len(photo.icc_profile), photo.icc_profile)
    if photo.xmp is not None:
        directory.entries[XMP] = Entry(BYTE, len(photo.xmp), photo.xmp)

    # The horizontal predictor: each sample as its difference from the one to its left.
    differences = channels.copy()
    differences[:, 1:] -= channels[:, :-1]
    stored = np.dtype(f"{directory.order}u{channels.dtype.itemsize}")
    strip = zlib.compress(differences.astype(stored, copy=False).tobytes())

    # Tags of TIFF 6.0, section 6 (RGB).
    bits = 8 * channels.dtype.itemsize
    directory.set(256, LONG, width)
    directory.set(257, LONG, height)
    directory.set(258, SHORT, *(bits,) * samples)
    directory.set(259, SHORT, _DEFLATE)
    directory.set(262, SHORT, _RGB)
    directory.set(277, SHORT, samples)
    directory.set(278, LONG, height)
    directory.set(284, SHORT, 1)
    directory.set(317, SHORT, _HORIZONTAL)
    if samples == 4:
        directory.set(338, SHORT, _UNASSOCIATED)

    # The strip stands behind the directory, whose length does not depend on where that is.
    directory.set(_STRIP_BYTES, LONG, len(strip))
    directory.set(_STRIP_OFFSET, LONG, 0)
    strip_at = _HEADER + len(write_directory(directory, _HEADER))
    if strip_at + len(strip) > _LARGEST_TIFF:
        raise ImageError(_TOO_LARGE)
    directory.set(_STRIP_OFFSET, LONG, strip_at)
    mark = {"<": b"II", ">": b"MM"}[directory.order]
    header = struct.pack(f"{directory.order}2sHI", mark, 42, _HEADER)
    return header + write_directory(directory, _HEADER) + strip
