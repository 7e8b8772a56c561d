"""PNG: chunks are sorted into pixels and metadata first, so that no text or profile can spoil a good picture.

Source: W3C, Portable Network Graphics (PNG) Specification, third edition.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import Image

from diffrestorer.data.formats.colour import to_rgb
from diffrestorer.data.formats.metadata import EXIF_PREFIX, upright_photo
from diffrestorer.data.formats.photo import ImageError, Photo, check_size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_BYTES = 33  # signature and IHDR, behind which metadata may stand

_LARGEST_METADATA = 1 << 26  # bytes of one chunk, packed or unpacked; what is larger is left out
_UNPACKED_AT_ONCE = 1 << 15  # bytes, which unpack to at most 32 MiB
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by colour type
_CUT_OFF, _DAMAGED = "the file is cut off", "the image data is damaged"


@dataclass
class _Chunks:
    """The chunks of a PNG that matter here.

    Attributes:
        pixels: the chunks that hold the picture, by type; IDAT chunks are joined.
        metadata: profile, EXIF and XMP, unpacked; damaged ones are left out.
        frames: pictures of an animation, else 1.
    """

    pixels: dict[bytes, bytes] = field(default_factory=dict)
    metadata: dict[str, bytes] = field(default_factory=dict)
    frames: int = 1


def read_png(file: BinaryIO, max_pixels: int) -> Photo:
    """Decode a PNG file.

    Raises:
        ImageError: the file is animated, too large, cut off or damaged.
    """
    chunks = _read_chunks(file, max_pixels)
    if chunks.frames > 1:
        raise ImageError(
            f"it has {chunks.frames} frames (an animation); only still images are supported"
        )

    # Pillow cuts 16-bit samples to 8, so another decoder takes those.
    profile = chunks.metadata.get("icc")
    if chunks.pixels[b"IHDR"][8] == 16:
        pixels, alpha = _decode_deep(chunks.pixels)
    else:
        image = Image.open(io.BytesIO(_assemble(chunks.pixels)), formats=("PNG",))
        image.load()
        pixels, alpha, profile = to_rgb(image, profile)

    exif, xmp = chunks.metadata.get("exif"), chunks.metadata.get("xmp")
    return upright_photo(pixels, alpha, profile, exif, xmp)


def _read_chunks(file: BinaryIO, max_pixels: int) -> _Chunks:
    """Read the chunks of a PNG, verify those that hold the picture, and skip what nobody needs."""
    file.seek(len(SIGNATURE))
    found, data, most = _Chunks(), bytearray(), 0
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if not found.pixels and kind != b"IHDR":
            raise ImageError(_DAMAGED)
        if kind == b"IEND":
            break
        critical = not kind[0] & 0x20 or kind == b"tRNS"
        if critical or length <= _LARGEST_METADATA:
            if critical and length > max(most, 768):
                raise ImageError("it holds more data than its pixels can fill")
            body, checksum = file.read(length), file.read(4)
            if len(checksum) < 4:
                if kind == b"IDAT":
                    data += body
                break
            if critical and struct.pack(">I", zlib.crc32(kind + body)) != checksum:
                raise ImageError(_DAMAGED)
        else:
            file.seek(length + 4, io.SEEK_CUR)
            continue

        # IHDR tells how many bytes the picture can take; any other critical chunk must be a known one.
        if kind == b"IHDR":
            most = _check_header(body, max_pixels)
            found.pixels[kind] = body
        elif kind == b"IDAT":
            data += body
            most -= length
        elif kind in (b"PLTE", b"tRNS"):
            if data:
                raise ImageError(_DAMAGED)
            found.pixels[kind] = body
        elif critical:
            raise ImageError(_DAMAGED)
        elif kind == b"acTL" and length >= 4:
            (found.frames,) = struct.unpack_from(">I", body)
        else:
            _keep_metadata(found.metadata, kind, body)
    if not data:
        raise ImageError(_CUT_OFF)

    # Whatever follows the rows, or a wrong checksum of theirs, makes the decoder of 16-bit samples complain on the
    # terminal: they are packed again for it.
    header = found.pixels[b"IHDR"]
    if header[8] == 16:
        rows = b"".join(_unpack_pixels(header, data))
        data = bytearray(zlib.compress(rows, level=0))
    else:
        for _ in _unpack_pixels(header, data):
            pass
    found.pixels[b"IDAT"] = bytes(data)
    return found


def _check_header(body: bytes, max_pixels: int) -> int:
    """Check IHDR; return the most bytes that compressed pixels may take."""
    if len(body) != 13:
        raise ImageError(_DAMAGED)
    width, height, depth, colour, *methods = struct.unpack(">IIBBBBB", body)
    check_size(width, height, max_pixels)
    if colour not in _SAMPLES or depth not in (1, 2, 4, 8, 16) or any(methods[:2]) or methods[2] > 1:
        raise ImageError(_DAMAGED)
    raw = _raw_size(body)
    return raw + raw // 8 + (1 << 20)


def _raw_size(header: bytes) -> int:
    """Return the bytes of the unpacked, still filtered rows that an IHDR promises (section 7.2 and 8)."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ]
    size = 0
    for left, top, across, down in passes:
        columns = max(0, -(-(width - left) // across))
        rows = max(0, -(-(height - top) // down))
        if columns:
            size += rows * (1 + -(-columns * depth * _SAMPLES[colour] // 8))
    return size


def _unpack_pixels(header: bytes, data: bytes | bytearray) -> Iterator[bytes]:
    """Yield the filtered rows, block by block, of the exact size that IHDR promises.

    Raises:
        ImageError: the compressed data is cut off or damaged. (Decoders leave the rest of such a picture black.)
    """
    left, unpacker = _raw_size(header), zlib.decompressobj()
    view = memoryview(data)
    try:
        for start in range(0, len(data), _UNPACKED_AT_ONCE):
            block = unpacker.decompress(view[start : start + _UNPACKED_AT_ONCE])[:left]
            left -= len(block)
            yield block
            if left == 0 or unpacker.eof:
                break
    except zlib.error as error:
        raise ImageError(_DAMAGED) from error
    if left > 0:
        raise ImageError(_CUT_OFF)


def _decode_deep(chunks: dict[bytes, bytes]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return RGB (h, w, 3) and alpha (h, w), uint16, of a picture with 16-bit samples."""
    clean = {kind: chunks[kind] for kind in (b"IHDR", b"IDAT")}
    samples = np.asarray(imagecodecs.png_decode(_assemble(clean)))
    width, height = struct.unpack_from(">II", chunks[b"IHDR"])
    channels = _SAMPLES[chunks[b"IHDR"][9]]
    if samples.dtype != np.uint16 or samples.size != width * height * channels:
        raise ImageError(_DAMAGED)
    samples = samples.reshape(height, width, channels)
    alpha = samples[..., -1] if channels in (2, 4) else None

    # A colour named in tRNS is transparent.
    key = chunks.get(b"tRNS", b"")
    if alpha is None and len(key) == 2 * channels:
        hidden = (samples == np.frombuffer(key, ">u2")).all(axis=2)
        alpha = np.where(hidden, 0, 65535).astype(np.uint16)
    colour = samples[..., :3] if channels > 2 else np.repeat(samples[..., :1], 3, axis=2)
    return colour, alpha


def _keep_metadata(metadata: dict[str, bytes], kind: bytes, body: bytes) -> None:
    """Add what an ancillary chunk says about profile, EXIF or XMP; a damaged one says nothing."""
    try:
        keyword, _, rest = body.partition(b"\x00")
        if kind == b"iCCP":
            metadata["icc"] = _unpack(rest[1:])
        elif kind == b"eXIf":
            metadata["exif"] = body.removeprefix(EXIF_PREFIX)
        elif kind == b"iTXt" and keyword == _XMP_KEYWORD:
            packed, text = rest[0], rest[2:].split(b"\x00", 2)[2]
            metadata["xmp"] = _unpack(text) if packed else text
        elif kind in (b"tEXt", b"zTXt") and keyword in (
            b"Raw profile type exif",
            b"Raw profile type APP1",
        ):
            # ImageMagick's way: a name, a length and hexadecimal digits, a line each.
            text = _unpack(rest[1:]) if kind == b"zTXt" else rest
            block = bytes.fromhex("".join(text.decode("ascii").split()[2:]))
            if block.startswith(EXIF_PREFIX):
                metadata.setdefault("exif", block.removeprefix(EXIF_PREFIX))
    except (zlib.error, IndexError, ValueError):
        return


def _unpack(data: bytes) -> bytes:
    """Inflate metadata of a reasonable size."""
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(data, _LARGEST_METADATA)
    if not unpacker.eof:
        raise ValueError("metadata that is cut off or too large")
    return unpacked


def _assemble(chunks: dict[bytes, bytes]) -> bytes:
    """Return a PNG of the chunks that hold a picture and nothing else."""
    order = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
    parts = [_chunk(kind, chunks[kind]) for kind in order if kind in chunks]
    return SIGNATURE + b"".join(parts) + _chunk(b"IEND", b"")


def metadata_chunks(photo: Photo) -> bytes:
    """Return the chunks that carry a photo's profile, EXIF and XMP; they stand behind the first `HEADER_BYTES`."""
    chunks = b""
    if photo.icc_profile is not None:
        chunks += _chunk(b"iCCP", b"ICC profile\x00\x00" + zlib.compress(photo.icc_profile))
    if photo.exif is not None:
        chunks += _chunk(b"eXIf", photo.exif)
    if photo.xmp is not None:
        chunks += _chunk(b"iTXt", _XMP_KEYWORD + b"\x00" * 5 + photo.xmp)
    return chunks


def _chunk(kind: bytes, body: bytes) -> bytes:
    """Frame a chunk: length, type, body and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
