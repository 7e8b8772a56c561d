"""The file of a training shard while it is made: a raw array that is mapped into memory, or compressed pairs."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from diffrestorer.data.compressed_shard import SUFFIX, shard_writer
from diffrestorer.data.storage import whole_file

RAW = "none"
"""The value of `compress` for raw arrays."""

_EXPECTED_SHARE = {RAW: 1.0, "zstd": 0.5, "webp": 0.45}
"""Size beside raw pixels that disks are planned with: what was measured (see data/pair_codecs.py) and some more."""


def expected_bytes(num_images: int, size: int, split: str, compress: str) -> int:
    """Return about how much disk images take. Test images are never compressed."""
    share = _EXPECTED_SHARE[compress if split == "train" else RAW]
    return math.ceil(num_images * size * size * 3 * share)


def shard_name(first: int, compress: str) -> str:
    """Return the file name of the shard whose first pair has this place in its group."""
    return f"{first:05d}{'.npy' if compress == RAW else SUFFIX}"


@contextmanager
def write_shard(
    path: Path, shape: tuple[int, ...], compress: str
) -> Iterator[Callable[[int, np.ndarray], None]]:
    """Yield a function that writes the pixels of one pair, uint8 (2, 3, size, size), to its row.

    Rows are written in order. A row that is left out stays empty. The file appears when the block ends.

    Args:
        path: of the file.
        shape: (pairs, 2, 3, size, size).
        compress: a codec, or `none`.
    """
    with whole_file(path) as file:
        if compress != RAW:
            with shard_writer(file, compress, shape) as writer:
                yield writer.write
            return

        # An array whose rows lie where their numbers say.
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()

        def write(row: int, pixels: np.ndarray) -> None:
            file.seek(start + row * pixels.nbytes)
            file.write(pixels.data)

        yield write
        file.truncate(start + math.prod(shape))
