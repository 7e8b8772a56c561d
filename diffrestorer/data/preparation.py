"""From downloads to verified pairs on disk: find, validate, plan, make in parallel, write the manifest."""

import json
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffrestorer.data import open_photos
from diffrestorer.data.archives import whole_file
from diffrestorer.data.catalog import CATALOG, Part, Product, page
from diffrestorer.data.images import find_images
from diffrestorer.data.inventory import (
    Found,
    Inventory,
    Source,
    choose,
    list_files,
    refuse_incomplete,
    refuse_leakage,
    take,
)
from diffrestorer.data.manifest import MANIFEST, read_batches, verify, write_manifest
from diffrestorer.config.schema import PrepareConfig
from diffrestorer.data.shards import Group, Settings, group_record, make_shard, plan, shard_rows
from diffrestorer.degradations import DEGRADATIONS, MIXTURES

BUDGET = 10_000
"""Training pairs a class (the paper, section IV-A)."""

_UNPACKED = ".unpacked"
_RESERVE_BYTES = 1 << 28


def prepare(config: PrepareConfig) -> None:
    """Does what `scripts/prepare_data.py` was asked for; see configs/prepare_data.yaml.

    Raises:
        ValueError: a set is missing, incomplete or overlaps with the test images; an image is unreadable; the disk is
            too small; `out` holds pairs made with other settings; `--check` found damage.
    """
    console = Console(stderr=True)
    _check_config(config)
    out = None if config.out is None else Path(config.out)
    if config.set == "readme":
        assert out is not None
        (out / "README.md").write_text(page())
    elif config.check:
        _check(config, console)
    elif config.set == "open_photos":
        assert out is not None and config.root is not None
        console.print(open_photos.write(Path(config.root), out))
    else:
        assert out is not None
        _make(config, out, console)


def _check_config(config: PrepareConfig) -> None:
    names = (*CATALOG, "all", "photos", "open_photos", "readme")
    if config.set not in names:
        raise ValueError(f"set={config.set} does not exist; choose one of {', '.join(names)}")
    for key, value, valid in (("fit", config.fit, ("auto", "resize", "crop")), ("haze", config.haze, ("OTS", "ITS"))):
        if value not in valid:
            raise ValueError(f"{key}={value} is not valid; choose from {', '.join(valid)}")
    if config.size < 8 or config.size % 8:
        raise ValueError(f"size={config.size} is not a multiple of 8, which the VAE divides by")
    if config.budget is not None and config.budget < 1:
        raise ValueError(f"budget={config.budget} is not a number of pairs")
    if config.num_workers is not None and config.num_workers < 1:
        raise ValueError(f"num_workers={config.num_workers} is not a number of processes")
    unknown = [name for name in config.degradations if name not in (*DEGRADATIONS, *MIXTURES)]
    if unknown:
        raise ValueError(f"degradations={unknown[0]} is not valid; choose from {', '.join((*DEGRADATIONS, *MIXTURES))}")
    if config.check and config.root is None and config.out is None:
        raise ValueError("--check needs root=DOWNLOADS, out=PREPARED or both")
    if not config.check and config.root is None and config.set != "readme":
        raise ValueError("root is not set: give root=FOLDER of the downloads")
    if not config.check and config.out is None:
        raise ValueError("out is not set: give out=FOLDER for the prepared pairs")


def _check(config: PrepareConfig, console: Console) -> None:
    if config.root is not None:
        with tempfile.TemporaryDirectory(prefix="diffrestorer-") as temporary:
            inventory = _take_inventory(config, Path(temporary) / _UNPACKED / "check", console)
        console.print(f"{sum(len(entry.pairs) for entry in inventory.found):,} pairs found, paired by name")
    if config.out is not None:
        folder = Path(config.out)
        total = sum(len(batch["lq"]) for batch in read_batches(folder, ["lq"]))
        with _progress(console, "verifying", total) as advance:
            table = verify(folder, advance)
        console.print(table)
        console.print(f"{total:,} pairs in {folder} agree with their checksums")


def _take_inventory(config: PrepareConfig, unpacked: Path, console: Console) -> Inventory:
    """Finds, prints and validates what is at `root`."""
    assert config.root is not None
    root = Path(config.root)
    if config.set == "photos":
        return Inventory([_photos(root)])
    inventory = take(choose(config.set), list_files(root, unpacked), config.haze)
    console.print(inventory.table())
    refuse_incomplete(inventory, config.allow_incomplete)
    if repeated := refuse_leakage(inventory):
        console.print(f"{repeated:,} clean images are there under a second name")
    return inventory


def _photos(root: Path) -> Found:
    """A folder of clean photos as a set of its own."""
    if not root.is_dir():
        raise ValueError(f"root={root} is not a folder of photos")
    paths = find_images(root)
    if not paths:
        raise ValueError(f"root={root} holds no images (jpg, png, webp, ...)")
    part = Part("photos", "train", len(paths), tuple(Product(name, (name,)) for name in DEGRADATIONS), "*.jpg")
    return Found("photos", part, tuple(Source(path.relative_to(root).as_posix(), None, path) for path in paths))


def _make(config: PrepareConfig, out: Path, console: Console) -> None:
    fit = ("crop" if config.set == "photos" else "resize") if config.fit == "auto" else config.fit
    settings = Settings(config.size, fit, config.seed)
    out.mkdir(parents=True, exist_ok=True)
    inventory = _take_inventory(config, out / _UNPACKED, console)
    groups = plan_groups(inventory, config)
    if not groups:
        raise ValueError(f"set={config.set} gives no pairs of {', '.join(config.degradations)}")
    _claim(out, groups, settings)
    _check_disk(out, groups, settings, console)
    for leftover in out.glob("pairs/*/*/*/.*.tmp"):
        leftover.unlink(missing_ok=True)
    unreadable = _make_shards(config, out, groups, settings, console)
    if unreadable and not config.skip_unreadable:
        shown = "; ".join(sorted(unreadable)[:5])
        raise ValueError(
            f"{len(unreadable):,} images cannot be read: {shown}; skip_unreadable=true leaves their pairs out"
        )
    if unreadable:
        console.print(f"left out: {len(unreadable):,} images that cannot be read: {'; '.join(sorted(unreadable))}")
    rows = write_manifest(out)
    shutil.rmtree(out / _UNPACKED, ignore_errors=True)
    console.print(f"{rows:,} pairs in {out / MANIFEST}")


def plan_groups(inventory: Inventory, config: PrepareConfig) -> list[Group]:
    """Which pairs are made: each training class brought to its budget over all sets that give it, tests once each.

    Sets share a class's budget in proportion to the pairs they have.

    Raises:
        ValueError: the budget leaves a set without a pair.
    """
    sources: dict[tuple[str, str, str, tuple[str, ...]], list[Source]] = defaultdict(list)
    for found in inventory.found:
        pairs: Sequence[Source] = found.pairs
        if found.part.sample is not None and found.part.sample < len(pairs):
            stream = f"{found.set} {found.part.name}"
            pairs = [planned.source for planned in plan(pairs, found.part.sample, config.seed, stream)]
        for product in found.part.products if pairs else ():
            if not config.degradations or product.degradation in config.degradations:
                sources[found.set, found.part.split, product.degradation, product.steps] += pairs
    available: dict[str, int] = defaultdict(int)
    for (_, split, degradation, _), pairs in sources.items():
        available[degradation] += len(pairs) if split == "train" else 0
    given: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    groups = []
    for (name, split, degradation, steps), pairs in sources.items():
        number = len(pairs)
        if split == "train":
            budget = config.budget or (len(pairs) if name == "photos" else BUDGET)
            had, made = given[degradation]
            number = budget * (had + len(pairs)) // available[degradation] - made
            given[degradation] = had + len(pairs), made + number
        if not number:
            raise ValueError(f"budget={config.budget} leaves {name} without a pair of {degradation}; give a larger one")
        drawn = plan(pairs, number, config.seed, f"{name} {split} {degradation}")
        groups.append(Group(name, split, degradation, steps, drawn))
    return groups


def _claim(out: Path, groups: Sequence[Group], settings: Settings) -> None:
    """Writes down what each group's folder holds, and refuses a folder that holds something else."""
    records = [json.dumps(group_record(group, settings)).encode() for group in groups]
    for group, record in zip(groups, records, strict=True):
        file = out / group.folder / "plan.json"
        if file.exists() and file.read_bytes() != record:
            raise ValueError(
                f"{file.parent} holds pairs made from other files or with other settings; choose another out or remove it"
            )
    for group, record in zip(groups, records, strict=True):
        file = out / group.folder / "plan.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            with whole_file(file) as output:
                output.write(record)


def _check_disk(out: Path, groups: Sequence[Group], settings: Settings, console: Console) -> None:
    pixels = settings.size * settings.size * 3
    need = sum(len(group.pairs) * group.sides * pixels for group in groups)
    there = sum(file.stat().st_size for group in groups for file in (out / group.folder).glob("[0-9]*.npy"))
    free = shutil.disk_usage(out).free - _RESERVE_BYTES
    pairs = sum(len(group.pairs) for group in groups)
    console.print(
        f"{pairs:,} pairs at {settings.size}x{settings.size}: {need / 1e9:.2f} GB, of which {there / 1e9:.2f} GB are "
        f"there; {max(free, 0) / 1e9:.2f} GB are free"
    )
    if need - there > free:
        raise ValueError(
            f"out={out} needs {(need - there) / 1e9:.2f} GB more, {max(free, 0) / 1e9:.2f} GB are free: free the rest, "
            "or give a smaller size or budget"
        )


def _make_shards(
    config: PrepareConfig, out: Path, groups: Sequence[Group], settings: Settings, console: Console
) -> set[str]:
    """Makes what is missing; returns the images that cannot be read."""
    step = shard_rows(settings.size)
    tasks = [(group, first) for group in groups for first in range(0, len(group.pairs), step)]
    workers = min(config.num_workers or os.cpu_count() or 1, len(tasks))
    unreadable: set[str] = set()
    context = multiprocessing.get_context("spawn")
    total = sum(len(group.pairs) for group in groups)
    with (
        _progress(console, "preparing", total) as advance,
        ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool,
    ):
        futures = {}
        for group, first in tasks:
            shard = Group(group.set, group.split, group.degradation, group.steps, group.pairs[first : first + step])
            future = pool.submit(make_shard, out, shard, first, settings, config.skip_unreadable)
            futures[future] = len(shard.pairs)
        try:
            for future in as_completed(futures):
                unreadable.update(future.result())
                advance(futures[future])
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, OSError):
                raise ValueError(f"{out} cannot be written ({error.strerror}); free some disk and repeat") from None
            raise
    return unreadable


def _start_worker() -> None:
    """One thread a worker, which ends with the process that started it, even if that is killed."""
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _progress(console: Console, task: str, total: int) -> Iterator["_Advance"]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield _Advance(progress, task, total)


class _Advance:
    def __init__(self, progress: Progress, task: str, total: int) -> None:
        self.progress, self.task = progress, progress.add_task(task, total=total)

    def __call__(self, rows: int) -> None:
        self.progress.advance(self.task, rows)
