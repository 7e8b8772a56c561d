"""What frozen encoders say of prepared pairs, computed once and kept on disk: a training step reads it instead.

Fixed pairs only: a pair and its mirror image are two variants, each with a row of its own. The cache's folder is named
after all that its content follows from (pairs, encoders, settings, precision), so a changed encoder or pair makes
another one; and a few rows are computed again at every start and compared, so a changed transform is found as well.
Encoders run in the run's mixed precision, as they do in a step without a cache, and rows are float32.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from diffrestorer.data.pairs import Pair, PairBatch, SynthesisedPairs, collate_pairs, pair_loader
from diffrestorer.data.prepared import PreparedPairs
from diffrestorer.training.checkpoint import write_folder
from diffrestorer.training.task import Task

FORMAT = 1
CHUNK = 256
"""Variants a chunk: about 17 MB of sd15's stage 1."""
SHARED_ENCODINGS = ["clip_embedding", "latents"]
"""What sd15's stage 1 and the decoder stage keep alike, so that one cache serves both."""
TOLERANCES = {"no": 1e-3, "fp16": 4e-3, "bf16": 3e-2}
"""By mixed precision, of a row computed again, relative to its largest value: batches and devices differ by less, other
pixels by more."""


class EncodingCache:
    """A folder of chunks, each with its checksum; `open_cache` makes it complete."""

    def __init__(self, folder: Path, num_variants: int) -> None:
        self.folder = folder
        self.num_variants = num_variants
        self.num_chunks = -(-num_variants // CHUNK)

    def read(self, variant: int) -> dict[str, Tensor]:
        """One variant's encodings by name."""
        chunk, row = divmod(variant, CHUNK)
        file = self._open(chunk)
        return {name: file.get_slice(name)[row : row + 1][0] for name in file.keys()}  # noqa: SIM118 - no dict

    def write(self, chunk: int, encodings: dict[str, Tensor]) -> None:
        """Saves a chunk's rows with their checksum."""

        def fill(partial: Path) -> None:
            save_file(encodings, partial / "rows.safetensors")
            (partial / "sha256").write_text(_file_digest(partial / "rows.safetensors"))

        write_folder(self._chunk(chunk), fill)

    def missing(self, chunks: Sequence[int], log: logging.Logger) -> list[int]:
        """Those of `chunks` that are not there, or damaged, which is said."""
        found = []
        for chunk in chunks:
            folder = self._chunk(chunk)
            if not folder.is_dir():
                found.append(chunk)
            elif not self._is_sound(folder):
                log.warning("cache %s is damaged: it does not match its checksum; computing it anew", folder)
                found.append(chunk)
        return found

    def _is_sound(self, folder: Path) -> bool:
        try:
            return (folder / "sha256").read_text() == _file_digest(folder / "rows.safetensors")
        except OSError:
            return False

    def _chunk(self, chunk: int) -> Path:
        return self.folder / f"chunk_{chunk:05d}"

    @lru_cache(maxsize=128)  # noqa: B019 - the cache lives as long as the run
    def _open(self, chunk: int) -> Any:
        return safe_open(self._chunk(chunk) / "rows.safetensors", "pt")


class CachedPairs(Dataset[Pair]):
    """Fixed pairs with their encodings: what the loader reads when there is a cache."""

    def __init__(self, pairs: PreparedPairs, cache: EncodingCache) -> None:
        self.pairs = pairs
        self.cache = cache

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        return replace(self.pairs[key], encodings=self.cache.read(self.pairs.variant(*key)))


class _Variants(Dataset[Pair]):
    def __init__(self, pairs: PreparedPairs) -> None:
        self.pairs = pairs

    def __getitem__(self, index: int) -> Pair:
        return self.pairs.fixed(index)


def open_cache(
    root: Path,
    task: Task,
    pairs: SynthesisedPairs | PreparedPairs,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
    log: logging.Logger,
) -> CachedPairs:
    """The pairs with what the task's encoders say of them; what is missing or damaged is computed, a share a process.

    A build that was killed goes on with the chunk it was at.

    Raises:
        ValueError: the task has nothing to cache, the pairs are not fixed, or rows differ from what is computed now.
    """
    modules, settings = task.encoders()
    if not modules:
        raise ValueError(f"train.cache_dir: {type(task).__name__} has no frozen encoders to cache; leave it null")
    if not isinstance(pairs, PreparedPairs) or pairs.num_variants is None:
        raise ValueError(
            "train.cache_dir needs pairs that are the same in every epoch: prepare them (scripts/prepare_data.py) at "
            "data.size, or leave it null; pairs made on the fly are new each time"
        )
    key = {"format": FORMAT, "pairs": pairs.fingerprint(), "encoders": _weights_digest(modules), "settings": settings}
    if accelerator.mixed_precision != "no":  # float32's caches keep the names they have always had
        key["precision"] = accelerator.mixed_precision
    names = sorted(task.encode(collate_pairs([pairs.fixed(0)]).to(accelerator.device)))
    if names != SHARED_ENCODINGS:  # stages whose encoders are the same may keep other things of them
        key["encodings"] = names
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    cache = EncodingCache(root / name, pairs.num_variants)
    own = range(accelerator.process_index, cache.num_chunks, accelerator.num_processes)
    missing = cache.missing(own, log)
    task.to(accelerator.device)
    if missing:
        log.info("encoding %d variants of the pairs into %s", pairs.num_variants, cache.folder)
    quiet = not accelerator.is_main_process or not missing
    for chunk in track(missing, "encoding", console=Console(stderr=True), disable=quiet):
        variants = range(chunk * CHUNK, min((chunk + 1) * CHUNK, cache.num_variants))
        cache.write(chunk, _encode(task, pairs, variants, accelerator, batch_size, num_workers))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _compare(cache, task, pairs, accelerator)
        (cache.folder / "key.json").write_text(json.dumps(key, indent=1) + "\n")
    return CachedPairs(pairs, cache)


def _encode(
    task: Task,
    pairs: PreparedPairs,
    variants: Sequence[int],
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
) -> dict[str, Tensor]:
    batches = [list(variants[start : start + batch_size]) for start in range(0, len(variants), batch_size)]
    rows: list[dict[str, Tensor]] = []
    for batch in pair_loader(_Variants(pairs), batches, num_workers):
        rows.append({name: value.cpu() for name, value in _encode_batch(task, batch, accelerator).items()})
    encodings = {name: torch.cat([row[name] for row in rows]).contiguous() for name in rows[0]}
    for name, value in encodings.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} of the pairs {variants[0]} to {variants[-1]} is not finite: check the encoders")
    return encodings


def _encode_batch(task: Task, batch: PairBatch, accelerator: Accelerator) -> dict[str, Tensor]:
    """Return a batch's encodings in float32, computed in the precision of a training step."""
    with accelerator.autocast():
        encodings = task.encode(batch.to(accelerator.device))
    return {name: value.float() for name, value in encodings.items()}


def _compare(
    cache: EncodingCache, task: Task, pairs: PreparedPairs, accelerator: Accelerator, num_rows: int = 3
) -> None:
    tolerance, last = TOLERANCES[accelerator.mixed_precision], cache.num_variants - 1
    for variant in sorted({round(i * last / max(1, num_rows - 1)) for i in range(num_rows)}):
        now, kept = _encode_batch(task, collate_pairs([pairs.fixed(variant)]), accelerator), cache.read(variant)
        for name, value in now.items():
            value = value[0].cpu()
            if (value - kept[name]).abs().max() > tolerance * value.abs().max():
                raise ValueError(
                    f"cache {cache.folder} is not what the encoders say now ({name} of variant {variant}): how images "
                    "are read or encoded has changed; remove the folder, and it is computed anew"
                )


def _weights_digest(modules: Sequence[nn.Module]) -> str:
    """Return a digest of networks: their constructors' arguments and their weights."""
    digest = hashlib.sha256()
    for module in modules:
        # Of diffusers' own notes one is the folder, and one a list in another order in every process.
        arguments = {key: value for key, value in getattr(module, "config", {}).items() if not key.startswith("_")}
        digest.update(json.dumps(arguments, sort_keys=True, default=str).encode())
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
