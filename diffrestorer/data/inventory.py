"""What of the catalog is on disk: files found, paired by name, counted, compared with the published numbers."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from diffrestorer.data.archives import is_archive, unpack
from diffrestorer.data.catalog import CATALOG, DataSet, Part
from diffrestorer.data.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Source:
    """A pair of files; one is None where the set has no such image. `key` names it within its part, for good."""

    key: str
    lq: Path | None
    gt: Path | None

    @property
    def reference(self) -> Path:
        """The clean image, or the degraded one where there is none."""
        path = self.gt or self.lq
        assert path is not None
        return path


@dataclass(frozen=True)
class Found:
    """A part and its pairs in the order of their keys; `unpaired` names files without partner, with the reason."""

    set: str
    part: Part
    pairs: tuple[Source, ...]
    unpaired: tuple[str, ...] = ()


@dataclass
class Inventory:
    """What `take` found: a `Found` for every part asked for, also where it has no file."""

    found: list[Found] = field(default_factory=list)

    def table(self) -> Table:
        """Pairs found beside those published."""
        table = Table("set", "part", "split", "pairs", "published", "difference", "without partner")
        for entry in self.found:
            count, published = len(entry.pairs), entry.part.published
            difference = "" if count == published else f"{count - published:+,}"
            unpaired = f"{len(entry.unpaired):,}" if entry.unpaired else ""
            shown = (f"{count:,}", f"{published:,}", difference, unpaired)
            table.add_row(entry.set, entry.part.name, entry.part.split, *shown)
        return table


def list_files(root: Path, unpacked: Path) -> dict[str, Path]:
    """Every image below `root` and in the archives there, by its POSIX path, which starts with the name of `root`.

    Args:
        root: a folder or an archive.
        unpacked: where archives are unpacked, also those inside one another.

    Raises:
        ValueError: `root` is missing or can't be listed; an archive is damaged or unsafe.
    """
    if not root.exists():
        raise ValueError(f"root={root} does not exist; give the folder (or the archive) of the downloads")
    if root.is_file():
        if not is_archive(root):
            raise ValueError(f"root={root} is neither a folder nor a .zip or .tar archive")
        folder = unpack(root, unpacked)
        return {f"{root.name.partition('.')[0]}/{name}": path for name, path in _walk(folder, unpacked).items()}
    return {f"{root.resolve().name}/{name}": path for name, path in _walk(root, unpacked).items()}


def _walk(folder: Path, unpacked: Path) -> dict[str, Path]:
    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be listed ({error.strerror})") from error

    files: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder, onerror=refuse):
        inside = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        folders[:] = [name for name in inside if Path(parent, name).resolve() != unpacked.parent.resolve()]
        for name in sorted(names):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if name.startswith("."):
                continue
            if is_archive(path):
                stem = relative[: -len("".join(path.suffixes[-2:]) if ".tar" in name.lower() else path.suffix)]
                members = _walk(unpack(path, unpacked), unpacked)
                files |= {f"{stem}/{member}": file for member, file in members.items()}
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                files[relative] = path
    return files


def take(sets: Iterable[DataSet], files: dict[str, Path], haze: str = "OTS") -> Inventory:
    """Pairs the files of each set by name.

    Args:
        files: of `list_files`.
        haze: which of RESIDE's two training parts counts.

    Raises:
        ValueError: two files are the same image of one part (a set that is there twice).
    """
    skipped = {"OTS", "ITS"} - {haze}
    parts = [(entry.name, part) for entry in sets for part in entry.parts if part.name not in skipped]
    return Inventory([_pair(name, part, files) for name, part in parts])


def _pair(set_name: str, part: Part, files: dict[str, Path]) -> Found:
    lq: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    gt: dict[str, tuple[str, Path]] = {}
    seen: dict[str, str] = {}
    for name, path in sorted(files.items()):
        if (key := part.key("lq", name)) is not None:
            identity = f"{key}:{Path(name).stem.lower()}"
            _refuse_twice(set_name, seen, identity, name)
            lq[key].append((identity, path))
        elif (key := part.key("gt", name)) is not None:
            _refuse_twice(set_name, seen, f"gt:{key}", name)
            gt[key] = (name, path)
    if part.lq is None:
        pairs = [Source(key, None, path) for key, (_, path) in gt.items()]
    elif part.gt is None:
        pairs = [Source(identity, path, None) for entries in lq.values() for identity, path in entries]
    else:
        pairs = [
            Source(identity, path, gt[key][1]) for key, entries in lq.items() if key in gt for identity, path in entries
        ]
    unpaired = []
    if part.lq is not None and part.gt is not None:
        unpaired += [f"{path} has no clean partner" for key in lq if key not in gt for _, path in lq[key]]
        unpaired += [f"{path} has no degraded partner" for key, (_, path) in gt.items() if key not in lq]
    return Found(set_name, part, tuple(sorted(pairs, key=lambda pair: pair.key)), tuple(unpaired))


def _refuse_twice(set_name: str, seen: dict[str, str], identity: str, name: str) -> None:
    if identity in seen:
        raise ValueError(f"{set_name} is there twice: {seen[identity]} and {name} are the same image; remove one")
    seen[identity] = name


def refuse_incomplete(inventory: Inventory, allow_incomplete: bool) -> None:
    """Refuses sets that are missing and files without partner, unless they are allowed.

    Raises:
        ValueError: naming the parts, or the number of files and the first ones.
    """
    missing = [entry for entry in inventory.found if not entry.pairs]
    if missing and (not allow_incomplete or len(missing) == len(inventory.found)):
        names = "; ".join(f"{entry.set}: {entry.part.name} ({entry.part.layout})" for entry in missing)
        raise ValueError(f"no pairs found of {names}; allow_incomplete=true goes on with what is there")
    unpaired = [reason for entry in inventory.found for reason in entry.unpaired]
    if unpaired and not allow_incomplete:
        raise ValueError(
            f"{len(unpaired):,} files lack their partner, as in a half-unpacked archive: {'; '.join(unpaired[:5])}; "
            "allow_incomplete=true leaves them out"
        )


def refuse_leakage(inventory: Inventory) -> int:
    """Refuses a clean image that is in training and in test.

    Returns:
        The number of images that are there under a second name within one split.

    Raises:
        ValueError: naming the first two files with equal contents.
    """
    by_size: dict[int, dict[Path, str]] = defaultdict(dict)
    for entry in inventory.found:
        for pair in entry.pairs:
            by_size[pair.reference.stat().st_size][pair.reference] = "train" if entry.part.split == "train" else "test"
    repeated = 0
    for same_size in by_size.values():
        if len(same_size) < 2:
            continue
        seen: dict[bytes, tuple[Path, str]] = {}
        for path, split in same_size.items():
            digest = hashlib.sha256(path.read_bytes()).digest()
            other, other_split = seen.setdefault(digest, (path, split))
            if other_split != split:
                raise ValueError(
                    f"training and test overlap: {other} ({other_split}) and {path} ({split}) are the same image; "
                    "scores on it would say nothing"
                )
            repeated += other != path
    return repeated


def choose(names: str) -> Sequence[DataSet]:
    """The sets that `set=` names: one, or `all`."""
    return list(CATALOG.values()) if names == "all" else [CATALOG[names]]
