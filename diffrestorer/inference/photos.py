"""Photos through the pipeline, for the command line and the web page. Imports torch when it is used."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffrestorer.config.degradations import CLEAN
from diffrestorer.config.installation import check_torchvision
from diffrestorer.data.images import ImageError, Photo, read_photo
from diffrestorer.inference.choices import THRESHOLD, Decoder, Precision, Tile
from diffrestorer.inference.memory import free_memory

LARGEST_PHOTO = 200_000_000  # pixels, width x height; a larger one is refused by its header
DECODE_BYTES = 64  # per pixel: its file, the decoded and the float image, with a margin
CANVAS_BYTES = 64  # per pixel, whatever the tiles; measured: 57
RESTORE_BYTES = (
    28  # per pixel and channel of the VAE's widest full-size features; measured: 23 (mini) to 26 (sd15)
)
SMALLER_TILES = (512, 256)  # sides in pixels, where memory does not suffice for the usual ones


@dataclass(frozen=True)
class Options:
    """Arguments of `DiffRestorerPipeline.__call__`, and the seed of each photo's noise."""

    steps: int | None = None
    """None: as many as the model folder asks for."""
    seed: int = 0
    decoder: Decoder = "refined"
    fidelity: float = 1.0
    degradation: str | None = None
    tile: Tile = "auto"
    threshold: float = THRESHOLD


@dataclass(frozen=True)
class Restored:
    """A restored photo with the depth, alpha and profile of the degraded one, and the probabilities detected in it."""

    photo: Photo
    degradations: dict[str, float]


def load_pipeline(model: str, device: str, precision: Precision = "auto", compile: bool = False) -> Any:
    """Load a DiffRestorerPipeline onto a device; libraries keep quiet.

    Args:
        device: `auto` is a GPU if there is one, else the CPU.
        compile: whether the denoising networks run through torch.compile.

    Raises:
        ValueError: the device can't be used, the model can't be loaded, or torchvision is another PyTorch's.
    """
    check_torchvision()

    import torch
    from diffusers.utils import logging as diffusers_logging

    from diffrestorer.inference.devices import choose_dtype, find_device
    from diffrestorer.inference.pipeline import DiffRestorerPipeline

    # Refuse a device or a model in one sentence.
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        target = find_device(device)
        torch.zeros(1, device=target).item()
    except Exception as error:  # torch raises several kinds, with hints for its developers
        raise ValueError(
            f"device {device!r} can't be used on this machine; try --device cpu"
        ) from error
    try:
        pipe = DiffRestorerPipeline.from_pretrained(model)
    except Exception as error:  # a ModelFolderError, or what only the loading of a whole model finds
        raise ValueError(f"the model {model!r} can't be loaded: {reason(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.prepare(target, choose_dtype(precision, target), compile)


def check_options(pipe: Any, options: Options) -> Options:
    """Return the options with the steps that the model takes; refuse what it can't do, before anything is read.

    Raises:
        ValueError: `options.degradation` is none of the model's classes, the model holds no prototype of it, or its
            scheduler can't sample in `options.steps` steps.
    """
    steps = pipe.choose_steps(options.steps)
    if options.degradation is not None:
        pipe.prompt_processor.prototype(options.degradation)
    return replace(options, steps=steps)


def read(path: str | Path, max_pixels: int = LARGEST_PHOTO) -> Photo:
    """Read a photo of at most `max_pixels` that memory can hold.

    Raises:
        ImageError: it can't be read, or is too large.
    """
    return read_photo(path, min(max_pixels, free_memory() // DECODE_BYTES))


def detect(pipe: Any, photo: Photo) -> dict[str, float]:
    """Return the probability of each of the model's classes."""
    return _by_name(pipe, pipe.detect(photo.pixels)[0])


def is_clear(degradations: Mapping[str, float], threshold: float) -> bool:
    """Tell whether any degradation is as probable as `threshold`; the class `clean` is none.

    Args:
        degradations: class -> probability.
        threshold: from 0 to 1.
    """
    return any(p >= threshold for name, p in degradations.items() if name != CLEAN)


def restore(
    pipe: Any, photos: Sequence[Photo], options: Options, on_step: Callable[[int], object] | None = None
) -> list[Restored]:
    """Restore photos of one size as one batch; each has its own generator, so that company changes nothing.

    Args:
        on_step: called after every denoising step with the number of photos it was a step of.

    Raises:
        ImageError: memory falls short, or the model returns invalid numbers.
        Exception: networks fail in many ways; see `reason`.
    """
    from torch import Generator

    # Each photo starts from the noise of its own generator.
    tile, tile_batch_size = _tiles_that_fit(pipe, photos, options.tile)
    result = pipe(
        [photo.pixels for photo in photos],
        num_inference_steps=options.steps,
        generator=[Generator().manual_seed(options.seed) for _ in photos],
        decoder=options.decoder,
        fidelity=options.fidelity,
        output_type="np",
        degradation=options.degradation,
        threshold=options.threshold,
        tile=tile,
        tile_batch_size=tile_batch_size,
        on_step=on_step,
    )

    # Back to the integers of the photo's file, in place: a large image is held once.
    restored = []
    for photo, image, row in zip(photos, result.images, result.degradation_probabilities, strict=True):
        if not np.isfinite(image).all():
            raise ImageError("the model turned it into invalid numbers")
        kind = photo.pixels.dtype
        np.multiply(image, np.iinfo(kind).max, out=image)
        pixels = image.round(out=image).astype(kind)
        restored.append(Restored(replace(photo, pixels=pixels), _by_name(pipe, row)))
    return restored


def reason(error: Exception) -> str:
    """Return a failure as one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    full = (
        isinstance(error, MemoryError)
        or "out of memory" in line.lower()
        or "can't allocate memory" in line
    )
    return "there is not enough memory for it" if full else line


def printable(path: str | Path) -> str:
    """Return a path as one line of valid text, whatever bytes are in it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in os.fspath(path))


def _tiles_that_fit(pipe: Any, photos: Sequence[Photo], tile: Tile) -> tuple[Tile, int | None]:
    """Return the tile to use, and how many at a time: where `auto` is too large, a smaller one, one by one.

    A GPU says when it is full, and the pipeline tries smaller tiles then; here the system would kill the process.

    Raises:
        ImageError: memory falls short.
    """
    if pipe.device.type != "cpu":
        return tile, None
    choices: list[tuple[Tile, int | None]] = [(tile, None)]
    if tile == "auto" and len(photos) == 1:
        choices += [(side, 1) for side in SMALLER_TILES]
    free = int(0.8 * free_memory())
    needs = [_memory_needed(pipe, photos, *choice) for choice in choices]
    for choice, need in zip(choices, needs, strict=True):
        if need <= free:
            return choice
    raise ImageError(
        f"restoring it takes about {min(needs) / 1e6:.0f} MB of memory, {free / 1e6:.0f} MB are free"
    )


def _memory_needed(pipe: Any, photos: Sequence[Photo], tile: Tile, tile_batch_size: int | None) -> int:
    """Return the bytes that restoring photos of one size takes at its peak, roughly."""
    from diffrestorer.inference.tiling import WHOLE_PIXELS, tile_side

    height, width = photos[0].pixels.shape[:2]
    side, size = tile_side(tile, height, width, 1), len(photos) * height * width
    # Photos that need tiles go one by one, their tiles in batches of 1024x1024 pixels; overlaps make them up to twice.
    batch = (
        0
        if side is None
        else tile_batch_size * side**2
        if tile_batch_size
        else max(side**2, WHOLE_PIXELS)
    )
    at_once = size if side is None else min(2 * height * width, batch)
    return at_once * RESTORE_BYTES * int(pipe.vae.config.block_out_channels[1]) + size * CANVAS_BYTES


def _by_name(pipe: Any, row: Any) -> dict[str, float]:
    return dict(zip(pipe.classes, row.tolist(), strict=True))
