"""Pairs of one's own: folders of degraded and clean images, matched by name and read as they are.

Two folders (`data.lq`, `data.gt`) are one class. A folder `data.root` with `NAME/lq/` and `NAME/gt/` is several.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from diffrestorer.config.classes import model_classes, trained_classes
from diffrestorer.config.degradations import CLEAN, check_class_names, degradation_index
from diffrestorer.config.schema import DataConfig
from diffrestorer.config.synthesis_ranges import Synthesis
from diffrestorer.config.view_ranges import Views
from diffrestorer.data.counter import counter_rng, shuffled
from diffrestorer.data.images import ImageError, find_images
from diffrestorer.data.order import BalancedOrder
from diffrestorer.data.pairs import Pair, augment, check_data
from diffrestorer.data.recent_photos import read_pixels
from diffrestorer.data.views import crop

OWN = "own"
"""Class of two folders whose class nobody names."""

SHOWN = 3
"""Files that a message names, at most."""

LAYOUT = "give data.lq=FOLDER data.gt=FOLDER, or data.root=FOLDER that holds NAME/lq/ and NAME/gt/"


@dataclass(frozen=True)
class FilePair:
    """A degraded and a clean image file of one class; `name` is what their names have in common."""

    degradation: str
    name: str
    lq: Path
    gt: Path


def find_pairs(
    root: str | None,
    lq: str | None,
    gt: str | None,
    degradation: str | None = None,
    lq_name: str = "{}",
    gt_name: str = "{}",
) -> list[FilePair]:
    """Return the pairs of two folders, or of every class in a folder, by class and then by name. No image is read.

    Args:
        root: folder with `NAME/lq/` and `NAME/gt/`.
        lq, gt: two folders, instead of `root`.
        degradation: class of the two folders; None: `own`.
        lq_name, gt_name: file names without their suffix, `{}` standing for what both have in common: `{}_lq`.

    Raises:
        ValueError: neither or both are given, a folder is missing or empty, a class cannot have its name, or a file has
            no partner or two.
    """
    # Which folders there are.
    if bool(root) == bool(lq or gt) or bool(lq) != bool(gt):
        raise ValueError(f"the folders of the pairs are not set, or set twice: {LAYOUT}")
    if root and degradation:
        raise ValueError(
            "data.degradation names the class of data.lq and data.gt; in data.root the folders do"
        )
    if root:
        folders = _class_folders(Path(root))
    else:
        folders = {degradation or OWN: (Path(str(lq)), Path(str(gt)))}
    check_class_names(list(folders), "data.degradation" if lq else f"the class of a folder in {root}")

    # Their files by name.
    found = []
    for name, (degraded, clean) in folders.items():
        files = [_by_name(folder, form) for folder, form in ((degraded, lq_name), (clean, gt_name))]
        _refuse_lonely(degraded, clean, *files)
        found += [FilePair(name, key, files[0][key], files[1][key]) for key in sorted(files[0])]
    return found


def found_classes(pairs: Sequence[FilePair]) -> list[str]:
    """Return the classes of pairs, each once, in their order."""
    return list(dict.fromkeys(pair.degradation for pair in pairs))


def _class_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the two folders of each class below `root`, in the order of the names."""
    if not root.is_dir():
        raise ValueError(f"data.root={root} is not a folder: {LAYOUT}")
    folders = {}
    for entry in sorted(root.iterdir()):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        parts = (entry / "lq", entry / "gt")
        missing = [part.name for part in parts if not part.is_dir()]
        if missing:
            raise ValueError(f"{entry} holds no folder {missing[0]}/: {LAYOUT}")
        folders[entry.name] = parts
    if not folders:
        raise ValueError(f"data.root={root} holds no folders of pairs: {LAYOUT}")
    return folders


def _by_name(folder: Path, form: str) -> dict[str, Path]:
    """Return the images of a folder by what their names, below it and without suffix, have in common with partners."""
    if form.count("{}") != 1 or "/" in form:
        raise ValueError(
            f"the pattern {form!r} of file names needs {{}} once, for what both names have in common"
        )
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: {LAYOUT}")
    before, after = form.split("{}")

    files: dict[str, Path] = {}
    for path in find_images(folder):
        stem = path.stem
        fits = stem.startswith(before) and stem.endswith(after) and len(stem) > len(before + after)
        if not fits:
            raise ValueError(
                f"{path} is not named {form}: rename it, or give data.lq_name and data.gt_name"
            )
        common = stem[len(before) : len(stem) - len(after)]
        key = path.relative_to(folder).with_name(common).as_posix()
        if key in files:
            raise ValueError(f"{files[key]} and {path} have one name: remove one of them")
        files[key] = path
    if not files:
        raise ValueError(f"{folder} holds no images (jpg, png, webp, ...)")
    return files


def _refuse_lonely(lq: Path, gt: Path, degraded: dict[str, Path], clean: dict[str, Path]) -> None:
    """Refuse files that lack a partner."""
    lonely = [degraded[name] for name in sorted(degraded.keys() - clean.keys())]
    lonely += [clean[name] for name in sorted(clean.keys() - degraded.keys())]
    if lonely:
        shown = ", ".join(map(str, lonely[:SHOWN])) + (", ..." if len(lonely) > SHOWN else "")
        raise ValueError(
            f"{len(lonely)} files in {lq} and {gt} have no partner of the same name ({shown}): add or remove them, or "
            "give data.lq_name={}_lq where names differ"
        )


class PairFolders(Dataset[Pair]):
    """Pairs of a user's own folders, cropped on the fly at one place in both images, mirrored half of the time.

    An epoch visits every pair once, in an order drawn from the seed; with `data.balance=classes` every class comes up
    equally often. Pairs of `clean` are those of a folder of that name; without one they are other pairs' clean images,
    as many as the other classes have on average.

    Args:
        config: folders, crop size and classes.
        seed: of the run.
        global_batch_size: samples per step over all processes.

    Raises:
        ValueError: as `find_pairs`; a class that is trained on has no pairs; or `config.synthesis` or a view other than
            `views.scale` is set, which would change nothing. An image that cannot be read, or differs in size from its
            partner, is an `ImageError` when its turn comes.
    """

    def __init__(self, config: DataConfig, seed: int, global_batch_size: int) -> None:
        check_data(config)
        if config.synthesis != Synthesis() or config.synthesis_module:
            raise ValueError(
                "data.synthesis and data.synthesis_module degrade photos; pairs of your own are degraded already"
            )
        if replace(config.views, scale=Views().scale) != Views():
            raise ValueError(
                "of data.views, pairs of your own know data.views.scale only: the others would change lq or gt"
            )
        self.size = config.size
        self.views = config.views
        self.augment = config.augment
        self.skip_unreadable = config.skip_unreadable
        self.seed = seed
        self.global_batch_size = global_batch_size

        # The pairs of the classes that are trained on.
        self.classes = model_classes(config)
        wanted = trained_classes(config)
        found = find_pairs(
            config.root, config.lq, config.gt, config.degradation, config.lq_name, config.gt_name
        )
        self.pairs = [pair for pair in found if pair.degradation in wanted]
        self.pairs += self._clean_pairs(wanted)
        there = found_classes(self.pairs)
        if missing := [name for name in wanted if name not in there]:
            raise ValueError(
                f"there are no pairs of {missing[0]}, only of {', '.join(found_classes(found))}: add them, or name the "
                "classes in data.classes or data.degradations"
            )

        # Equally often, or every pair once.
        self.balanced: BalancedOrder[str] | None = None
        if config.balance == "classes":
            self._by_class = {name: [p for p in self.pairs if p.degradation == name] for name in there}
            counts = {name: len(pairs) for name, pairs in self._by_class.items()}
            self.balanced = BalancedOrder(seed, counts, wanted)

        # Every file, by a name below one folder: the same pairs elsewhere are the same data.
        folders = [config.root] if config.root else [str(config.lq), str(config.gt)]
        self.root = Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
        files = {path for pair in self.pairs for path in (pair.lq, pair.gt)}
        self.paths = sorted(Path(os.path.abspath(file)) for file in files)

    def _clean_pairs(self, wanted: Sequence[str]) -> list[FilePair]:
        """Return pairs of `clean` made of other pairs' clean images, where it is wanted and has no folder."""
        others = found_classes(self.pairs)
        if CLEAN not in wanted or CLEAN in others or not others:
            return []
        count = round(len(self.pairs) / len(others))
        chosen = [self.pairs[shuffled(i, len(self.pairs), 0, CLEAN)] for i in range(count)]
        return [FilePair(CLEAN, pair.name, pair.gt, pair.gt) for pair in chosen]

    @cached_property
    def partners(self) -> dict[Path, Path]:
        """The clean image of each degraded one, by absolute paths."""
        return {Path(os.path.abspath(p.lq)): Path(os.path.abspath(p.gt)) for p in self.pairs}

    @property
    def num_fixed(self) -> int:
        """Number of pairs that `fixed` knows."""
        return len(self.pairs)

    def counts(self) -> dict[str, int]:
        """Return the number of pairs of each class."""
        return dict(Counter(pair.degradation for pair in self.pairs))

    def fingerprint(self) -> str:
        """Return a digest that changes when a file is added, removed, renamed or resized; no image is read."""
        digest = hashlib.sha256(" ".join(self.classes).encode())
        for pair in self.pairs:
            sizes = (pair.lq.stat().st_size, pair.gt.stat().st_size)
            digest.update(f"{pair.degradation} {pair.name} {sizes}\n".encode())
        return digest.hexdigest()

    def source(self, step: int, position: int) -> tuple[Path, str]:
        """Return the degraded image and the class of sample (step, position)."""
        pair = self._find(step, position)
        return pair.lq, pair.degradation

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        pair = self._pair(self._find(*key), *key)
        return augment(pair, self.seed) if self.augment else pair

    def fixed(self, index: int) -> Pair:
        """Return one pair of a set that no epoch reorders: the classes in turn, each in the order of its names."""
        groups = [
            [p for p in self.pairs if p.degradation == name] for name in found_classes(self.pairs)
        ]
        turns = max(len(group) for group in groups)
        in_turn = [group[turn] for turn in range(turns) for group in groups if turn < len(group)]
        return self._pair(in_turn[index], 0, index)

    def _find(self, step: int, position: int) -> FilePair:
        """Return the pair of sample (step, position)."""
        number = step * self.global_batch_size + position
        if self.balanced is not None:
            name, place = self.balanced(number)
            return self._by_class[name][place]
        epoch, place = divmod(number, len(self.pairs))
        return self.pairs[shuffled(place, len(self.pairs), self.seed, "order", epoch)]

    def _pair(self, files: FilePair, step: int, position: int) -> Pair:
        """Cut one square out of both images; the same generator draws it twice."""
        label = degradation_index(files.degradation, self.classes)
        lq, gt = (
            crop(image, self.size, self.views, counter_rng(self.seed, "crop", step, position))
            for image in self._read(files)
        )
        return Pair(lq, gt, label, step, position)

    def _read(self, files: FilePair) -> tuple[np.ndarray, np.ndarray]:
        """Return both images, or those of the next pair of the class if they cannot be read and may be skipped."""
        try:
            return self._read_both(files)
        except ImageError:
            if not self.skip_unreadable:
                raise
        same = [pair for pair in self.pairs if pair.degradation == files.degradation]
        place = same.index(files)
        for other in (*same[place + 1 :], *same[:place]):
            with suppress(ImageError):
                return self._read_both(other)
        raise ImageError(f"none of the pairs of {files.degradation} can be read")

    def _read_both(self, files: FilePair) -> tuple[np.ndarray, np.ndarray]:
        lq, gt = (read_pixels(path, self.size) for path in (files.lq, files.gt))
        if lq.shape != gt.shape:
            raise ImageError(f"{files.lq}: {differing_sizes(lq.shape, gt.shape, files.gt)}")
        return lq, gt


def differing_sizes(lq: Sequence[int], gt: Sequence[int], partner: Path) -> str:
    """Return the sentence about a pair whose images differ in size.

    Args:
        lq, gt: shapes (h, w, ...).
        partner: the clean image.
    """
    return f"it is {lq[1]}x{lq[0]} pixels, its partner {partner} is {gt[1]}x{gt[0]}"
