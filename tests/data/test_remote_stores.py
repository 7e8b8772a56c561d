"""Prepared pairs behind a URL: the same pairs as from the folder, through a cache that stays within its limit."""

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from miniatures import make, photos

from diffrestorer.config.schema import DataConfig
from diffrestorer.data.manifest import MANIFEST
from diffrestorer.data.pairs import StepBatches, pair_loader
from diffrestorer.data.prepared import PreparedPairs, is_prepared, name_classes
from diffrestorer.data.remote import ByteCache
from diffrestorer.training.data_check import check_data

SIZE = 32
CLASSES = ["noise", "rain", "jpeg"]
ROW = 2 * 3 * SIZE * SIZE


class CountedFiles(MemoryFileSystem):
    """Files in memory that count their range requests and may be out of order."""

    protocol = "counted"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    requests: Counter[str] = Counter()
    failure: Exception | None = None

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        self.requests[path] += 1
        if self.failure is not None:
            raise self.failure
        return super().cat_file(path, start, end, **kwargs)


@pytest.fixture(autouse=True)
def counted() -> Iterator[type[CountedFiles]]:
    fsspec.register_implementation("counted", CountedFiles, clobber=True)
    CountedFiles.store.clear()
    CountedFiles.requests.clear()
    yield CountedFiles
    CountedFiles.failure = None


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("stores")
    train = photos(root / "train", *range(1, 5))
    for name in ("none", "zstd"):
        keys = {"size": SIZE, "budget": None, "degradations": CLASSES, "compress": name}
        make("photos", train, root / name, **keys)
    return {name: root / name for name in ("none", "zstd")}


def upload(folder: Path, url: str) -> str:
    files, path = fsspec.url_to_fs(url)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            files.pipe_file(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return url


def config(root: str, cache: Path, cache_gb: float = 1.0) -> DataConfig:
    """Of a store, whose pairs are cropped so that reading is more than copying."""
    return DataConfig("manifest", root, SIZE, CLASSES, cache_gb=cache_gb, cache_dir=str(cache))


def assert_same(found: PreparedPairs, expected: PreparedPairs) -> None:
    for number in range(2 * expected.num_pairs):
        pair, other = found[divmod(number, 4)], expected[divmod(number, 4)]
        assert np.array_equal(pair.lq, other.lq)
        assert np.array_equal(pair.gt, other.gt)
        assert pair.label == other.label


@pytest.mark.parametrize("kind", ["none", "zstd"])
@pytest.mark.parametrize("protocol", ["memory", "file", "counted"])
def test_the_pairs_are_those_of_the_folder(
    protocol: str, kind: str, stores: dict[str, Path], tmp_path: Path
) -> None:
    url = f"file://{stores[kind]}" if protocol == "file" else f"{protocol}://{tmp_path.name}"
    if protocol != "file":
        upload(stores[kind], url)
    local = PreparedPairs(replace(config(str(stores[kind]), tmp_path)), 3, 4)
    remote = PreparedPairs(config(url, tmp_path / "cache"), 3, 4)
    assert_same(remote, local)
    assert is_prepared(url)
    assert remote.fingerprint() == local.fingerprint()
    assert remote.counts() == local.counts()
    assert name_classes(config(url, tmp_path / "cache")) == sorted(CLASSES)
    address, degradation = remote.source(0, 0)
    assert str(address).startswith(f"{url}/pairs/photos/train/{degradation}/00000")


@pytest.mark.parametrize("kind", ["none", "zstd"])
def test_workers_change_nothing(kind: str, stores: dict[str, Path], tmp_path: Path) -> None:
    """Each opens the storage for itself; all share the cache."""
    url = upload(stores[kind], f"memory://{tmp_path.name}")
    local = PreparedPairs(config(str(stores[kind]), tmp_path), 3, 4)
    remote = PreparedPairs(config(url, tmp_path / "cache"), 3, 4)
    batches = StepBatches(0, 6, 4, 0, 1)
    loaders = pair_loader(local, batches, 0), pair_loader(remote, batches, 2)
    for expected, batch in zip(*loaders, strict=True):
        assert torch.equal(batch.lq, expected.lq)
        assert torch.equal(batch.gt, expected.gt)


def test_a_pair_is_fetched_once(
    stores: dict[str, Path], tmp_path: Path, counted: type[CountedFiles]
) -> None:
    """Then it comes from the cache, in this run and in the next; without a cache it is fetched each time."""
    url = upload(stores["none"], "counted://store")
    local = PreparedPairs(config(str(stores["none"]), tmp_path), 3, 4)
    assert_same(PreparedPairs(config(url, tmp_path / "cache"), 3, 4), local)
    once = counted.requests.total()
    assert once == local.num_pairs + len(local.shards)  # rows and headers
    assert_same(PreparedPairs(config(url, tmp_path / "cache"), 3, 4), local)
    assert counted.requests.total() == once
    assert_same(PreparedPairs(config(url, tmp_path / "none", cache_gb=0.0), 3, 4), local)
    assert counted.requests.total() >= once + 2 * local.num_pairs
    assert not (tmp_path / "none").exists()


def test_the_cache_stays_within_its_limit(stores: dict[str, Path], tmp_path: Path) -> None:
    """Ten of twelve pairs fit; what an earlier run left counts."""
    url = upload(stores["none"], "counted://store")
    cache = tmp_path / "cache"
    (cache / "ab").mkdir(parents=True)
    (cache / "ab" / "old").write_bytes(bytes(5 * ROW))
    limit = 10 * ROW
    pairs = PreparedPairs(config(url, cache, cache_gb=limit / 1e9), 3, 4)
    local = PreparedPairs(config(str(stores["none"]), tmp_path), 3, 4)
    for number in range(4 * pairs.num_pairs):
        assert np.array_equal(pairs[divmod(number, 4)].lq, local[divmod(number, 4)].lq)
        assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) <= limit
    assert not (cache / "ab" / "old").exists()
    assert len(list(cache.glob("*/*"))) > 5


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = ByteCache(tmp_path, 32_000)
    fetched: Counter[str] = Counter()

    def get(key: str) -> None:
        def fetch() -> bytes:
            fetched[key] += 1
            return key.encode() * 3000

        assert cache.get(key, 3000, fetch) == key.encode() * 3000

    for key in "abcdefghi":
        get(key)
    get("a")
    for key in "jk":
        get(key)
    get("a")
    assert fetched["a"] == 1
    get("b")
    assert fetched["b"] == 2


def test_a_damaged_cache_is_mended(
    stores: dict[str, Path], tmp_path: Path, counted: type[CountedFiles]
) -> None:
    url = upload(stores["none"], "counted://store")
    local = PreparedPairs(config(str(stores["none"]), tmp_path), 3, 4)
    assert_same(PreparedPairs(config(url, tmp_path / "cache"), 3, 4), local)
    for number, path in enumerate(sorted((tmp_path / "cache").glob("*/*"))):
        content = bytearray(path.read_bytes())
        content[number % len(content)] ^= 1
        path.write_bytes([content, content[:3], b""][number % 3])
    assert_same(PreparedPairs(config(url, tmp_path / "cache"), 3, 4), local)


def test_a_cache_that_cannot_be_written_costs_only_time(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    url = upload(stores["none"], "counted://store")
    (tmp_path / "file").write_bytes(b"")
    local = PreparedPairs(config(str(stores["none"]), tmp_path), 3, 4)
    pairs = PreparedPairs(config(url, tmp_path / "cache"), 3, 4)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    (tmp_path / "cache").write_bytes(b"no folder")
    assert_same(pairs, local)


def test_an_object_that_was_replaced_is_not_read_from_the_cache(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    """A run that began with the earlier one does not go on."""
    url = upload(stores["none"], f"memory://{tmp_path.name}")
    (tmp_path / "run").mkdir()

    def start() -> PreparedPairs:
        pairs = PreparedPairs(config(url, tmp_path / "cache"), 3, 4)
        check_data(
            tmp_path / "run", pairs, False, False, Accelerator(cpu=True), logging.getLogger("test")
        )
        return pairs

    before = start()[0, 0]
    address, _ = start().source(0, 0)
    shard = str(address).partition("#")[0]
    files, path = fsspec.url_to_fs(shard)
    content = bytearray(files.cat_file(path))
    content[200:] = bytes(255 - value for value in content[200:])
    files.pipe_file(path, bytes(content))
    changed = PreparedPairs(config(url, tmp_path / "cache"), 3, 4)
    assert not np.array_equal(changed[0, 0].lq, before.lq)
    with pytest.raises(ValueError, match=rf"changed: {shard.removeprefix(url + '/')}"):
        start()


@pytest.mark.parametrize("kind", ["none", "zstd"])
@pytest.mark.parametrize("harm", ["missing", "cut", "longer", "emptied", "other"])
def test_a_damaged_shard_is_named(
    harm: str, kind: str, stores: dict[str, Path], tmp_path: Path
) -> None:
    url = upload(stores[kind], f"memory://{tmp_path.name}")
    pairs = PreparedPairs(config(url, tmp_path / "cache"), 3, 4)
    shard = f"{url}/{pairs.shards[-1]}"
    files, path = fsspec.url_to_fs(shard)
    content = files.cat_file(path)
    if harm == "missing":
        files.rm_file(path)
    else:
        changed = {"cut": content[:-1], "longer": content + b"\0", "emptied": b"", "other": b"no" * 999}
        files.pipe_file(path, changed[harm])
    sentence = ": no such file$" if harm == "missing" else r" cannot be read \(.*copy it there again"
    with pytest.raises(ValueError, match=f"^{shard}{sentence}"):
        [pairs[0, position] for position in range(pairs.num_pairs)]


def test_a_storage_that_fails_is_named(
    stores: dict[str, Path], tmp_path: Path, counted: type[CountedFiles]
) -> None:
    url = upload(stores["none"], "counted://store")
    pairs = PreparedPairs(config(url, tmp_path / "cache"), 3, 4)
    counted.failure = RuntimeError("403\nForbidden")
    with pytest.raises(ValueError, match=r"^counted://store/.*npy cannot be read \(403 Forbidden\)$"):
        [pairs[0, position] for position in range(pairs.num_pairs)]


def test_roots_that_hold_nothing_or_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = {"class": "absentfs.core.AbsentFileSystem", "err": "Install absentfs"}
    monkeypatch.setitem(known_implementations, "absent", absent)
    sentences = {
        "memory://nowhere": f"memory://nowhere holds no {MANIFEST}: copy a folder there",
        "absent://bucket": "needs a package that is not installed: pip install absentfs$",
        "nonsense://bucket": r"cannot be read \(Protocol not known: nonsense",
    }
    if find_spec("s3fs") is None:
        sentences["s3://bucket/pairs"] = "pip install s3fs"
    if find_spec("gcsfs") is None:
        sentences["gs://bucket/pairs"] = "pip install gcsfs"
    for url, sentence in sentences.items():
        with pytest.raises(ValueError, match=sentence):
            PreparedPairs(config(url, tmp_path), 0, 4)
