"""A run's data before its first step: every file is readable, and no file changed since the run began."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from diffrestorer.config.schema import RunConfig
from diffrestorer.data.images import ImageError, read_photo
from diffrestorer.data.manifest import is_row, open_shard, pair_hash, read_batches, split_address
from diffrestorer.data.pair_folders import PairFolders, differing_sizes
from diffrestorer.data.pairs import SynthesisedPairs
from diffrestorer.data.prepared import PreparedPairs, TrainingPairs, open_pairs
from diffrestorer.data.remote import Location, RemotePath, name_below
from diffrestorer.training.kept_files import DamagedFileError, read_sealed, write_sealed
from diffrestorer.training.launcher import on_main_process

KNOWN = "data_files.json"
"""File of a run that remembers its data files, so that a start reads only those that are new to it."""

SHOWN = 5
"""Files that a message names, at most."""


@dataclass(frozen=True)
class DataFile:
    """A data file as it was when it was read.

    Attributes:
        stamp: size in bytes, time of the last change of content and of the entry, in nanoseconds.
        sha256: of its bytes; empty for a shard, whose pairs have checksums in the manifest.
        problem: why it cannot be read; empty: it can.
    """

    stamp: tuple[int, ...]
    sha256: str = ""
    problem: str = ""


Reader = Callable[[Any, tuple[int, ...]], DataFile]
"""Function that reads a file, a `Location` of prepared pairs or the path of a photo, given its stamp."""


def check_data(
    output_dir: Path,
    dataset: TrainingPairs,
    allow_change: bool,
    skip_unreadable: bool,
    accelerator: Accelerator,
    log: logging.Logger,
) -> None:
    """Read every data file that is new to the run, and refuse to train on others than the run began with.

    The processes share the reading. What was read before is known by name, size and time.

    Args:
        output_dir: of the run; gets `data.json` and `data_files.json`.
        dataset: of the run.
        allow_change: `train.allow_changed_data`.
        skip_unreadable: `data.skip_unreadable`.
        accelerator: of the run.
        log: of the run.

    Raises:
        ValueError: a file cannot be read and is not to be skipped, or data changed since the run began.
    """
    # A share of the files for each process; a file that is known and unchanged is not read.
    known = on_main_process(accelerator, lambda: _read_known(output_dir / KNOWN, log))
    paths = _data_files(dataset)
    own = paths[accelerator.process_index :: accelerator.num_processes]
    read = _reader(dataset, known)

    # Every process gets all of them, and the main one judges.
    files: dict[str, DataFile] = {}
    for part in gather_object([_read_files(dataset.root, own, known, read, log)]):
        files.update(part)
    files = {name: files[name] for name in sorted(files)}

    def settle() -> None:
        _refuse_unreadable(dataset.root, files, skip_unreadable, log)
        fingerprint = dataset.fingerprint()
        further = _further(dataset, fingerprint)
        _refuse_changed(output_dir, fingerprint, further, files, known, allow_change, log)
        rows = {name: [*file.stamp, file.sha256, file.problem] for name, file in files.items()}
        write_sealed(output_dir / KNOWN, rows)

    on_main_process(accelerator, settle)


def count_pairs(config: RunConfig, log: logging.Logger) -> dict[str, int]:
    """Read every file of a run's data without a run; return the number of pairs of each class, from photos one a photo.

    Raises:
        ValueError: the data are not usable, or a file cannot be read and is not to be skipped.
    """
    dataset = open_pairs(config.data, config.seed, config.train.global_batch_size)
    files = _read_files(dataset.root, _data_files(dataset), {}, _reader(dataset, {}), log)
    _refuse_unreadable(dataset.root, files, config.data.skip_unreadable, log)
    return dataset.counts()


def _read_known(path: Path, log: logging.Logger) -> dict[str, DataFile]:
    """Return the data files that the run has read before."""
    try:
        content = read_sealed(path)
    except FileNotFoundError:
        return {}
    except DamagedFileError as error:
        log.warning("%s; reading the training data again", error)
        return {}
    known = {}
    for name, (*stamp, sha256, problem) in content.items():
        known[name] = DataFile(tuple(stamp), sha256, problem)
    return known


def _data_files(dataset: TrainingPairs) -> Sequence[Location]:
    if isinstance(dataset, PreparedPairs):
        return [dataset.root / shard for shard in dataset.shards]
    return list(dataset.paths)


def _further(dataset: TrainingPairs, fingerprint: str) -> dict[str, str]:
    """Return digests of what the data depend on besides their files: a manifest, or a user's synthesis."""
    if isinstance(dataset, PreparedPairs):
        return {"manifest": fingerprint}
    if isinstance(dataset, SynthesisedPairs) and dataset.own.sha256:
        return {"synthesis_module": dataset.own.sha256}
    return {}


def _reader(dataset: TrainingPairs, known: Mapping[str, DataFile]) -> Reader:
    """Return the function that reads one data file of a dataset."""
    if isinstance(dataset, PreparedPairs):
        return _shard_reader(dataset, known)
    return _pair_reader(dataset.partners) if isinstance(dataset, PairFolders) else _read_photo_file


def _read_files(
    root: Location,
    paths: Sequence[Location],
    known: Mapping[str, DataFile],
    read: Reader,
    log: logging.Logger,
) -> dict[str, DataFile]:
    """Return the files by their names below `root`. Those that are unchanged are not read."""
    files: dict[str, DataFile] = {}
    changed: list[tuple[Location, tuple[int, ...]]] = []
    for path in paths:
        name = name_below(root, path)
        stamp = _stamp(path)
        if name in known and known[name].stamp == stamp:
            files[name] = known[name]
        else:
            changed.append((path, stamp))

    # Decoding releases the interpreter, so threads share the cores, and the processes of a machine share them, too.
    if len(changed) > 1000:
        log.info("reading %d files of the training data, once", len(changed))
    threads = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for (path, _), file in zip(changed, pool.map(lambda item: read(*item), changed), strict=True):
            files[name_below(root, path)] = file
    return files


def _stamp(path: Location) -> tuple[int, ...]:
    """Return size and times of a file, of a remote one size and version; nothing of one that is not there."""
    if isinstance(path, RemotePath):
        with suppress(ValueError):
            size, version = path.look()
            return size, int(hashlib.sha256(version.encode()).hexdigest()[:12], 16)
        return ()
    with suppress(OSError):
        status = path.stat()
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return ()


def _read_photo_file(path: Path, stamp: tuple[int, ...]) -> DataFile:
    """Decode a photo and hash its bytes."""
    return _decode(path, stamp)[0]


@lru_cache(maxsize=1 << 20)
def _decode(path: Path, stamp: tuple[int, ...]) -> tuple[DataFile, tuple[int, ...]]:
    """Return a photo's file and its shape, empty if it cannot be read. Runs of one process share what is read."""
    try:
        shape = read_photo(path).pixels.shape
        with path.open("rb") as file:
            return DataFile(stamp, hashlib.file_digest(file, "sha256").hexdigest()), shape
    except (ImageError, OSError) as error:
        return DataFile(stamp, problem=str(error)), ()


def _pair_reader(partners: Mapping[Path, Path]) -> Reader:
    """Return a function that reads a photo and compares a degraded one's size with that of its clean image."""

    def read(path: Path, stamp: tuple[int, ...]) -> DataFile:
        file, shape = _decode(path, stamp)
        partner = partners.get(path)
        if partner is None or file.problem:
            return file
        clean = _decode(partner, _stamp(partner))[1]
        if clean and clean[:2] != shape[:2]:
            return DataFile(stamp, problem=differing_sizes(shape, clean, partner))
        return file

    return read


def _shard_reader(dataset: PreparedPairs, known: Mapping[str, DataFile]) -> Reader:
    """Return a function that opens a shard, and compares one that changed since the run began with the manifest."""
    # The manifest is read when the first shard needs it.
    checksums: dict[str, dict[int, str]] = {}

    def read(path: Location, stamp: tuple[int, ...]) -> DataFile:
        name = name_below(dataset.root, path)
        try:
            pairs = open_shard(path)
            if name not in known:
                return DataFile(stamp)
            if not checksums:
                checksums.update(_pair_checksums(dataset.root))
            for row, sha256 in checksums.get(name, {}).items():
                if pair_hash(pairs[row]) != sha256:
                    return DataFile(stamp, sha256="changed")
        except (ValueError, OSError, IndexError) as error:
            return DataFile(stamp, problem=str(error))
        return DataFile(stamp)

    return read


def _pair_checksums(root: Location) -> dict[str, dict[int, str]]:
    """Return the manifest's checksums of stored training pairs by shard and row."""
    found: dict[str, dict[int, str]] = {}
    for batch in read_batches(root, ["lq", "sha256"]):
        for lq, sha256 in zip(batch["lq"], batch["sha256"], strict=True):
            if is_row(lq):
                shard, row = split_address(lq)
                found.setdefault(shard, {})[row] = sha256
    return found


def _refuse_unreadable(
    root: Location, files: Mapping[str, DataFile], skip: bool, log: logging.Logger
) -> None:
    """Raise, or log, which files cannot be read."""
    bad = [f"{root / name}: {file.problem}" for name, file in files.items() if file.problem]
    if not bad:
        return
    shown = "; ".join(bad[:SHOWN]) + ("; ..." if len(bad) > SHOWN else "")
    if not skip:
        raise ValueError(
            f"{len(bad)} of {len(files)} files of the training data cannot be read ({shown}): mend or remove them, or "
            "give data.skip_unreadable=true"
        )
    if len(bad) == len(files):
        raise ValueError(f"none of the {len(files)} files of the training data can be read ({shown})")
    log.warning("%d of %d files of the training data are skipped (%s)", len(bad), len(files), shown)


def _refuse_changed(
    output_dir: Path,
    fingerprint: str,
    further: Mapping[str, str],
    files: Mapping[str, DataFile],
    known: Mapping[str, DataFile],
    allow: bool,
    log: logging.Logger,
) -> None:
    """Compare the data with those in `data.json`, which then tells of the present ones.

    Args:
        output_dir: of the run.
        fingerprint: of the dataset.
        further: digests of what the data depend on besides their files, by name.
        files: as they are now.
        known: as they were at the last start.
        allow: `train.allow_changed_data`.
        log: of the run.
    """
    contents = hashlib.sha256()
    for name, file in files.items():
        # A photo that became unreadable, and is skipped, counts as what it was.
        sha256 = known[name].sha256 if file.problem and name in known else file.sha256
        contents.update(f"{name} {sha256}\n".encode())
    now = {"contents": contents.hexdigest(), **further}

    # Earlier versions compared names and sizes only.
    path = output_dir / "data.json"
    before = _read_before(path, log) or now
    if before == {"fingerprint": fingerprint}:
        before = now
    if before != now:
        changed = (
            ", ".join(_changed_names(files, known))
            or "other classes, settings or functions of the data"
        )
        if not allow:
            raise ValueError(
                f"the training data are not those that the run in {output_dir} began with (files were added, removed "
                f"or changed: {changed}): restore them, choose another output_dir, or give "
                "train.allow_changed_data=true"
            )
        log.warning(
            "the training data changed since this run began; going on, as train.allow_changed_data=true says"
        )
    write_sealed(path, now)


def _read_before(path: Path, log: logging.Logger) -> dict[str, str] | None:
    """Return the data that the run began with; None: that is unknown."""
    try:
        return read_sealed(path)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        # Earlier versions wrote names and sizes only, without a checksum.
        with suppress(OSError, ValueError):
            content = json.loads(path.read_bytes().decode())
            if isinstance(content, dict) and set(content) == {"fingerprint"}:
                return content
        log.warning("%s, and no checkpoint has a copy; taking the data as they are now", error)
        return None


def _changed_names(files: Mapping[str, DataFile], known: Mapping[str, DataFile]) -> Iterator[str]:
    """Yield the first names of files that came, went or changed."""
    shown = 0
    for name in sorted({*files, *known}):
        same = name in files and name in known and files[name].sha256 == known[name].sha256
        if not same and shown < SHOWN:
            shown += 1
            yield name
