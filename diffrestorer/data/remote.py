"""Prepared pairs behind a URL (`s3://`, `gs://`, `hf://`, `memory://`, ...), read through fsspec and a local cache.

A pair is read by a range request of its own, so training starts at once and a store may be larger than any disk. The
cache keeps what was read, up to a limit, and deletes what was not used for longest. Keys contain the object's version
(size, ETag, time), so an object that was replaced is never read from the cache.
"""

import hashlib
import io
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import imagecodecs
import numpy as np
from fsspec.registry import known_implementations

from diffrestorer.data.compressed_shard import ByteSource
from diffrestorer.data.storage import whole_file, write_bytes

_TRIM_EVERY = 1 / 64
"""Share of the cache's limit that a process writes between two looks at what the cache holds."""
_KEPT = 7 / 8
"""Share of the limit that a cleaned cache has, so that eight processes together stay below it."""


class StorageError(ValueError):
    """A storage does not give a file; the sentence names it."""


class ByteCache:
    """A folder of byte ranges with their checksums, used by all processes of a machine.

    Args:
        folder: may hold what earlier runs left, which counts.
        limit: bytes; 0: nothing is kept.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._written: float = math.inf

    def path(self, key: str) -> Path:
        """Return the file of a key."""
        name = _digest(key)
        return self.folder / name[:2] / name

    def get(self, key: str, length: int, fetch: Callable[[], bytes]) -> bytes:
        """Return a key's `length` bytes, fetching them unless they are there and sound."""
        path = self.path(key)
        try:
            stored = path.read_bytes()
            checksum, data = stored[:4], stored[4:]
            if len(data) == length and checksum == _checksum(data):
                os.utime(path)  # when it was used last
                return data
        except OSError:
            pass

        # A disk that is full costs time, but training goes on.
        data = fetch()
        try:
            self._keep(path, data)
        except OSError:
            self._written = math.inf
        return data

    def _keep(self, path: Path, data: bytes) -> None:
        """Write a file, after making room where it is time to."""
        if len(data) + 4 > self.limit * (1 - _KEPT):
            return
        if self._written + len(data) > self.limit * _TRIM_EVERY:
            self._trim()
            self._written = 0
        write_bytes(path, _checksum(data) + data)
        self._written += len(data)

    def _trim(self) -> None:
        """Delete the files that were not used for longest. Other processes may do the same."""
        found = []
        for path in self.folder.glob("*/*"):
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit * _KEPT:
                break
            path.unlink(missing_ok=True)
            total -= size


@dataclass(frozen=True)
class RemotePath:
    """A remote folder or file, with those parts of pathlib's interface that prepared pairs need.

    Attributes:
        url: with its protocol.
        cache: of the files' bytes.
        versions: (size, version) of each file that was looked at, by URL.
    """

    url: str
    cache: ByteCache = field(compare=False)
    versions: dict[str, tuple[int, str]] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url.rstrip('/')}/{name}", self.cache, self.versions)

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return self.url.rpartition("/")[2]

    def is_file(self) -> bool:
        """Return whether there is such a file.

        Raises:
            ValueError: the storage cannot be asked.
        """
        with _explain(self.url):
            files, path = fsspec.url_to_fs(self.url)
            return bool(files.isfile(path))

    def look(self) -> tuple[int, str]:
        """Return size and version as they are now.

        Raises:
            ValueError: there is no such file, or the storage cannot be asked.
        """
        with _explain(self.url):
            files, path = fsspec.url_to_fs(self.url)
            self.versions[self.url] = int(files.info(path)["size"]), str(files.ukey(path))
        return self.versions[self.url]

    def open_bytes(self) -> "RemoteBytes":
        """Return the file's bytes, to be read from any place. Its size and version are asked once."""
        size, version = self.versions.get(self.url) or self.look()
        return RemoteBytes(self, size, version)

    def download(self) -> Path:
        """Return a local copy of the whole file, which is made once for each version of it.

        Raises:
            ValueError: it cannot be read.
        """
        size, version = self.look()
        folder = self.cache.folder.with_name(f"{self.cache.folder.name}_whole") / _digest(self.url)
        copy = folder / f"{_digest(version)}_{self.name}"
        if not copy.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with _explain(self.url), fsspec.open(self.url, "rb") as file, whole_file(copy) as output:
                shutil.copyfileobj(file, output, 1 << 22)
                if output.tell() != size:
                    raise OSError(f"{output.tell():,} of {size:,} bytes came")

            # Earlier versions are of no use.
            for other in folder.glob(f"*_{self.name}"):
                if other != copy:
                    other.unlink(missing_ok=True)
        return copy


class RemoteBytes:
    """The bytes of a remote file, through the cache."""

    def __init__(self, path: RemotePath, size: int, version: str) -> None:
        self.size = size
        self._path = path
        self._version = version

    def read(self, start: int, length: int) -> bytes:
        """Return bytes; fewer than `length` where the file ends.

        Raises:
            ValueError: the storage does not give them.
        """
        end = min(start + length, self.size)
        url = self._path.url

        def fetch() -> bytes:
            with _explain(url):
                # Asked for again in each process: connections do not survive a fork.
                files, path = fsspec.url_to_fs(url)
                data: bytes = files.cat_file(path, start=start, end=end)
                if len(data) != end - start:
                    raise OSError(f"{len(data):,} of {end - start:,} bytes came")
                return data

        return self._path.cache.get(f"{url} {self._version} {start} {end}", end - start, fetch)


class RemoteArray:
    """A `.npy` shard that is read a row at a time.

    Args:
        source: of its bytes.
        name: for messages.

    Attributes:
        dtype, shape: of the array.

    Raises:
        ValueError: it is damaged or no array.
    """

    def __init__(self, source: ByteSource, name: str) -> None:
        head = io.BytesIO(source.read(0, 1024))
        np.lib.format.read_magic(head)
        self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(head)
        self._source = source
        self._start = head.tell()
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        expected = self._start + self.shape[0] * self._row_bytes
        if source.size != expected:
            raise ValueError(f"{name} has {source.size:,} bytes instead of {expected:,}")

    def __getitem__(self, row: int) -> np.ndarray:
        """Read a row."""
        data = self._source.read(self._start + row * self._row_bytes, self._row_bytes)
        return np.frombuffer(data, self.dtype).reshape(self.shape[1:])


Location = Path | RemotePath
"""A folder of prepared pairs or a file in it."""


def name_below(root: Location, path: Location) -> str:
    """Return the name of a file relative to the folder that it is in."""
    return str(path).removeprefix(f"{root}/")


def is_remote(root: str) -> bool:
    """Return whether a root is a URL."""
    return "://" in root


def open_root(root: str, cache_dir: str | None = None, cache_gb: float = 0) -> Location:
    """Return the folder, or the remote folder with its cache.

    Args:
        root: a folder or a URL.
        cache_dir: folder of the cache; None: diffrestorer/pairs in the user's folder of caches.
        cache_gb: limit of the cache in GB.
    """
    if not is_remote(root):
        return Path(root)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(cache_dir) if cache_dir else caches / "diffrestorer" / "pairs"
    return RemotePath(root.rstrip("/"), ByteCache(folder, int(cache_gb * 1e9)))


def _checksum(data: bytes) -> bytes:
    return int(imagecodecs.deflate_crc32(data)).to_bytes(4, "little")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _explain(url: str) -> Iterator[None]:
    """Turn whatever a storage raises into a sentence.

    Raises:
        StorageError: in place of the failure.
    """
    try:
        yield
    except ImportError:
        protocol = url.partition("://")[0]
        entry: dict[str, Any] = known_implementations.get(protocol, {})
        package = str(entry.get("class", protocol)).partition(".")[0]
        raise StorageError(
            f"{url} needs a package that is not installed: pip install {package}"
        ) from None
    except FileNotFoundError:
        raise StorageError(f"{url}: no such file") from None
    except Exception as error:  # each storage has its own errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StorageError(f"{url} cannot be read ({reason})") from None
