"""Metadata come along byte by byte, or are left out: they cost neither the picture nor its text."""

import io
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from diffrestorer.data.formats.encoding import FORMATS, encode
from diffrestorer.data.formats.metadata import EXIF_PREFIX
from diffrestorer.data.formats.photo import Photo
from diffrestorer.data.formats.pillow_reader import READS_HEIC
from diffrestorer.data.images import read_photo

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (16, 24, 3), dtype=np.uint16)
MUTATIONS = 300

SCRIPTS = {
    "latin": "(c) Zoé Müller",
    "han": "写真 © 王小明",
    "cyrillic": "Фото: Ж. Щукин",
    "arabic": "صورة فوتوغرافية",
    "devanagari": "छायाचित्र",
    "emoji": "📷 by 🦊",
}
TEXTS = {name: text.encode() for name, text in SCRIPTS.items()}
TEXTS["latin-1"] = "Zoé".encode("latin-1")
TEXTS["shift-jis"] = "写真".encode("shift-jis")
COPYRIGHT, AUTHOR, COMMENT, EXIF, GPS = 0x8298, 0x9C9D, 0x9286, 0x8769, 0x8825


def directory(order: str, start: int, values: dict[int, tuple[int, bytes]]) -> bytes:
    """A directory at `start`: by tag the type and the bytes of ASCII (2), BYTE (1), UNDEFINED (7) or a LONG (4)."""
    head, behind = struct.pack(f"{order}H", len(values)), b""
    place = start + 2 + 12 * len(values) + 4
    for tag, (kind, data) in sorted(values.items()):
        head += struct.pack(f"{order}HHI", tag, kind, 1 if kind == 4 else len(data))
        at = struct.pack(f"{order}I", place + len(behind))
        head += data.ljust(4, b"\0") if len(data) <= 4 else at
        behind += data + bytes(len(data) % 2) if len(data) > 4 else b""
    return head + bytes(4) + behind


def described(order: str, text: bytes, nested: int) -> dict[int, tuple[int, bytes]]:
    """Tags of a main directory: a copyright, Windows' author, and the place of the EXIF directory."""
    return {
        COPYRIGHT: (2, text + b"\0"),
        AUTHOR: (1, text.decode("latin-1").encode("utf-16-le") + b"\0\0"),
        EXIF: (4, struct.pack(f"{order}I", nested)),
    }


def exif_block(order: str, text: bytes) -> bytes:
    """An EXIF block with `text` in three places."""
    length = len(directory(order, 8, described(order, text, 0)))
    main = directory(order, 8, described(order, text, 8 + length))
    comment = {COMMENT: (7, b"UNICODE\0" + text)}
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return mark + struct.pack(f"{order}I", 8) + main + directory(order, 8 + length, comment)


def by_pillow(order: str, text: bytes, format: str) -> bytes:
    """A file of Pillow's with such a block."""
    file, block = io.BytesIO(), exif_block(order, text)
    block = EXIF_PREFIX + block if format in ("JPEG", "HEIF") else block
    Image.fromarray(PIXELS).save(file, format, exif=block)
    return file.getvalue()


def by_tifffile(order: str, text: bytes, big: bool) -> bytes:
    """A TIFF of tifffile's with such tags, the EXIF directory at its end."""
    tags = described(order, text, 0)
    extra = [(tag, kind, len(value), value, True) for tag, (kind, value) in tags.items() if kind < 4]
    length = len(with_exif_directory(order, big, extra, place=0))
    data = with_exif_directory(order, big, extra, place=length)
    comment = b"UNICODE\0" + text
    if not big:
        return data + directory(order, length, {COMMENT: (7, comment)})
    entry = struct.pack(f"{order}QHHQQ", 1, COMMENT, 7, len(comment), length + 36)
    return data + entry + bytes(8) + comment


def with_exif_directory(order: str, big: bool, tags: list[tuple], place: int) -> bytes:
    """A TIFF that refers to an EXIF directory at `place`. tifffile writes no such tag, so another one is renamed."""
    file = io.BytesIO()
    options = {"photometric": "rgb", "byteorder": order, "bigtiff": big, "metadata": None}
    tifffile.imwrite(file, PIXELS, extratags=[*tags, (EXIF - 1, 4, 1, place, True)], **options)
    written, named = (struct.pack(f"{order}HH", tag, 4) for tag in (EXIF - 1, EXIF))
    assert file.getvalue().count(written) == 1
    return file.getvalue().replace(written, named)


SOURCES: dict[str, Callable[[str, bytes], bytes]] = {
    **{name: partial(by_pillow, format=name) for name in ("JPEG", "PNG", "WEBP", "AVIF")},
    "TIFF": partial(by_tifffile, big=False),
    "BigTIFF": partial(by_tifffile, big=True),
}
if READS_HEIC:
    SOURCES["HEIF"] = partial(by_pillow, format="HEIF")


def texts_in(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Copyright, author and comment of a file, as Pillow reads them."""
    exif = Image.open(io.BytesIO(data)).getexif()
    copyright = exif[COPYRIGHT].encode("latin-1")
    return copyright, bytes(exif[AUTHOR]), bytes(exif.get_ifd(EXIF)[COMMENT])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("order", ["<", ">"])
def test_text_survives_from_every_format_to_every_other(
    source: str, order: str, tmp_path: Path
) -> None:
    for name, text in TEXTS.items():
        path = tmp_path / name
        path.write_bytes(SOURCES[source](order, text))
        photo = read_photo(path)
        for format in FORMATS:
            expected = (text, described(order, text, 0)[AUTHOR][1], b"UNICODE\0" + text)
            assert texts_in(encode(photo, format)) == expected, (name, format)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("pixels", [PIXELS, DEEP], ids=["8", "16"])
def test_a_tiff_is_read_by_others_in_both_byte_orders(order: str, pixels: np.ndarray) -> None:
    """By libtiff and tifffile, with opacity too; tifffile finds the text where Pillow finds it."""
    for alpha in (None, pixels[..., 0][::-1].copy()):
        photo = Photo(pixels, alpha, b"a profile", exif_block(order, b"text"), b"<x:xmpmeta/>")
        data = encode(photo, "tif")
        expected = pixels if alpha is None else np.dstack((pixels, alpha))
        assert np.array_equal(imagecodecs.tiff_decode(data), expected)
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            assert file.byteorder == order
            page = file.pages[0]
            assert np.array_equal(page.asarray(), expected)
            assert page.tags.valueof(COPYRIGHT) == "text"
            assert page.tags.valueof(34675) == b"a profile"
            assert page.tags.valueof(700) == b"<x:xmpmeta/>"


def rich_block(order: str) -> bytes:
    """An EXIF block with every type of value, GPS and interoperability directories, and a thumbnail."""
    exif = Image.Exif()
    exif.endian = order
    exif.update({0x010E: "a photo", 0x010F: "maker", 0x0112: 6, 0x011A: 72.0, 0x0132: "2024:01:02"})
    exif.get_ifd(EXIF).update({0x829A: 0.01, 0x9000: b"0232", 0x927C: b"note" * 9, 0xA002: 24})
    exif.get_ifd(GPS).update({1: "N", 2: (48.0, 8.0, 0.5), 5: b"\0", 6: 35.0})
    return exif.tobytes().removeprefix(EXIF_PREFIX)


def mutate(block: bytes, rng: np.random.Generator) -> bytes:
    """Overwrite bytes, set fields of entries to values that have a meaning for some tag, or cut the end."""
    data = bytearray(block)
    for _ in range(rng.integers(1, 6)):
        place = 8 + 2 * int(rng.integers((len(data) - 12) // 2))
        choice = rng.random()
        if choice < 0.4:
            data[place] = rng.integers(256)
        elif choice < 0.8:
            field = rng.choice([0, 1, 2, 3, 4, 5, 7, 10, 12, 13, 0x8769, 0x8825, 0xA005, 0x8298, 65535])
            struct.pack_into("<H" if block[:2] == b"II" else ">H", data, place, int(field))
        elif choice < 0.9:
            struct.pack_into("<I", data, place, int(rng.integers(1 << 32)))
        else:
            data = data[: max(int(rng.integers(len(data))), 20)]
    return bytes(data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, of damaged EXIF
@pytest.mark.parametrize("format", FORMATS)
def test_no_exif_costs_the_picture(format: str, order: str) -> None:
    """The picture is always written, and it is the one that is written without EXIF."""
    plain = np.asarray(Image.open(io.BytesIO(encode(Photo(PIXELS), format))))
    block = rich_block(order)
    kept = 0
    for counter in range(MUTATIONS):
        damaged = mutate(block, np.random.default_rng((7, counter)))
        data = encode(Photo(PIXELS, exif=damaged), format)
        if format == "tif":
            assert np.array_equal(imagecodecs.tiff_decode(data), plain), counter
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                kept += "Make" in file.pages[0].tags
        else:
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), plain), counter
    assert kept > MUTATIONS / 2 or format != "tif", "a damaged entry does not cost the others"


@pytest.mark.parametrize("source", ["JPEG", "PNG", "TIFF"])
def test_no_exif_costs_the_picture_that_is_read(source: str, tmp_path: Path) -> None:
    """Damaged EXIF in a file that is read, restored and written to a TIFF."""
    for counter in range(MUTATIONS // 3):
        damaged = mutate(rich_block("<"), np.random.default_rng((8, counter)))
        file, path = io.BytesIO(), tmp_path / str(counter)
        if source == "TIFF":
            length = len(with_exif_directory("<", False, [], place=0))
            path.write_bytes(with_exif_directory("<", False, [], place=length + 8) + damaged)
        else:
            block = EXIF_PREFIX + damaged if source == "JPEG" else damaged
            Image.fromarray(PIXELS).save(file, source, exif=block)
            path.write_bytes(file.getvalue())
        photo = read_photo(path)
        assert photo.pixels.size == PIXELS.size
        assert np.array_equal(imagecodecs.tiff_decode(encode(photo, "tif")), photo.pixels)
