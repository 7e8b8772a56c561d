"""From downloads to verified pairs on disk: find, validate, plan, make in parallel, write the manifest."""

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffrestorer.config.degradations import CLEAN, DEGRADATIONS, MIXTURES, nearest
from diffrestorer.config.schema import PrepareConfig
from diffrestorer.config.synthesis_presets import refuse_held_out
from diffrestorer.data.compressed_shard import SUFFIX
from diffrestorer.data.manifest import MANIFEST, clean_images, read_batches, verify, write_manifest
from diffrestorer.data.remote import is_remote
from diffrestorer.data.storage import NO_SPACE, free_bytes, write_text
from diffrestorer.preparation import open_photos
from diffrestorer.preparation.archives import list_files
from diffrestorer.preparation.catalog import CATALOG, page, training_share
from diffrestorer.preparation.division import PARTS, claim, own_prepared, own_shards, read_part
from diffrestorer.preparation.inventory import (
    PAIRS,
    Found,
    Source,
    choose,
    count_table,
    refuse_incomplete,
    refuse_leakage,
    refuse_unwritable_names,
    take,
    take_pairs,
    take_photos,
)
from diffrestorer.preparation.shard_files import expected_bytes
from diffrestorer.preparation.shards import (
    Group,
    Problems,
    Settings,
    file_names,
    inspect,
    make_shard,
    plan,
)
from diffrestorer.preparation.workers import run_all

BUDGET = 10_000
"""Training pairs per class (the paper, section IV-A)."""

_UNPACKED = ".unpacked"
_INSPECTED_AT_ONCE = 64


def prepare(config: PrepareConfig) -> None:
    """Run `scripts/prepare_data.py`; see configs/prepare_data.yaml.

    Raises:
        ValueError: a set is missing, incomplete or overlaps with the test images; an image is unreadable; the disk is
            too small; `out` holds pairs made with other settings; `--check` found damage.
    """
    console = Console(stderr=True, markup=False)  # names may have brackets
    _check_config(config)

    # --check changes nothing; anything else fills a folder.
    if config.check:
        return _check(config, console)
    if config.out is None:
        raise ValueError("out is not set: give out=FOLDER for the prepared pairs")
    out = Path(config.out)
    try:
        if config.set == "readme":
            write_text(out / "README.md", page())
        elif config.set == "open_photos":
            console.print(open_photos.write(config.root, out), soft_wrap=True)
        else:
            with own_prepared(out, read_part(config.shard)):
                _make(config, out, console)
    except OSError as error:
        raise ValueError(_explain(error, out)) from None
    except KeyboardInterrupt:
        console.print("stopped; nothing is lost: the same command goes on")
        raise SystemExit(130) from None  # as after any Ctrl-C


def _check_config(config: PrepareConfig) -> None:
    """Refuse values that no preparation can use."""
    # Values by themselves.
    names = (*CATALOG, "all", "photos", PAIRS, "open_photos", "readme")
    if config.set not in names:
        raise ValueError(f"set={config.set} does not exist; choose one of {', '.join(names)}")
    if config.size < 8 or config.size % 8:
        raise ValueError(f"size={config.size} is not a multiple of 8, which the VAE divides by")
    if config.budget is not None and config.budget < 1:
        raise ValueError(f"budget={config.budget} is not a number of pairs")
    if config.num_workers is not None and config.num_workers < 1:
        raise ValueError(f"num_workers={config.num_workers} is not a number of processes")
    if config.split == "train":
        refuse_held_out(config.synthesis, "synthesis")
    if config.seed < 0:
        raise ValueError(f"seed={config.seed} is negative")
    known = (*DEGRADATIONS, *MIXTURES, CLEAN)
    unknown = [name for name in config.degradations if name not in known]
    if unknown and config.set != PAIRS:
        near = nearest(unknown[0], known)
        raise ValueError(
            f"degradations={unknown[0]} is not valid{near}; choose from {', '.join(known)}"
        )
    if read_part(config.shard) and (config.check or config.set in ("open_photos", "readme")):
        raise ValueError(f"shard={config.shard} divides the making of pairs: leave it out here")

    # Folders that the command needs.
    if config.out is not None and is_remote(config.out):
        raise ValueError(f"out={config.out} is a URL: prepare into a folder, then copy it there")
    if config.check and config.root is None and config.out is None:
        raise ValueError("--check needs root=DOWNLOADS, out=PREPARED or both")
    if not config.check and config.root is None and config.set not in ("readme", "open_photos"):
        raise ValueError("root is not set: give root=FOLDER of the downloads")


def _check(config: PrepareConfig, console: Console) -> None:
    """Validate the downloads at `root` (every image is read), then the prepared pairs at `out`."""
    if config.root is not None:
        with tempfile.TemporaryDirectory(prefix="diffrestorer-") as unpacked:
            found = _find(config, Path(unpacked), [], console)
            _inspect_all(config, found, console)
    if config.out is not None:
        folder = Path(config.out)
        total = sum(len(batch["lq"]) for batch in read_batches(folder, ["lq"]))
        with _progress(console, "verifying", total) as advance:
            console.print(verify(folder, advance))
        console.print(f"{total:,} pairs in {folder} agree with their checksums", soft_wrap=True)


def _inspect_all(config: PrepareConfig, found: Sequence[Found], console: Console) -> None:
    """Read every image of the pairs found, and report those that cannot be used."""
    sources = [source for entry in found for source in entry.pairs]
    runs = [sources[i : i + _INSPECTED_AT_ONCE] for i in range(0, len(sources), _INSPECTED_AT_ONCE)]
    with _progress(console, "reading", len(sources)) as advance:
        problems = run_all(
            [(partial(inspect, run), len(run)) for run in runs], config.num_workers, advance
        )
    _report(problems, config.skip_unreadable, console)
    console.print(f"{len(sources):,} pairs found, paired by name and read")


def _find(
    config: PrepareConfig, unpacked: Path, prepared: Sequence[Path], console: Console
) -> list[Found]:
    """Find, print and validate what is at `root`; its images must not overlap with those of `prepared` folders."""
    assert config.root is not None
    root = os.path.realpath(config.root)
    inside = (Path(os.path.realpath(folder)).is_relative_to(root) for folder in prepared)
    if config.set in ("photos", PAIRS) and any(inside):
        raise ValueError(
            f"out={prepared[0]} lies in root={config.root}: its images would be taken for {config.set}"
        )
    if config.set == PAIRS:
        found = take_pairs(config.root, config.split, config.lq_name, config.gt_name)
    elif config.set == "photos":
        found = [take_photos(Path(config.root), config.split, clean=CLEAN in config.degradations)]
    else:
        found = take(choose(config.set), list_files(Path(config.root), unpacked), config.haze)
        console.print(count_table(found))
        refuse_incomplete(found, config.allow_incomplete)

    refuse_unwritable_names(found)

    # No clean image may be both in training and in test.
    before = (image for folder in prepared for image in clean_images(folder))
    if repeated := refuse_leakage(found, before):
        console.print(f"{repeated:,} clean images are there under a second name")
    return found


def _explain(error: OSError, out: Path) -> str:
    """Return what kept a preparation from reading or writing a file, and what to do."""
    reason = error.strerror or error
    if error.errno in NO_SPACE:
        return f"out={out} cannot be written ({reason}); nothing is lost: free some disk, and the same command goes on"

    # The file's own name, where it has another one while it is written.
    name = error.filename2 or error.filename
    if isinstance(name, str) and Path(name) != out:
        return f"{name} cannot be read or written ({reason}): repair it, and the same command goes on"
    return f"out={out} cannot be written ({reason}); repair it or choose another out"


def _make(config: PrepareConfig, out: Path, console: Console) -> None:
    """Find the downloads, plan the pairs, make them, and write the manifest."""
    # Photos and pairs of any shape are cropped, the paper's sets are squeezed into the square.
    fit = (
        ("crop" if config.set in ("photos", PAIRS) else "resize")
        if config.fit == "auto"
        else config.fit
    )
    settings = Settings(config.size, fit, config.seed, config.synthesis, config.compress)

    # Everything that can be refused is refused before anything is written.
    found = _find(config, out / _UNPACKED, [out], console)
    groups = plan_groups(found, config)
    if not groups:
        raise ValueError(f"set={config.set} gives no pairs of {', '.join(config.degradations)}")
    part = read_part(config.shard)
    unfinished = claim(out, groups, settings, config.shard)
    if part is not None and not unfinished:
        console.print("every shard is there already; shard=merge writes the manifest")
        return
    _check_disk(out, groups, settings, console)
    shards = [shard for group in groups for shard in group.shards(settings.size)]

    # Shards are made in parallel. A merge finds them made, and gathers them in the manifest as one machine does.
    with own_shards(out, shards, part) as own:
        _make_shards(config, out, own, settings, console)
    if part is not None:
        console.print(f"part {part} is made; shard=merge writes the manifest when all are")
        return
    rows = write_manifest(out)
    for folder in (_UNPACKED, PARTS):
        shutil.rmtree(out / folder, ignore_errors=True)
    console.print(f"{rows:,} pairs in {out / MANIFEST}", soft_wrap=True)


def _make_shards(
    config: PrepareConfig, out: Path, shards: Sequence[Group], settings: Settings, console: Console
) -> None:
    """Make shards in parallel, and report images that cannot be used."""
    tasks = [
        (partial(make_shard, out, shard, settings, config.skip_unreadable), len(shard.pairs))
        for shard in shards
    ]
    with _progress(console, "preparing", sum(len(shard.pairs) for shard in shards)) as advance:
        problems = run_all(tasks, config.num_workers, advance)
    _report(problems, config.skip_unreadable, console)


def _report(problems: Sequence[Problems], skip_unreadable: bool, console: Console) -> None:
    """Name the pairs that could not be made, and refuse them unless they may be skipped."""
    mismatched = sorted({line for each in problems for line in each.mismatched})
    unreadable = sorted({line for each in problems for line in each.unreadable})
    if mismatched:
        raise ValueError(
            f"{len(mismatched):,} pairs are no pairs: {'; '.join(mismatched[:5])}; repair or remove them"
        )
    if unreadable and not skip_unreadable:
        raise ValueError(
            f"{len(unreadable):,} images cannot be read: {'; '.join(unreadable[:5])}; skip_unreadable=true leaves "
            "their pairs out"
        )
    for line in unreadable:
        console.print(f"left out: {line}", highlight=False, soft_wrap=True)
    if unreadable:
        console.print(f"{len(unreadable):,} images that cannot be read are left out")


def plan_groups(found: Sequence[Found], config: PrepareConfig) -> list[Group]:
    """Plan the pairs: each training class brought to its budget over the sets that make it, tests once each.

    Sets share a class's budget in proportion to their published pairs, whether they are prepared by one command or by
    several; with `allow_incomplete` those of this command share it alone.

    Raises:
        ValueError: the budget leaves a set without a pair.
    """
    # Sources of each (set, split, degradation, steps).
    sources: dict[tuple[str, str, str, tuple[str, ...]], list[Source]] = defaultdict(list)
    for entry in found:
        pairs: Sequence[Source] = entry.pairs
        if entry.part.sample is not None and entry.part.sample < len(pairs):
            stream = f"{entry.set} {entry.part.name}"
            pairs = [planned.source for planned in plan(pairs, entry.part.sample, config.seed, stream)]
        for product in entry.part.products if pairs else ():
            if not config.degradations or product.degradation in config.degradations:
                sources[entry.set, entry.part.split, product.degradation, product.steps] += pairs

    # Training classes are brought to their budget; a test takes each of its pairs once.
    trained = {(name, degradation) for name, split, degradation, _ in sources if split == "train"}
    groups = []
    for (name, split, degradation, steps), available in sources.items():
        number = len(available)
        if split == "train":
            number = _budget(name, degradation, number, trained, config)
        drawn = plan(available, number, config.seed, f"{name} {split} {degradation}")
        groups.append(Group(name, split, degradation, steps, drawn, file_names(drawn)))
    return groups


def _budget(
    name: str, degradation: str, available: int, trained: set[tuple[str, str]], config: PrepareConfig
) -> int:
    """Return a set's part of a class's training pairs; the parts of all sets add up to the budget."""
    if name in ("photos", PAIRS):
        return config.budget or available
    budget = config.budget or BUDGET
    share = training_share(degradation, config.haze)
    if config.allow_incomplete:
        share = {other: pairs for other, pairs in share.items() if (other, degradation) in trained}
    before = sum(
        pairs for other, pairs in share.items() if list(share).index(other) < list(share).index(name)
    )
    start, end = (budget * pairs // sum(share.values()) for pairs in (before, before + share[name]))
    if start == end:
        raise ValueError(
            f"budget={config.budget} leaves {name} without a pair of {degradation}; give a larger one"
        )
    return end - start


def _check_disk(out: Path, groups: Sequence[Group], settings: Settings, console: Console) -> None:
    """Print how much disk the pairs take, and refuse to begin without it."""
    need = sum(
        expected_bytes(group.num_images, settings.size, group.split, settings.compress)
        for group in groups
    )

    # What an interrupted run has made already is not needed again.
    files = (
        file
        for group in groups
        for file in (out / group.folder).rglob("*")
        if file.suffix in (".npy", SUFFIX, ".png")
    )
    there = min(sum(file.stat().st_size for file in files), need)
    free = free_bytes(out)
    pairs = sum(len(group.pairs) for group in groups)
    console.print(
        f"{pairs:,} pairs at {settings.size}x{settings.size}: {need / 1e9:.3g} GB, of which {there / 1e9:.3g} GB are "
        f"there; {free / 1e9:.3g} GB are free"
    )
    if need - there > free:
        raise ValueError(
            f"out={out} needs {(need - there) / 1e9:.3g} GB more, {free / 1e9:.3g} GB are free: free the rest, or give "
            "a smaller size or budget"
        )


@contextmanager
def _progress(console: Console, task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; yield a function that advances it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield partial(progress.advance, progress.add_task(task, total=total))
