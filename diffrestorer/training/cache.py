"""The frozen encoders' outputs for prepared pairs, computed once and kept on disk for training steps to read.

Only fixed pairs can be cached. A pair and its mirror image are two variants, each with a row of its own. The cache's
folder is named after everything that determines its content (pairs, encoders, settings, precision), so a changed
encoder or pair makes another one. A few rows are computed again at every start and compared, so a changed transform is
found as well. Encoders run in the run's mixed precision, as they do in a step without a cache, and rows are float32.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset

from diffrestorer.data.ownership import FolderInUseError, own_folder
from diffrestorer.data.pairs import Pair, PairBatch, collate_pairs, pair_loader
from diffrestorer.data.prepared import PreparedPairs, TrainingPairs
from diffrestorer.models.weight_files import save_tensors
from diffrestorer.training.checkpoint import write_folder
from diffrestorer.training.kept_files import write_changed
from diffrestorer.training.launcher import on_main_process
from diffrestorer.training.task import Task

OWNER_SECONDS = 60.0
"""Seconds that a run waits for the owner of a cache before its processes exchange a word."""

FORMAT = 1
CHUNK = 256
"""Variants per chunk: about 17 MB of sd15's stage 1."""
SHARED_ENCODINGS = ["clip_embedding", "latents"]
"""Encodings that sd15's stage 1 and the decoder stage share, so that one cache serves both."""
TOLERANCES = {"no": 1e-3, "fp16": 4e-3, "bf16": 3e-2}
"""Largest difference of a row computed again, relative to its largest value, by mixed precision. Batches and devices
differ by less, other pixels by more."""


class EncodingCache:
    """A folder of chunks, each with its checksum; `open_cache` makes it complete.

    Args:
        folder: of the cache.
        num_variants: rows of all chunks together.
    """

    def __init__(self, folder: Path, num_variants: int) -> None:
        self.folder = folder
        self.num_variants = num_variants
        self.num_chunks = -(-num_variants // CHUNK)

    def read(self, variant: int) -> dict[str, Tensor]:
        """Return one variant's encodings by name."""
        chunk, row = divmod(variant, CHUNK)
        file = self._open(chunk)
        return {name: file.get_slice(name)[row : row + 1][0] for name in file.keys()}  # noqa: SIM118 - no dict

    def write(self, chunk: int, encodings: dict[str, Tensor]) -> None:
        """Save a chunk's rows with their checksum."""

        def fill(partial: Path) -> None:
            save_tensors(encodings, partial / "rows.safetensors")
            (partial / "sha256").write_text(_file_digest(partial / "rows.safetensors"))

        write_folder(self.chunk(chunk), fill)

    def missing(self, chunks: Sequence[int]) -> list[int]:
        """Return those of `chunks` that are not there or damaged."""
        return [chunk for chunk in chunks if not self._is_sound(self.chunk(chunk))]

    def _is_sound(self, folder: Path) -> bool:
        try:
            return (folder / "sha256").read_text() == _file_digest(folder / "rows.safetensors")
        except (OSError, ValueError):
            return False

    def chunk(self, chunk: int) -> Path:
        """Return a chunk's folder."""
        return self.folder / f"chunk_{chunk:05d}"

    @lru_cache(maxsize=128)  # noqa: B019 - the cache lives as long as the run
    def _open(self, chunk: int) -> Any:
        return safe_open(self.chunk(chunk) / "rows.safetensors", "pt")


class CachedPairs(Dataset[Pair]):
    """Fixed pairs with their encodings, for the loader to read when there is a cache.

    Args:
        pairs: without encodings.
        cache: complete.
    """

    def __init__(self, pairs: PreparedPairs, cache: EncodingCache) -> None:
        self.pairs = pairs
        self.cache = cache

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        encodings = self.cache.read(self.pairs.variant(*key))
        return replace(self.pairs[key], encodings=encodings)


class _Variants(Dataset[Pair]):
    def __init__(self, pairs: PreparedPairs) -> None:
        self.pairs = pairs

    def __getitem__(self, index: int) -> Pair:
        return self.pairs.fixed(index)


def open_cache(
    root: Path,
    task: Task,
    pairs: TrainingPairs,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
    log: logging.Logger,
) -> CachedPairs:
    """Return the pairs with their encodings. Rows that are missing or damaged are computed, a share per process.

    A build that was killed goes on with the chunk it was at. Runs that share a cache build it one after the other.

    Args:
        root: folder of caches.
        task: has the encoders.
        pairs: of the run.
        accelerator: of the run.
        batch_size: pairs that are encoded at once.
        num_workers: processes that read pairs.
        log: of the run.

    Raises:
        ValueError: the task has nothing to cache, the pairs are not fixed, or rows differ from what is computed now.
    """
    # Refuse what can't be cached.
    modules, settings = task.encoders()
    if not modules:
        raise ValueError(
            f"train.cache_dir: {type(task).__name__} has no frozen encoders to cache; leave it null"
        )
    if not isinstance(pairs, PreparedPairs) or pairs.num_variants is None:
        raise ValueError(
            "train.cache_dir needs pairs that are the same in every epoch: prepare them (`diffrestorer prepare`) at "
            "data.size, or leave it null; pairs made on the fly are new each time"
        )

    # The name follows from the content.
    task.to(accelerator.device)
    names = sorted(task.encode(collate_pairs([pairs.fixed(0)]).to(accelerator.device)))
    key = {"format": FORMAT, "pairs": pairs.fingerprint(), "settings": settings}
    key["encoders"] = _weights_digest(modules)
    key.update(_later_keys(accelerator.mixed_precision, names))
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    cache = EncodingCache(root / name, pairs.num_variants)

    # Another run may be building the same cache: it is waited for, and what it built is not built again.
    own = range(accelerator.process_index, cache.num_chunks, accelerator.num_processes)
    if any(gather_object([bool(cache.missing(own))])):
        with ExitStack() as held:
            # No exchange between processes may take minutes: NCCL ends the run after ten.
            while not on_main_process(accelerator, partial(_take, cache.folder, held)):
                pass
            _build(cache, cache.missing(own), task, pairs, accelerator, batch_size, num_workers, log)
            accelerator.wait_for_everyone()

    if accelerator.is_main_process:
        _compare(cache, task, pairs, accelerator)
        write_changed(cache.folder / "key.json", (json.dumps(key, indent=1) + "\n").encode())
    return CachedPairs(pairs, cache)


def _take(folder: Path, held: ExitStack) -> bool:
    """Hold a cache's folder until `held` is closed; return whether it became free within a minute."""
    try:
        held.enter_context(own_folder(folder, wait=OWNER_SECONDS))
    except FolderInUseError:
        return False
    return True


def _build(
    cache: EncodingCache,
    chunks: Sequence[int],
    task: Task,
    pairs: PreparedPairs,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
    log: logging.Logger,
) -> None:
    """Compute chunks that are missing or damaged, with a progress bar on the main process."""
    for chunk in chunks:
        if cache.chunk(chunk).exists():
            folder = cache.chunk(chunk)
            log.warning(
                "cache %s is damaged: it does not match its checksum; computing it again", folder
            )
    if chunks:
        log.info("encoding %d variants of the pairs into %s", pairs.num_variants, cache.folder)

    quiet = not accelerator.is_main_process or not chunks
    for chunk in track(chunks, "encoding", console=Console(stderr=True), disable=quiet):
        variants = range(chunk * CHUNK, min((chunk + 1) * CHUNK, cache.num_variants))
        cache.write(chunk, _encode(task, pairs, variants, accelerator, batch_size, num_workers))


def _later_keys(mixed_precision: str, names: list[str]) -> dict[str, Any]:
    """Return parts of a cache's key that came later. At their first values they are left out: older caches stay."""
    key: dict[str, Any] = {}
    if mixed_precision != "no":
        key["precision"] = mixed_precision
    if names != SHARED_ENCODINGS:
        key["encodings"] = names
    return key


def _encode(
    task: Task,
    pairs: PreparedPairs,
    variants: Sequence[int],
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
) -> dict[str, Tensor]:
    """Return the encodings of variants by name, refusing values that are not finite."""
    starts = range(0, len(variants), batch_size)
    batches = [list(variants[start : start + batch_size]) for start in starts]

    # Rows wait on the host for their chunk to be complete.
    rows: list[dict[str, Tensor]] = []
    for batch in pair_loader(_Variants(pairs), batches, num_workers):
        encoded = _encode_batch(task, batch, accelerator)
        rows.append({name: value.cpu() for name, value in encoded.items()})
    encodings = {name: torch.cat([row[name] for row in rows]).contiguous() for name in rows[0]}

    for name, value in encodings.items():
        if not value.isfinite().all():
            raise ValueError(
                f"{name} of the pairs {variants[0]} to {variants[-1]} is not finite: check the encoders"
            )
    return encodings


def _encode_batch(task: Task, batch: PairBatch, accelerator: Accelerator) -> dict[str, Tensor]:
    """Return a batch's encodings in float32, computed in the precision of a training step."""
    with accelerator.autocast():
        encodings = task.encode(batch.to(accelerator.device))
    return {name: value.float() for name, value in encodings.items()}


def _compare(
    cache: EncodingCache,
    task: Task,
    pairs: PreparedPairs,
    accelerator: Accelerator,
    num_rows: int = 3,
) -> None:
    """Compute a few rows, spread over the cache, again and refuse a cache that differs."""
    tolerance = TOLERANCES[accelerator.mixed_precision]
    last = cache.num_variants - 1
    places = [i / max(1, num_rows - 1) for i in range(num_rows)]

    # A small cache may have fewer rows than are asked for.
    for variant in sorted({round(place * last) for place in places}):
        now = _encode_batch(task, collate_pairs([pairs.fixed(variant)]), accelerator)
        kept = cache.read(variant)
        for name, values in now.items():
            value = values[0].cpu()
            if (value - kept[name]).abs().max() > tolerance * value.abs().max():
                raise ValueError(
                    f"cache {cache.folder} is not what the encoders say now ({name} of variant {variant}): how images "
                    "are read or encoded has changed; remove the folder, and it is computed again"
                )


def _weights_digest(modules: Sequence[nn.Module]) -> str:
    """Return a digest of networks: their constructors' arguments and their weights."""
    digest = hashlib.sha256()
    for module in modules:
        # diffusers' own entries differ between processes: the folder, and a list without a fixed order.
        config = getattr(module, "config", {})
        arguments = {key: value for key, value in config.items() if not key.startswith("_")}
        digest.update(json.dumps(arguments, sort_keys=True, default=str).encode())
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
