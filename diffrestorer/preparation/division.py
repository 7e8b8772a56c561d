"""A preparation divided among machines: which shards a part makes, who holds it, and what a merge still lacks.

Machines share the prepared folder. Shards are dealt out to the parts in turn, and every shard has a record of its own,
so that parts never write the same file. The folder `.parts` holds their locks and says how the work is divided. Parts
hold the prepared folder together; a whole preparation and a merge hold it alone, from start to end. The merge checks
that every shard is there; what it does then is what one machine does that finds all shards made.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffrestorer.data.ownership import own_folder
from diffrestorer.data.storage import remove_unfinished, whole_file
from diffrestorer.preparation.shards import Group, Settings, group_record

PARTS = ".parts"
"""Folder of the locks and the division, below the prepared folder; it goes with the merge."""

MERGE = "merge"
"""Value of `shard=` that completes a preparation in parts."""

_NAMED = 8  # unfinished parts in a sentence


@dataclass(frozen=True)
class Part:
    """A part of a preparation.

    Attributes:
        index: its number, from 0.
        count: number of parts.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def select(self, shards: Sequence[Group]) -> list[Group]:
        """Return the part's shards: every `count`th, so that each part gets its share of every class."""
        return list(shards[self.index :: self.count])


def read_part(shard: str | None) -> Part | None:
    """Return the part that `shard=` names; None for a whole preparation and for a merge.

    Raises:
        ValueError: it names none.
    """
    if shard is None or shard == MERGE:
        return None
    index, _, count = shard.partition("/")
    numbers = index.isascii() and index.isdecimal() and count.isascii() and count.isdecimal()
    if not numbers or int(index) >= int(count):
        raise ValueError(
            f"shard={shard} is not a part: give 0/3, 1/3 and 2/3 for three parts, then merge, or null for one machine"
        )
    return Part(int(index), int(count))


def claim(out: Path, groups: Sequence[Group], settings: Settings, shard: str | None) -> bool:
    """Record what each group's folder holds and how the work is divided, and refuse what does not fit.

    Args:
        out: the prepared folder.
        groups: all that is prepared, whichever part makes it.
        settings: of the preparation.
        shard: see `PrepareConfig.shard`.

    Returns:
        Whether there are shards left to make.

    Raises:
        ValueError: a folder holds pairs of other files or settings; the work is divided otherwise; a merge comes before
            the parts have ended.
    """
    plans = {
        out / group.folder / "plan.json": json.dumps(group_record(group, settings)).encode()
        for group in groups
    }
    shards = [each for group in groups for each in group.shards(settings.size)]
    _refuse_other_plans(plans)

    # Where all is made, a part that runs again leaves nothing behind.
    missing = [each for each in shards if not _record_file(out, each).exists()]
    part = read_part(shard)
    if part is not None and not missing:
        return False

    # Parts that start together look and write in turn.
    if part is not None:
        with own_folder(out / PARTS, wait=math.inf):
            remove_unfinished(plans)
            _refuse_other_plans(plans)
            _divide(out, part, [group.folder for group in groups])
            _write_plans(plans)
        return True

    # One machine alone makes all, and a merge finds all made.
    if shard == MERGE and missing:
        _refuse_unfinished(out, shards, missing)
    if shard is None and (out / PARTS).exists():
        raise ValueError(
            f"{out} is being prepared in parts: give their shard=, then shard=merge, or remove {out / PARTS} once none "
            "of them runs to go on with one machine"
        )
    _write_plans(plans)
    return bool(missing)


@contextmanager
def own_prepared(out: Path, part: Part | None) -> Iterator[None]:
    """Hold the prepared folder while the context lasts: parts hold it together, anything else alone.

    Whoever holds it alone may remove what was left there: unfinished files, unpacked archives, the parts' locks.

    Args:
        out: the prepared folder; is made if there is none.
        part: None for a whole preparation and for a merge.

    Raises:
        ValueError: another process holds it; the message names that process.
    """
    shared = part is not None
    with own_folder(out, instead="choose another out", shared=shared, remove=True):
        yield


@contextmanager
def own_shards(out: Path, shards: Sequence[Group], part: Part | None) -> Iterator[list[Group]]:
    """Yield the shards that this process is to make, and hold them while the context lasts.

    What an interrupted run left half done of them is removed first; whole shards are kept.

    Args:
        out: the prepared folder.
        shards: of the whole preparation.
        part: None for all shards.

    Raises:
        ValueError: another process makes this part.
    """
    # The only one that holds the prepared folder removes whatever was left.
    if part is None:
        for pattern in ("pairs/*/*/*/.*.tmp", "pairs/*/*/*/*/.*.tmp", ".*.tmp"):
            for leftover in out.glob(pattern):
                leftover.unlink()
        yield list(shards)
        return

    # A part leaves alone what others are writing.
    folder = out / PARTS / f"{part.index}-of-{part.count}"
    with own_folder(folder, instead="start another part"):
        own = part.select(shards)
        remove_unfinished(file for shard in own for file in _files(out, shard))
        yield own


def _refuse_other_plans(plans: dict[Path, bytes]) -> None:
    """Refuse a folder that holds pairs of something else."""
    for file, record in plans.items():
        if file.exists() and file.read_bytes() != record:
            raise ValueError(
                f"{file.parent} holds pairs of other files or other settings; choose another out or remove it"
            )


def _write_plans(plans: dict[Path, bytes]) -> None:
    """Record what the folders are to hold."""
    for file, record in plans.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            with whole_file(file) as output:
                output.write(record)


def _divide(out: Path, part: Part, folders: list[str]) -> None:
    """Record how the work is divided, and refuse a part of another division."""
    file = out / PARTS / "division.json"
    if not file.exists():
        with whole_file(file) as output:
            output.write(json.dumps({"count": part.count, "folders": folders}).encode())
        return

    # The first part decided.
    division = json.loads(file.read_bytes())
    count = division["count"]
    if division["folders"] != folders:
        raise ValueError(
            f"{out} is being prepared in {count} parts of other sets or classes, such as {division['folders'][0]}: "
            "merge them first"
        )
    if count != part.count:
        raise ValueError(
            f"{out} is being prepared in {count} parts, and shard={part} is none of them: give shard=0/{count} to "
            f"{count - 1}/{count}, or remove {out / PARTS} once no part runs to divide the rest otherwise"
        )


def _refuse_unfinished(out: Path, shards: Sequence[Group], missing: Sequence[Group]) -> None:
    """Refuse a merge of shards that are not all there, naming the parts that lack some."""
    lacks = f"{out} lacks {len(missing):,} of {len(shards):,} shards"
    file = out / PARTS / "division.json"
    if not file.exists():
        raise ValueError(f"{lacks}, and no part has begun: give shard=0/N, 1/N, ... before shard=merge")

    # Missing shards by the part that makes them.
    absent = {_record_file(out, shard) for shard in missing}
    count = json.loads(file.read_bytes())["count"]
    lacking = []
    for index in range(count):
        part = Part(index, count)
        own = part.select(shards)
        left = sum(_record_file(out, shard) in absent for shard in own)
        if left:
            lacking.append(f"shard={part} has {left:,} of its {len(own):,} to make")

    # The first few say enough.
    further = len(lacking) - _NAMED
    more = f" and {further:,} more parts" if further > 0 else ""
    raise ValueError(
        f"{lacks}: {', '.join(lacking[:_NAMED])}{more}; wait for these parts or start them again, then give shard=merge"
    )


def _files(out: Path, shard: Group) -> Iterator[Path]:
    """Yield the files of a shard, some with another suffix than they have."""
    yield _record_file(out, shard)
    if shard.split != "train":
        for name in shard.names:
            yield out / shard.folder / "lq" / f"{name}.png"
            yield out / shard.folder / "gt" / f"{name}.png"


def _record_file(out: Path, shard: Group) -> Path:
    """Return the file with which a shard counts as made."""
    return out / shard.folder / f"{shard.first:05d}.json"
