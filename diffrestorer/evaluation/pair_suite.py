"""The suite of a user's own pairs: folders matched by name, or the test pairs of a folder that was prepared of them."""

from pathlib import Path

import numpy as np

from diffrestorer.config.evaluating import TestDataConfig
from diffrestorer.data.images import ImageError, read_photo
from diffrestorer.data.manifest import list_test_pairs
from diffrestorer.data.pair_folders import FilePair, differing_sizes, find_pairs, found_classes
from diffrestorer.data.prepared import is_prepared
from diffrestorer.evaluation.suites import PAIRS, Item, Suite, write_pixels
from diffrestorer.preparation.shards import test_names


def own_suite(data: TestDataConfig, folder: Path, images: int | None) -> Suite:
    """Build the suite `pairs`.

    Args:
        data: the folders of the pairs, or a prepared folder.
        folder: gets the pairs of folders as upright 8-bit PNG, where they are missing: every method is given the same.
        images: number of pairs of each class, the first by name; None for all.

    Raises:
        ValueError: as `find_pairs`; an image cannot be read or differs in size from its partner.
    """
    note = (
        ""
        if images is None
        else f"Measured on the first {images} pairs of each class, not on all of them."
    )
    if is_prepared(data.root):
        return Suite(PAIRS, tuple(_prepared_items(Path(str(data.root)), images)), note)

    found = find_pairs(data.root, data.lq, data.gt, data.degradation, data.lq_name, data.gt_name)
    items = []
    for name in found_classes(found):
        own = [pair for pair in found if pair.degradation == name][:images]
        names = test_names([pair.name for pair in own])
        items += [_item(pair, image, folder) for pair, image in zip(own, names, strict=True)]
    return Suite(PAIRS, tuple(items), note)


def _prepared_items(root: Path, images: int | None) -> list[Item]:
    items = []
    for (name, degradation), pairs in list_test_pairs(root).items():
        if name == PAIRS:
            items += [Item(PAIRS, degradation, p.name, p.lq, p.gt) for p in pairs[:images]]
    if not items:
        raise ValueError(
            f"{root} has no test pairs of your own: diffrestorer prepare set=pairs split=test root=FOLDER out={root}"
        )
    return items


def _item(pair: FilePair, name: str, folder: Path) -> Item:
    """Write a pair as PNG files of a name, and return it."""
    lq, gt = _read(pair.lq), _read(pair.gt)
    if lq.shape != gt.shape:
        raise ValueError(f"{pair.lq}: {differing_sizes(lq.shape, gt.shape, pair.gt)}")

    # One folder per class, whatever folders the files lie in.
    files = {}
    for side, pixels in (("lq", lq), ("gt", gt)):
        files[side] = folder / side / pair.degradation / f"{name}.png"
        write_pixels(files[side], pixels)
    return Item(PAIRS, pair.degradation, name, files["lq"], files["gt"])


def _read(path: Path) -> np.ndarray:
    """Read an image's 8-bit pixels (h, w, 3)."""
    try:
        pixels = read_photo(path).pixels
    except ImageError as error:
        raise ValueError(f"{path}: {error}") from None
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
