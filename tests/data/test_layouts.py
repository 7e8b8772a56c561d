"""Layouts and metadata that readers are known to get wrong: read right, or refused with the reason."""

import os
import time
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import psutil
import pytest
import tifffile
from mutated_files import jpegs, picture, pngs, tiffs
from PIL import Image, ImageCms, PngImagePlugin

from diffrestorer.data.formats import pillow_reader
from diffrestorer.data.images import ImageError, Photo, as_photo, read_photo, write_photo
from diffrestorer.data.tensors import as_tensors

DEEP = picture()
COLOUR = (DEEP // 257).astype(np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:title="Anna"/></x:xmpmeta>'


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def reason(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_photo(path)
    return str(caught.value)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "layout", ["planar", "white", "premultiplied", "grey-alpha", "selection", "thumbnail", "sub"]
)
def test_tiff_layouts(tmp_path: Path, bits: int, layout: str) -> None:
    array = COLOUR if bits == 8 else DEEP
    full = np.iinfo(array.dtype).max
    path, expected, alpha = tmp_path / "a.tif", array, None
    opacity = (
        np.linspace(0.3 * full, full, array[..., 0].size)
        .reshape(array.shape[:2])
        .round()
        .astype(array.dtype)
    )
    grey = np.repeat(array[..., :1], 3, axis=2)
    if layout == "planar":
        tifffile.imwrite(path, np.moveaxis(array, 2, 0), photometric="rgb", planarconfig="separate")
    elif layout == "white":
        tifffile.imwrite(path, full - array[..., 0], photometric="miniswhite")
        expected = grey
    elif layout == "premultiplied":
        dimmed = (array.astype(float) * opacity[..., None] / full).round().astype(array.dtype)
        tifffile.imwrite(
            path, np.dstack((dimmed, opacity)), photometric="rgb", extrasamples=["assocalpha"]
        )
        alpha = opacity
    elif layout == "grey-alpha":
        both = np.dstack((array[..., 0], opacity))
        tifffile.imwrite(
            path, both, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
        )
        expected, alpha = grey, opacity
    elif layout == "selection":  # a saved selection is no transparency
        tifffile.imwrite(
            path, np.dstack((array, opacity)), photometric="rgb", extrasamples=["unspecified"]
        )
    elif layout == "thumbnail":
        with tifffile.TiffWriter(path) as writer:
            writer.write(np.ascontiguousarray(array[::4, ::4]), photometric="rgb", subfiletype=1)
            writer.write(array, photometric="rgb", subfiletype=0)
            writer.write(opacity, photometric="minisblack", subfiletype=1)
        with tifffile.TiffFile(path) as file:
            mask = file.pages[2].tags[254].valueoffset
        data = bytearray(path.read_bytes())
        data[mask] = 4
        path.write_bytes(bytes(data))
    else:  # a preview in the chain, the photo below it
        with tifffile.TiffWriter(path) as writer:
            writer.write(
                np.ascontiguousarray(array[::4, ::4]), photometric="rgb", subfiletype=1, subifds=1
            )
            writer.write(array, photometric="rgb", subfiletype=0)
    photo = read_photo(path)
    assert photo.pixels.dtype == array.dtype
    tolerance = 3 if layout == "premultiplied" else 0
    assert np.abs(photo.pixels.astype(int) - expected).max() <= tolerance
    assert (photo.alpha is None) == (alpha is None)
    assert alpha is None or np.array_equal(photo.alpha, alpha)


def test_what_may_come_out_wrong_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    cases = {
        "32-bit": {"data": DEEP.astype(np.float32), "photometric": "rgb"},
        "signed": {"data": DEEP[..., 0].astype(np.int16), "photometric": "minisblack"},
        "CIELAB": {"data": COLOUR, "photometric": "cielab"},
        "raw file": {"data": DEEP[..., 0], "photometric": "cfa"},
        "JPEG2000": {"data": COLOUR, "photometric": "rgb", "compression": "jpeg2000"},
        "16 bits": {"data": np.dstack((DEEP, DEEP[..., :1])), "photometric": "separated"},
        "3 pages": {"data": np.stack((COLOUR, COLOUR, COLOUR)), "photometric": "rgb"},
        "thumbnails only": {"data": COLOUR, "photometric": "rgb", "subfiletype": 1},
    }
    for words, options in cases.items():
        tifffile.imwrite(path, **options)
        assert words in reason(path), words
    tifffile.imwrite(path, COLOUR, photometric="rgb", extratags=[(50706, 1, 4, (1, 4, 0, 0), True)])
    assert "raw file" in reason(path), "the preview of a DNG is not the photo"
    with tifffile.TiffWriter(
        path
    ) as writer:  # as some cameras do, without saying that the first one is a preview
        writer.write(COLOUR, photometric="rgb", subifds=1)
        writer.write(np.ascontiguousarray(np.tile(DEEP[..., 0], (2, 2))), photometric="cfa")
    assert "raw file" in reason(path)
    with tifffile.TiffWriter(path) as writer:
        writer.write(COLOUR, photometric="rgb", subifds=1)
        writer.write(np.tile(COLOUR, (2, 2, 1)), photometric="rgb")
    assert "2 pictures" in reason(path)


def test_missing_strips_are_not_black(tmp_path: Path) -> None:
    """Neither where the file ends too early, nor where a strip is marked as absent."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, DEEP, photometric="rgb", rowsperstrip=6, compression="zlib")
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        last, counts = file.pages[0].dataoffsets[-1], file.pages[0].tags[279]
    assert "cut off" in reason(put(path, data[: last + 10]))
    blank = bytearray(data)
    blank[counts.valueoffset : counts.valueoffset + 4] = bytes(4)
    assert "missing" in reason(put(path, bytes(blank)))


@pytest.mark.parametrize("kind", ["tif", "png", "jpg"])
def test_a_damaged_file_is_not_answered_by_another_decoder(tmp_path: Path, kind: str) -> None:
    """A 16-bit file that its decoder refuses is refused: nobody's 8 bits of it are taken."""
    data = {"tif": tiffs()["rgb16-lzw"], "png": pngs()["16x3"], "jpg": jpegs()["444"]}[kind]
    assert "cut off" in reason(put(tmp_path / f"a.{kind}", data[: len(data) // 2]))


def test_sixteen_bit_pnm_and_grey_with_alpha(tmp_path: Path) -> None:
    header = f"P6 {DEEP.shape[1]} {DEEP.shape[0]} 65535\n".encode()
    assert np.array_equal(
        read_photo(put(tmp_path / "a.ppm", header + DEEP.astype(">u2").tobytes())).pixels, DEEP
    )
    both = np.ascontiguousarray(DEEP[..., :2])
    photo = read_photo(put(tmp_path / "a.png", bytes(imagecodecs.png_encode(both))))
    assert np.array_equal(photo.pixels, np.repeat(DEEP[..., :1], 3, axis=2))
    assert np.array_equal(photo.alpha, DEEP[..., 1])


def large_profile() -> bytes:
    """A profile of 3 MB that does not compress."""
    noise = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
    return SRGB + noise


@pytest.mark.parametrize("format", ["png", "tif", "webp", "jpg"])
def test_a_large_profile_survives_reading_and_writing(tmp_path: Path, format: str) -> None:
    photo = Photo(COLOUR, None, large_profile())
    write_photo(tmp_path / f"a.{format}", photo, format)
    again = read_photo(tmp_path / f"a.{format}")
    assert again.icc_profile == photo.icc_profile
    write_photo(tmp_path / "b.png", again)
    assert read_photo(tmp_path / "b.png").icc_profile == photo.icc_profile


def test_metadata_never_cost_the_picture(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "x" * 3_000_000, zip=True)
    texts.add_text("Long", "y" * 9_000_000)
    texts.add_itxt("Broken", "z")
    image.save(tmp_path / "text.png", pnginfo=texts)
    image.save(tmp_path / "profile.png", icc_profile=b"no profile" * 50)
    image.convert("L").save(tmp_path / "grey.png", icc_profile=SRGB[:16] + b"GRAY" + SRGB[20:300])
    image.convert("CMYK").save(
        tmp_path / "cmyk.jpg", icc_profile=SRGB[:16] + b"CMYK" + SRGB[20:300], quality=95
    )
    image.save(tmp_path / "exif.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage", quality=95)
    image.save(tmp_path / "xmp.webp", xmp=b"\xff\xfe no xml", lossless=True)
    for path in tmp_path.iterdir():
        expected = (
            COLOUR
            if path.stem != "grey"
            else np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2)
        )
        assert np.abs(read_photo(path).pixels.astype(float) - expected).mean() < 4, path.name


def camera_exif(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0132] = orientation, "Leica", "2024:05:06 07:08:09"
    exif.get_ifd(0x8769).update({0x9003: "2024:05:06 07:08:09", 0xA002: 36, 0xA003: 24})
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 30.0)})
    return exif


@pytest.mark.parametrize("source", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("format", ["png", "tif", "jpg", "webp"])
def test_date_place_and_camera_are_kept_upright(tmp_path: Path, source: str, format: str) -> None:
    image, options = Image.fromarray(COLOUR), {}
    if source in ("jpg", "webp"):
        options["xmp"] = XMP
    image.save(tmp_path / f"a.{source}", exif=camera_exif().tobytes(), **options)
    photo = read_photo(tmp_path / f"a.{source}")
    assert photo.pixels.shape == (36, 24, 3)
    write_photo(tmp_path / f"b.{format}", photo, format)
    again = read_photo(tmp_path / f"b.{format}")
    assert again.pixels.shape == (36, 24, 3), "no second turn"
    with Image.open(tmp_path / f"b.{format}") as written:
        exif = written.getexif()
        assert exif.get(0x0112, 1) == 1
        assert (exif[0x010F], exif[0x0132]) == ("Leica", "2024:05:06 07:08:09")
        assert exif.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"
        assert (exif.get_ifd(0x8769)[0xA002], exif.get_ifd(0x8769)[0xA003]) == (24, 36)
        assert [float(x) for x in exif.get_ifd(0x8825)[2]] == [48.0, 8.0, 30.0]
    if options:
        assert b"Anna" in again.xmp
        assert b'tiff:Orientation="1"' in again.xmp


def test_an_exif_thumbnail_of_the_degraded_photo_is_unlinked(tmp_path: Path) -> None:
    entry = (0x0103).to_bytes(2, "little") + b"\x03\0\1\0\0\0\6\0\0\0"
    directory = b"\1\0" + entry
    block = b"II*\0\x08\0\0\0" + directory + (26).to_bytes(4, "little") + directory + bytes(4)
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    exif = read_photo(tmp_path / "a.jpg").exif
    assert exif == block[:22] + bytes(4) + block[26:]


def test_an_exif_block_too_long_for_a_jpeg_is_left_out(tmp_path: Path) -> None:
    exif = camera_exif()
    exif[0x010E] = "x" * 70_000
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    photo = read_photo(tmp_path / "a.png")
    assert len(photo.exif) > 70_000
    assert write_photo(tmp_path / "b.jpg", photo, "jpg")
    assert read_photo(tmp_path / "b.jpg").exif is None


def every_file(folder: Path) -> dict[str, Path]:
    files = {f"tif-{name}": ("tif", data) for name, data in tiffs().items()}
    files |= {f"png-{name}": ("png", data) for name, data in pngs().items()}
    files |= {
        f"jpg-{name}": ("jpg", data) for name, data in jpegs().items() if not name.endswith("open")
    }
    return {name: put(folder / f"{name}.{suffix}", data) for name, (suffix, data) in files.items()}


def test_a_pil_image_is_read_as_its_file(tmp_path: Path) -> None:
    """Every layout, turned too; an image that Pillow has decoded already gives the same, of 8 bits, or is refused."""
    files = every_file(tmp_path)
    Image.fromarray(COLOUR).save(tmp_path / "turned.jpg", exif=camera_exif(), quality=95)
    for name, path in {**files, "turned": tmp_path / "turned.jpg"}.items():
        expected = read_photo(path)
        with Image.open(path) as image:
            found = as_photo(image)
            assert np.array_equal(found.pixels, expected.pixels), name
            scale = np.iinfo(expected.pixels.dtype).max
            (tensor,) = as_tensors(image)
            assert np.abs(tensor.numpy().transpose(1, 2, 0) - expected.pixels / scale).max() < 1e-6, (
                name
            )
        with Image.open(path) as image:
            try:
                image.load()
                loaded = as_photo(image)
            except (ImageError, OSError):
                continue
            shown = loaded.pixels / np.iinfo(loaded.pixels.dtype).max
            assert np.abs(shown - expected.pixels / scale).max() < 1.6 / 255, name


def test_an_edited_pil_image_is_not_read_again(tmp_path: Path) -> None:
    for name, data in {"a.png": pngs()["RGB"], "a.tif": tiffs()["rgb8"]}.items():
        with Image.open(put(tmp_path / name, data)) as image:
            image.paste((1, 2, 3), (0, 0, 36, 24))
            assert (as_photo(image).pixels == (1, 2, 3)).all()


@pytest.mark.parametrize("name", [name for name in jpegs() if name.endswith("open")])
def test_a_pil_jpeg_without_its_end(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / "a.jpg", jpegs()[name])
    with Image.open(path) as image:
        assert np.array_equal(as_photo(image).pixels, read_photo(path).pixels)
    path.write_bytes(path.read_bytes()[:-100])
    with Image.open(path) as image, pytest.raises(ImageError, match="cut off"):
        as_photo(image)


def test_a_thumbnail_is_not_taken_for_a_pil_image(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(np.ascontiguousarray(DEEP[::4, ::4]), photometric="rgb", subfiletype=1)
        writer.write(DEEP, photometric="rgb", subfiletype=0)
    with Image.open(tmp_path / "a.tif") as image:
        assert np.array_equal(as_photo(image).pixels, DEEP)


def test_floats_of_pillow_are_refused_not_black() -> None:
    for mode in ("F", "I"):
        with pytest.raises(ValueError, match="32-bit"):
            as_tensors(Image.new(mode, (8, 8), 1))


@pytest.mark.skipif(not pillow_reader.READS_HEIC, reason="the extra heic is not installed")
def test_heic(tmp_path: Path) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    Image.fromarray(COLOUR).save(tmp_path / "a.heic", quality=95, exif=camera_exif(1))
    photo = read_photo(tmp_path / "a.heic")
    assert np.abs(photo.pixels.astype(float) - COLOUR).mean() < 6
    assert b"Leica" in photo.exif


@pytest.mark.parametrize(
    "magic", [b"\xff\x0a12345678", b"\0\0\0\x0cJXL \r\n\x87\n", b"FUJIFILMCCD-RAW 0201", b"IIRO\x08\0"]
)
def test_foreign_formats_are_named(tmp_path: Path, magic: bytes) -> None:
    assert any(word in reason(put(tmp_path / "a.jpg", magic * 9)) for word in ("JPEG XL", "raw file"))


def test_many_pages_cost_little(tmp_path: Path) -> None:
    """A chain of twenty thousand directories, and one that ends in itself."""
    entry = b"\x01\x00" + b"\x00\x01\x04\x00\x01\x00\x00\x00\x08\x00\x00\x00"
    pages = [entry + (8 + 18 * (number + 1)).to_bytes(4, "little") for number in range(20_000)]
    header = b"II*\x00\x08\x00\x00\x00"
    for chain in (pages, [*pages[:9], entry + (8).to_bytes(4, "little")]):
        path = put(tmp_path / "a.tif", header + b"".join(chain))
        start = time.process_time()
        reason(path)
        assert time.process_time() - start < 2


def test_few_bytes_do_not_ask_for_much_memory_or_time(tmp_path: Path) -> None:
    """A tile of four billion pixels around a picture of a few, a plain file of many, an animation without end."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, DEEP, photometric="rgb", tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path) as file:
        places = [file.pages[0].tags[tag].valueoffset for tag in (322, 323)]
    data = bytearray(path.read_bytes())
    for place in places:
        data[place : place + 2] = b"\xf0\xff"
    assert "65520x65520" in reason(put(path, bytes(data)))
    assert "limit" in reason(put(path, b"P3 9000 9000 255\n" + b"1 " * 100))
    frames = [Image.new("RGB", (1, 1), (value % 2 * 255, 0, 0)) for value in range(400)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert "at least 100 frames" in reason(tmp_path / "a.gif")


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_a_deep_file_costs_memory_by_its_pixels_not_by_its_size(tmp_path: Path, kind: str) -> None:
    """Half a gigabyte of nothing after, or between, the few pixels of the picture."""
    path = tmp_path / f"a.{kind}"
    data = {"png": pngs()["16x3"], "tif": tiffs()["rgb16"], "pgm": b"P5 2 2 65535\n" + bytes(8)}[kind]
    path.write_bytes(data)
    os.truncate(path, 1 << 29)
    before = psutil.Process().memory_info().rss
    read_photo(path)
    bomb = zlib.compress(bytes(1 << 26))
    path.write_bytes(data + bomb * 8)
    read_photo(path)
    assert psutil.Process().memory_info().rss - before < 1 << 27


def test_libraries_keep_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever is wrong with a file, the reader's sentence is all there is: no line of a library's on the terminal."""
    rng = np.random.default_rng(0)
    for path in every_file(tmp_path).values():
        data = path.read_bytes()
        for _ in range(6):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                damaged[place] = rng.integers(256)
            path.write_bytes(bytes(damaged))
            try:
                as_tensors(Image.fromarray(read_photo(path).pixels[:1].astype(np.uint8)))
            except ImageError:
                continue
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    assert "regular" in reason(tmp_path / "pipe.tif")
    assert "regular" in reason(Path("/dev/zero"))
    os.mkfifo(tmp_path / "out.png")
    with pytest.raises(ImageError, match="a pipe"):
        write_photo(tmp_path / "out.png", Photo(COLOUR))
    assert (tmp_path / "out.png").is_fifo()


def test_an_interlaced_deep_png(tmp_path: Path) -> None:
    """Adam7, assembled by hand: no writer at hand interlaces."""
    deep = DEEP.astype(">u2")
    rows = b""
    for left, top, across, down in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
    ):  # fmt: skip
        for row in deep[top::down, left::across]:
            rows += b"\0" + row.tobytes()
    plain = pngs()["16x3"]
    header = bytearray(plain[16:29])
    header[12] = 1

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    chunks = (chunk(b"IHDR", bytes(header)), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    assert np.array_equal(
        read_photo(put(tmp_path / "a.png", plain[:8] + b"".join(chunks))).pixels, DEEP
    )
