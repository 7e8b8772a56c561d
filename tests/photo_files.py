"""Photo files for the tests of the command line and of the page."""

import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def noise(height: int = 24, width: int = 32, channels: int = 3) -> np.ndarray:
    """Random bytes (h, w, c)."""
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path: Path, array: np.ndarray | None = None, **options: object) -> Path:
    """An image file, and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise() if array is None else array).save(path, **options)
    return path


def files_in(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones too."""
    return sorted(
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()
    )


def claim(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes whose header promises so many pixels."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    chunks = (b"IHDR" + size + bytes([8, 2, 0, 0, 0]), b"IDAT" + zlib.compress(b"\0" * 99))
    framed = [(len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    return path


def write_bad_files(folder: Path) -> dict[str, str]:
    """Seven files that can't be restored -> a word of the reason."""
    (folder / "empty.png").write_bytes(b"")
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "JPEG")
    (folder / "half.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "text.png").write_text("no picture")
    claim(folder / "bomb.png", 60_000, 60_000)
    frames = [Image.fromarray(noise()) for _ in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(RNG.random((8, 8), dtype=np.float32)).save(folder / "floats.tif")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    return {
        "empty.png": "empty",
        "half.jpg": "cut off",
        "text.png": "not an image",
        "bomb.png": "60000x60000",
        "moving.gif": "animation",
        "floats.tif": "32-bit",
        "gone.png": "no such file",
    }
