"""Image files as people have them: every kind, every damage, and writing that never leaves half a file."""

import contextlib
import errno
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from diffrestorer.data.images import FORMATS, ImageError, Photo, find_images, read_photo, write_photo

RNG = np.random.default_rng(0)
RGB = np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((40, 30)))
ALPHA = RNG.integers(0, 256, (30, 40), dtype=np.uint8)
DEEP = RGB.astype(np.uint16) * 257 - 100 * (RGB > 0).astype(np.uint16)
TURNS = (
    "FLIP_LEFT_RIGHT",
    "ROTATE_180",
    "FLIP_TOP_BOTTOM",
    "TRANSPOSE",
    "ROTATE_270",
    "TRANSVERSE",
    "ROTATE_90",
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def reason(path: Path, **options: int) -> str:
    with pytest.raises(ImageError) as caught:
        read_photo(path, **options)
    message = str(caught.value)
    assert not [text for text in ("\n", "Error", str(path)) if text in message]
    return message


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp", "gif", "jpg"])
def test_common_formats(tmp_path: Path, suffix: str) -> None:
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(suffix, {})
    photo = read_photo(save(tmp_path / f"a.{suffix}", Image.fromarray(RGB), **options))
    assert (photo.pixels.shape, photo.pixels.dtype, photo.alpha) == (RGB.shape, np.uint8, None)
    tolerance = {"gif": 24.0, "jpg": 6.0}.get(suffix, 0.0)
    assert np.abs(photo.pixels.astype(float) - RGB).mean() <= tolerance


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "PA"])
def test_grey_palette_and_alpha(tmp_path: Path, mode: str) -> None:
    source = Image.fromarray(np.dstack((RGB, ALPHA)) if "A" in mode else RGB).convert(
        "P" if mode == "PA" else mode
    )
    options = {"transparency": 0} if mode == "PA" else {}
    photo = read_photo(save(tmp_path / "a.png", source, **options))
    assert np.array_equal(photo.pixels, np.asarray(source.convert("RGB")))
    assert (photo.alpha is not None) == ("A" in mode)
    if mode in ("LA", "RGBA"):
        assert np.array_equal(photo.alpha, ALPHA)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_stays_16_bit(tmp_path: Path, suffix: str, channels: int) -> None:
    array = (
        DEEP[..., 0]
        if channels == 1
        else np.dstack((DEEP, ALPHA.astype(np.uint16) * 257))[..., :channels]
    )
    order = array if channels == 1 else array[..., [2, 1, 0, 3][:channels]]
    assert cv2.imwrite(str(tmp_path / f"a.{suffix}"), order)
    photo = read_photo(tmp_path / f"a.{suffix}")
    assert photo.pixels.dtype == np.uint16
    assert np.array_equal(
        photo.pixels, DEEP if channels > 1 else np.repeat(array[..., None], 3, axis=2)
    )
    if channels == 4:
        assert np.array_equal(photo.alpha, array[..., 3])


def test_cut_off_16_bit_file(tmp_path: Path) -> None:
    noise = RNG.integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    data = cv2.imencode(".png", noise)[1].tobytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    assert "cut off" in reason(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "16"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    image = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix.replace('16', 'png')}", image, exif=exif)
    expected = RGB
    if orientation > 1:
        expected = np.asarray(image.transpose(Image.Transpose[TURNS[orientation - 2]]))
    if suffix == "16":
        eight_bit = path.read_bytes()
        deep = cv2.imencode(".png", RGB[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
        start = eight_bit.index(b"eXIf") - 4
        chunk = eight_bit[start : start + 12 + struct.unpack(">I", eight_bit[start : start + 4])[0]]
        path.write_bytes(deep[:33] + chunk + deep[33:])
        expected = expected.astype(np.uint16) * 257
    assert np.array_equal(read_photo(path).pixels, expected)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(RGB)
    for profile in (None, b"not a profile" * 20):
        path = save(tmp_path / "a.tif", image.convert("CMYK"), icc_profile=profile)
        photo = read_photo(path)
        assert np.array_equal(photo.pixels, np.asarray(image.convert("CMYK").convert("RGB")))
        assert photo.icc_profile is None


def device_profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A minimal ICC 2.1 profile, Lab-connected for CMYK and XYZ-connected for grey."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061), **tags}
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    connection = b"Lab " if space == b"CMYK" else b"XYZ "
    header = struct.pack(
        ">I4sI4s4s4s12s4s", start + len(body), b"", 0x02100000, b"prtr", space, connection, b"", b"acsp"
    )
    header += b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def test_cmyk_and_grey_go_through_their_profile(tmp_path: Path) -> None:
    ramp = bytes(range(256))
    light = [
        (0 if inks[3] else 100 if any(inks) else 255, 128, 128) for inks in np.ndindex(2, 2, 2, 2)
    ]  # all grey
    identity = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    lookup = (
        b"mft1\0\0\0\0\4\3\2\0"
        + identity
        + ramp * 4
        + bytes(value for lab in light for value in lab)
        + ramp * 3
    )
    cmyk = Image.new("CMYK", (2, 1), (0, 0, 0, 0))
    cmyk.putpixel((1, 0), (255, 0, 0, 0))
    path = save(tmp_path / "a.tif", cmyk, icc_profile=device_profile(b"CMYK", {b"A2B0": lookup}))
    photo = read_photo(path)
    assert photo.icc_profile is None
    assert (
        np.abs(photo.pixels[0].astype(int) - [[255] * 3, [93] * 3]).max() <= 3
    )  # L* 39 is 93 in sRGB; plain: cyan

    linear = {b"kTRC": b"curv\0\0\0\0\0\0\0\0"}
    path = save(
        tmp_path / "a.png", Image.new("L", (1, 1), 55), icc_profile=device_profile(b"GRAY", linear)
    )
    assert np.abs(read_photo(path).pixels.astype(int) - 128).max() <= 2  # linear 0.216 is 128 in sRGB


def test_a_profile_of_another_colour_space_is_not_passed_on(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB), icc_profile=SRGB[:16] + b"GRAY" + SRGB[20:])
    assert read_photo(path).icc_profile is None


def test_animations_and_pages_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 90, 180)]
    for suffix in ("gif", "webp", "png"):
        path = save(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
        assert "3 frames" in reason(path)
    assert "3 pages" in reason(
        save(tmp_path / "a.tif", frames[0], save_all=True, append_images=frames[1:])
    )


def test_the_main_picture_of_an_mpo_is_read(tmp_path: Path) -> None:
    main = Image.fromarray(RGB)
    path = save(
        tmp_path / "phone.jpg", main, format="MPO", save_all=True, append_images=[main.resize((20, 15))]
    )
    assert Image.open(path).n_frames == 2
    assert read_photo(path).pixels.shape == RGB.shape


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image at all")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert "empty" in reason(tmp_path / "empty.png")
    assert "not an image" in reason(tmp_path / "text.jpg")
    assert "folder" in reason(tmp_path / "folder.png")
    assert "regular" in reason(tmp_path / "pipe.png")
    assert "no such file" in reason(tmp_path / "absent.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    path.chmod(0)
    assert "permission" in reason(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_damage(tmp_path: Path, suffix: str) -> None:
    """Cut at any place, a file is refused or, when no pixel is missing, read."""
    noise = Image.fromarray(RNG.integers(0, 256, (48, 48, 3), dtype=np.uint8))
    whole = save(tmp_path / f"whole.{suffix}", noise).read_bytes()
    path = tmp_path / f"a.{suffix}"
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        reason(path)
    for seed in range(20):  # bytes overwritten anywhere: an image or a clean refusal, nothing else
        data = bytearray(whole)
        rng = np.random.default_rng(seed)
        for place in rng.integers(0, len(data), 20):
            data[place] = rng.integers(256)
        path.write_bytes(bytes(data))
        with contextlib.suppress(ImageError):
            read_photo(path)


def test_a_huge_claim_is_refused_from_the_header(tmp_path: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x00\x00IDAT" + struct.pack(">I", 0)
    )
    assert "60000x60000" in reason(tmp_path / "bomb.png")
    assert "limit of 1199" in reason(save(tmp_path / "a.png", Image.fromarray(RGB)), max_pixels=1199)
    assert read_photo(tmp_path / "a.png", max_pixels=1200).pixels.shape == RGB.shape


def test_pillow_neither_warns_of_nor_refuses_a_large_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 100
    )  # a limit that this small photo breaks as 200 megapixels break 89
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(path).pixels.shape == RGB.shape
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_write_and_read_again(tmp_path: Path, format: str, dtype: type, with_alpha: bool) -> None:
    scale = 257 if dtype == np.uint16 else 1
    pixels, alpha = RGB.astype(dtype) * scale, ALPHA.astype(dtype) * scale if with_alpha else None
    path = tmp_path / f"a.{format}"
    write_photo(path, Photo(pixels, alpha, SRGB), format)
    again = read_photo(path)
    assert again.icc_profile == SRGB
    assert again.pixels.dtype == (dtype if format in ("png", "tif") else np.uint8)
    assert (again.alpha is not None) == (with_alpha and format != "jpg")
    if format in ("png", "tif"):
        assert np.array_equal(again.pixels, pixels)
        assert alpha is None or np.array_equal(again.alpha, alpha)
    elif not with_alpha:
        assert np.abs(again.pixels.astype(float) - RGB).mean() < 6
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_nothing_is_replaced_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a file system without hard links."""
    path = tmp_path / "a.png"
    for _ in range(2):
        assert write_photo(path, Photo(RGB), overwrite=False)
        assert not write_photo(path, Photo(RGB[::-1]), overwrite=False)
        assert np.array_equal(read_photo(path).pixels, RGB)
        assert write_photo(path, Photo(RGB[::-1]))
        assert np.array_equal(read_photo(path).pixels, RGB[::-1])
        assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
        path.unlink()

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)


def test_one_pixel(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png", Photo(RGB[:1, :1]))
    assert np.array_equal(read_photo(tmp_path / "a.png").pixels, RGB[:1, :1])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    write_photo(path, Photo(RGB))
    before = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_photo(path, Photo(RGB[::-1]))
    monkeypatch.undo()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match="cannot be written"):
        write_photo(tmp_path / "folder.png", Photo(RGB))
    with pytest.raises(ImageError, match="cannot be written"):
        write_photo(tmp_path / "absent" / "a.png", Photo(RGB))
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "folder.png"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A real limit on the size of files, in a process of its own."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from diffrestorer.data.images import ImageError, Photo, write_photo\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)\n"
        "try:\n    write_photo(sys.argv[1], Photo(pixels))\n"
        "except ImageError as error:\n    sys.exit(0 if 'File too large' in str(error) else 2)\n"
        "sys.exit(3)\n"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], cwd=root, check=False, timeout=1800
    )
    assert run.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_photo(path, Photo(RGB))
    writer = threading.Thread(target=lambda: [write_photo(path, Photo(RGB)) for _ in range(30)])
    writer.start()
    while writer.is_alive():
        assert np.array_equal(read_photo(path).pixels, RGB)
    writer.join()


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose one of png, jpg, webp, tif"):
        write_photo(tmp_path / "a.gif", Photo(RGB), "gif")
    with pytest.raises(ImageError, match="16383"):
        write_photo(tmp_path / "a.webp", Photo(np.zeros((1, 17000, 3), np.uint8)), "webp")
    with pytest.raises(ValueError, match="uint8 or uint16"):
        Photo(RGB.astype(np.float32))
    with pytest.raises(ValueError, match="alpha"):
        Photo(RGB, DEEP[..., 0])


def test_find_images(tmp_path: Path) -> None:
    for name in (
        "b.PNG",
        "a/z.jpg",
        "a.jpg",
        "a/notes.txt",
        ".hidden.png",
        ".cache/c.png",
        "a-b/c.webp",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [file.relative_to(tmp_path).as_posix() for file in find_images(tmp_path)]
    assert found == ["a-b/c.webp", "a.jpg", "a/z.jpg", "b.PNG"]
    with pytest.raises(ImageError, match="cannot be listed"):
        find_images(tmp_path / "absent")
    told = []
    assert find_images(tmp_path / "absent", lambda *what: told.append(what)) == []
    assert [(folder, str(error)) for folder, error in told] == [
        (tmp_path / "absent", "it cannot be listed (No such file or directory)")
    ]


def test_reading_needs_no_name(tmp_path: Path) -> None:
    """The contents tell the format: a JPEG called .png, or with no suffix, is read."""
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG")
    for name in ("a.png", "a"):
        (tmp_path / name).write_bytes(buffer.getvalue())
        assert read_photo(tmp_path / name).pixels.shape == RGB.shape
