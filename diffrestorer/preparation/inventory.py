"""The part of the catalog that is on disk: files paired by name, counted, compared with the published numbers."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from diffrestorer.config.degradations import CLEAN, DEGRADATIONS, MIXTURES, degradation_steps
from diffrestorer.data.images import find_images
from diffrestorer.data.manifest import CleanImage
from diffrestorer.data.pair_folders import find_pairs, found_classes
from diffrestorer.data.storage import is_special, open_regular
from diffrestorer.preparation.catalog import CATALOG, DataSet, Part, Product

PAIRS = "pairs"
"""The set of a user's own pairs."""


@dataclass(frozen=True)
class Source:
    """The files of a pair; one is None where the set has no such image. `name` is unique within its part."""

    name: str
    lq: Path | None
    gt: Path | None

    @property
    def reference(self) -> Path:
        """The clean image, or the degraded one if there is none."""
        path = self.gt or self.lq
        assert path is not None
        return path


@dataclass(frozen=True)
class Found:
    """A part of a set and what is there of it.

    Attributes:
        pairs: in the order of their names; none where the part is missing.
        unpaired: files without partner, with the reason.
        left_out: pairs that are not taken because their scene is in the test part (`Part.apart_from`).
    """

    set: str
    part: Part
    pairs: tuple[Source, ...]
    unpaired: tuple[str, ...] = ()
    left_out: int = 0


def choose(names: str) -> Sequence[DataSet]:
    """Return the sets that `set=` names: one, or `all`."""
    return list(CATALOG.values()) if names == "all" else [CATALOG[names]]


def take(sets: Iterable[DataSet], files: dict[str, Path], haze: str) -> list[Found]:
    """Pair the files of each set by name; return a `Found` for every part, even one without a file.

    Args:
        files: of `diffrestorer.data.storage.list_files`.
        haze: which of RESIDE's two training parts counts.

    Raises:
        ValueError: two files are the same image of one part (a set that is there twice).
    """
    unused = {"OTS", "ITS"} - {haze}
    found = []
    for entry in sets:
        for part in (part for part in entry.parts if part.name not in unused):
            test = next((other for other in entry.parts if other.name == part.apart_from), None)
            kept_for_test = {
                key for name in files if test and (key := test.key("lq", name)) is not None
            }
            found.append(_pair(entry.name, part, files, kept_for_test))
    return found


def _pair(set_name: str, part: Part, files: dict[str, Path], kept_for_test: set[str]) -> Found:
    """Pair the files of one part by their keys, and leave out scenes that are kept for the test."""
    # Files by their key. A set that is there twice would give each image two partners.
    lq: dict[str, list[Source]] = defaultdict(list)
    gt: dict[str, Source] = {}
    seen: dict[tuple[str, str], str] = {}
    for file, path in sorted(files.items()):
        kind = next((kind for kind in ("lq", "gt") if part.key(kind, file) is not None), None)
        if kind is None:
            continue
        key = part.key(kind, file) or ""
        scene = key.rpartition("/")[0]
        name = "_".join(filter(None, (scene, path.stem)))
        other = seen.setdefault((kind, name.lower() if kind == "lq" else key), file)
        if other != file:
            raise ValueError(
                f"{set_name} is there twice: {other} and {file} are the same image; remove one"
            )
        if kind == "lq":
            lq[key].append(Source(name, path, None))
        else:
            gt[key] = Source(name, None, path)

    # Degraded and clean images with one key are a pair.
    unpaired: list[str] = []
    if part.lq is None:
        pairs = list(gt.values())
    elif part.gt is None:
        pairs = [source for sources in lq.values() for source in sources]
    else:
        pairs = [replace(source, gt=gt[key].gt) for key in lq.keys() & gt.keys() for source in lq[key]]
        unpaired = [
            f"{source.lq} has no clean partner" for key in lq.keys() - gt.keys() for source in lq[key]
        ]
        unpaired += [f"{gt[key].gt} has no degraded partner" for key in gt.keys() - lq.keys()]

    # Scenes of the test part must not be trained on.
    scenes = {source.name for key in kept_for_test for source in lq.get(key, ())}
    kept = sorted((pair for pair in pairs if pair.name not in scenes), key=lambda pair: pair.name)
    return Found(set_name, part, tuple(kept), tuple(sorted(unpaired)), len(pairs) - len(kept))


def take_photos(root: Path, split: str, clean: bool = False) -> Found:
    """Return a folder of clean photos as a set of its own: for training all classes, for a test the mixtures too.

    Args:
        clean: whether it also makes pairs of `clean`, the photo itself twice.

    Raises:
        ValueError: it is no folder or holds no image.
    """
    if not root.is_dir():
        raise ValueError(f"root={root} is not a folder of photos")
    paths = find_images(root)
    if special := next((path for path in paths if is_special(path)), None):
        raise ValueError(f"{special} is not a regular file; remove it")
    if not paths:
        raise ValueError(f"root={root} holds no images (jpg, png, webp, ...)")

    # Every photo makes a pair of each class, and in a test of each mixture.
    names = DEGRADATIONS if split == "train" else (*DEGRADATIONS, *MIXTURES)
    names = (*names, CLEAN) if clean else names
    products = tuple(Product(name, degradation_steps(name)) for name in names)
    part = Part("photos", split, len(paths), products, "*.jpg")
    sources = (Source(path.relative_to(root).with_suffix("").as_posix(), None, path) for path in paths)
    return Found("photos", part, tuple(sources))


def take_pairs(root: str, split: str, lq_name: str, gt_name: str) -> list[Found]:
    """Return a user's folders of pairs, NAME/lq/ and NAME/gt/, as one set with a part per class.

    Raises:
        ValueError: as `find_pairs`.
    """
    pairs = find_pairs(root, None, None, None, lq_name, gt_name)
    found = []
    for name in found_classes(pairs):
        own = [pair for pair in pairs if pair.degradation == name]
        sources = tuple(Source(f"{name}/{pair.name}", pair.lq, pair.gt) for pair in own)
        part = Part(name, split, len(own), (Product(name),), f"{name}/lq/*, {name}/gt/*")
        found.append(Found(PAIRS, part, sources))
    return found


def count_table(found: Iterable[Found]) -> Table:
    """Tabulate pairs found, published, without partner, and left out because their scene is in the test."""
    table = Table("set", "part", "split", "pairs", "published", "differ", "unpaired", "in test")
    for entry in found:
        count, published = len(entry.pairs), entry.part.published
        difference = "" if count == published else f"{count - published:+,}"
        others = (f"{number:,}" if number else "" for number in (len(entry.unpaired), entry.left_out))
        table.add_row(
            entry.set,
            entry.part.name,
            entry.part.split,
            f"{count:,}",
            f"{published:,}",
            difference,
            *others,
        )
    return table


def refuse_unwritable_names(found: Sequence[Found]) -> None:
    """Refuse images whose names cannot be recorded.

    Raises:
        ValueError: names are not UTF-8; how many and the first one.
    """
    names = [source.name for entry in found for source in entry.pairs]
    unwritable = [name for name in names if name != name.encode(errors="ignore").decode()]
    if unwritable:
        raise ValueError(
            f"{len(unwritable):,} images have names that are not UTF-8, such as {unwritable[0]!a}: rename them"
        )


def refuse_incomplete(found: Sequence[Found], allow_incomplete: bool) -> None:
    """Refuse sets that are missing and files without partner, unless they are allowed.

    Raises:
        ValueError: naming the parts, or the number of files and the first ones.
    """
    missing = [entry for entry in found if not entry.pairs]
    if missing and (not allow_incomplete or len(missing) == len(found)):
        names = "; ".join(f"{entry.set}: {entry.part.name} ({entry.part.layout})" for entry in missing)
        further = (
            "" if len(missing) == len(found) else "; allow_incomplete=true goes on with what is there"
        )
        raise ValueError(f"no pairs found of {names}{further}")

    # Files without partner hint at an archive that was unpacked in part.
    unpaired = [reason for entry in found for reason in entry.unpaired]
    if unpaired and not allow_incomplete:
        raise ValueError(
            f"{len(unpaired):,} files lack their partner, as in a half-unpacked archive: {'; '.join(unpaired[:5])}; "
            "allow_incomplete=true leaves them out"
        )


def refuse_leakage(found: Iterable[Found], prepared: Iterable[CleanImage]) -> int:
    """Refuse a clean image that is in training and in test, here or in the folder that is being filled.

    Files are equal where their contents are; the same picture encoded anew is not recognised.

    Args:
        prepared: clean images of the pairs that the folder holds already.

    Returns:
        The number of images here that are there under a second name within training or test.

    Raises:
        ValueError: naming the first two files with equal contents.
    """
    # Only images of one size in bytes can be equal, so few are read.
    before: dict[int, list[CleanImage]] = defaultdict(list)
    for image in prepared:
        before[image.size].append(image)
    here: dict[int, dict[Path, str]] = defaultdict(dict)
    for entry in found:
        for pair in entry.pairs:
            here[pair.reference.stat().st_size][pair.reference] = entry.part.split

    # Equal contents on both sides of the split are refused, on one side counted.
    repeated = 0
    for size, paths in here.items():
        if len(paths) + len(before[size]) < 2:
            continue
        seen = {image.sha256: (image.name, image.split, False) for image in before[size]}
        for path, split in paths.items():
            digest = file_hash(path)
            other, other_split, is_here = seen.get(digest, (str(path), split, False))
            if (split == "train") != (other_split == "train"):
                raise ValueError(
                    f"training and test overlap: {other} ({other_split}) and {path} ({split}) are the same image; "
                    "scores on it would say nothing, so remove one"
                )
            repeated += is_here
            seen[digest] = (str(path), split, True)
    return repeated


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
