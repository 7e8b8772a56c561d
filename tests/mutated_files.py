"""Image files of many layouts, and mutations of their headers, for the fuzz of the readers."""

import io
import struct
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

Mutate = Callable[[bytes, np.random.Generator], bytes]

HEIGHT, WIDTH = 24, 36


def picture(seed: int = 0) -> np.ndarray:
    """A smooth colour picture with an edge, uint16 (h, w, 3): no two channels, rows or columns alike."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    red = 2000 + 50_000 * x / WIDTH
    green = 60_000 - 45_000 * y / HEIGHT
    blue = np.where(x + y > 30, 50_000, 9000) + 200 * y
    return np.stack((red, green, blue), axis=2).astype(np.uint16)


def tiffs() -> dict[str, bytes]:
    """TIFF files by a name of their layout."""
    deep = picture()
    colour = (deep // 257).astype(np.uint8)
    alpha = np.linspace(20_000, 65_535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).astype(np.uint16)
    files = {}
    for name, array in {"8": colour, "16": deep}.items():
        grey = array[..., 0]
        opacity = alpha if name == "16" else (alpha // 257).astype(np.uint8)
        both = np.concatenate((array, opacity), axis=2)
        files[f"rgb{name}"] = _tiff(array, photometric="rgb")
        files[f"rgb{name}-be"] = _tiff(array, photometric="rgb", byteorder=">")
        files[f"rgb{name}-big"] = _tiff(array, photometric="rgb", bigtiff=True)
        files[f"rgb{name}-planar"] = _tiff(
            np.moveaxis(array, 2, 0), photometric="rgb", planarconfig="separate"
        )
        files[f"rgb{name}-strips"] = _tiff(array, photometric="rgb", rowsperstrip=5)
        files[f"rgb{name}-tiles"] = _tiff(array, photometric="rgb", tile=(16, 16))
        for compression in ("zlib", "lzw", "packbits"):
            files[f"rgb{name}-{compression}"] = _tiff(
                array, photometric="rgb", compression=compression, rowsperstrip=7
            )
        files[f"rgb{name}-lzw-2"] = _tiff(array, photometric="rgb", compression="lzw", predictor=2)
        files[f"rgba{name}"] = _tiff(both, photometric="rgb", extrasamples=["unassalpha"])
        files[f"rgba{name}-zlib-2"] = _tiff(
            both, photometric="rgb", extrasamples=["unassalpha"], compression="zlib", predictor=2
        )
        files[f"grey{name}"] = _tiff(grey, photometric="minisblack")
        files[f"white{name}"] = _tiff(grey, photometric="miniswhite")
    files["palette"] = _tiff(colour[..., 0], photometric="palette", colormap=_palette())
    files["cmyk"] = _pil(Image.fromarray(colour).convert("CMYK"), "TIFF")
    files["bilevel"] = _pil(Image.fromarray(colour).convert("1"), "TIFF")
    files["jpeg"] = _tiff(
        colour, photometric="ycbcr", compression="jpeg", compressionargs={"level": 95}, rowsperstrip=24
    )
    return files


def _tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, metadata=None, **options)
    return file.getvalue()


def _palette() -> np.ndarray:
    ramp = np.arange(256)
    return (np.stack((ramp, 255 - ramp, ramp // 2)) * 257).astype(np.uint16)


def _pil(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pngs() -> dict[str, bytes]:
    """PNG files by a name of their layout."""
    deep = picture()
    colour = (deep // 257).astype(np.uint8)
    image = Image.fromarray(colour)
    files = {mode: _pil(image.convert(mode), "PNG") for mode in ("1", "L", "P", "LA", "RGB", "RGBA")}
    opacity = deep[..., :1][::-1]
    for channels in (1, 2, 3, 4):
        array = (
            deep[..., :channels]
            if channels in (1, 3)
            else np.concatenate((deep[..., : channels - 1], opacity), 2)
        )
        files[f"16x{channels}"] = bytes(imagecodecs.png_encode(np.ascontiguousarray(array)))
    return files


def jpegs() -> dict[str, bytes]:
    """JPEG files by a name of their layout."""
    image = Image.fromarray((picture() // 257).astype(np.uint8))
    files = {
        "444": _pil(image, "JPEG", quality=95, subsampling=0),
        "420": _pil(image, "JPEG", quality=90),
        "grey": _pil(image.convert("L"), "JPEG", quality=95),
        "progressive": _pil(image, "JPEG", quality=90, progressive=True),
        "restarts": _pil(image, "JPEG", quality=90, restart_marker_blocks=2),
    }
    return files | {f"{name}-open": data[:-2] for name, data in files.items()}


def pnms() -> dict[str, bytes]:
    """PGM and PPM files by a name of their layout."""
    deep, files = picture(), {}
    for largest in (1, 15, 100, 255, 1023, 65_535):
        for magic, array in ((5, deep[..., 0]), (6, deep)):
            scaled = (array.astype(np.uint32) * largest // 65_535).astype(
                ">u2" if largest > 255 else "u1"
            )
            header = f"P{magic}\n# a comment\n{WIDTH} {HEIGHT}\n{largest}\n".encode()
            files[f"P{magic}-{largest}"] = header + scaled.tobytes()
            plain = " ".join(map(str, scaled.reshape(-1).tolist()))
            files[f"P{magic - 3}-{largest}"] = (
                f"P{magic - 3}\n{WIDTH} {HEIGHT}\n{largest}\n{plain}\n".encode()
            )
    return files


def mutate_tiff(data: bytes, rng: np.random.Generator) -> bytes:
    """Change one or two fields of the directory (tag, type, count, value), or the bytes of the file's header."""
    file = bytearray(data)
    order = "<" if data[:2] == b"II" else ">"
    big = file[2 + (order == ">")] == 43
    start = struct.unpack_from(order + ("Q" if big else "I"), file, 8 if big else 4)[0]
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), file, start)
    entry, first = (20, start + 8) if big else (12, start + 2)
    for _ in range(rng.integers(1, 3)):
        if rng.random() < 0.1:
            file[rng.integers(2, 8)] = rng.integers(256)
            continue
        place = first + entry * int(rng.integers(count))
        tag, kind = struct.unpack_from(f"{order}HH", file, place)
        choice = rng.random()
        value = place + (12 if big else 8)
        if choice < 0.7:  # another value, mostly a small one that has a meaning for some tag
            number = int(
                rng.choice(
                    [0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32, 33, WIDTH // 2, HEIGHT // 2, 32773, 65535]
                )
            )
            struct.pack_into(f"{order}{'H' if kind == 3 else 'I'}", file, value, number)
        elif choice < 0.8:
            struct.pack_into(
                f"{order}H", file, place, int(rng.choice([tag + 1, tag - 1, 254, 266, 274, 338, 339]))
            )
        elif choice < 0.9:
            struct.pack_into(f"{order}H", file, place + 2, int(rng.integers(0, 14)))
        else:
            file[place + rng.integers(entry)] = rng.integers(256)
    return bytes(file)


def mutate_png(data: bytes, rng: np.random.Generator) -> bytes:
    """Change IHDR, drop, double or swap chunks, or overwrite bytes; checksums are right nine times of ten."""
    chunks, place = [], 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append([data[place + 4 : place + 8], bytearray(data[place + 8 : place + 8 + length])])
        place += 12 + length
    choice = rng.random()
    if choice < 0.6:
        header = chunks[0][1]
        where = int(rng.choice([3, 7, 8, 9, 10, 11, 12]))
        header[where] = int(
            rng.choice([0, 1, 2, 3, 4, 6, 8, 16, WIDTH // 2, HEIGHT // 2, rng.integers(256)])
        )
    elif choice < 0.7:
        chunks.pop(int(rng.integers(len(chunks))))
    elif choice < 0.8:
        chunks.insert(
            1, [b"tRNS", bytearray(rng.integers(0, 256, int(rng.choice([1, 2, 6, 7])), dtype=np.uint8))]
        )
    elif choice < 0.9:
        i, j = rng.integers(len(chunks), size=2)
        chunks[i], chunks[j] = chunks[j], chunks[i]
    else:
        body = chunks[int(rng.integers(len(chunks)))][1]
        if body:
            body[rng.integers(len(body))] = rng.integers(256)
    parts = [data[:8]]
    for kind, body in chunks:
        checksum = zlib.crc32(kind + body) if rng.random() < 0.97 else int(rng.integers(1 << 32))
        parts.append(struct.pack(">I", len(body)) + kind + bytes(body) + struct.pack(">I", checksum))
    file = b"".join(parts)
    return file[: int(rng.integers(len(file)))] if rng.random() < 0.1 else file


def mutate_jpeg(data: bytes, rng: np.random.Generator) -> bytes:
    """Overwrite bytes before the first scan, or cut the end."""
    file = bytearray(data)
    scan = data.index(b"\xff\xda")
    if rng.random() < 0.5:
        return data[: len(data) - int(rng.choice([1, 2, 3, 4, 5, 8, 16, 64, len(data) - scan - 20]))]
    for _ in range(rng.integers(1, 4)):
        file[rng.integers(2, scan + 14)] = rng.integers(256)
    return bytes(file)


def mutate_pnm(data: bytes, rng: np.random.Generator) -> bytes:
    """Overwrite or insert bytes of the header, or cut the end."""
    file = bytearray(data)
    choice = rng.random()
    if choice < 0.2:
        return data[: len(data) - int(rng.integers(1, 200))]
    alphabet = b"0123456789 \n#PX-."
    place = int(rng.integers(1, 28))
    if choice < 0.7:
        file[place] = alphabet[rng.integers(len(alphabet))]
    else:
        file.insert(place, alphabet[rng.integers(len(alphabet))])
    return bytes(file)


KINDS: dict[str, tuple[Callable[[], dict[str, bytes]], Mutate]] = {
    "tif": (tiffs, mutate_tiff),
    "png": (pngs, mutate_png),
    "jpg": (jpegs, mutate_jpeg),
    "pnm": (pnms, mutate_pnm),
}
"""Makers of files and mutations of their headers, by suffix."""
