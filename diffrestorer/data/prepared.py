"""Training pairs from a prepared folder: pixels mapped into memory, addressed by (step, position)."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from diffrestorer.config.schema import DataConfig
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.manifest import MANIFEST, read_batches, split_address
from diffrestorer.data.pairs import Pair, SynthesisedPairs
from diffrestorer.degradations import DEGRADATIONS, degradation_index

_OPEN_SHARDS = 64


def open_pairs(config: DataConfig, seed: int, global_batch_size: int) -> "SynthesisedPairs | PreparedPairs":
    """The training pairs that a configuration asks for: prepared ones, or photos degraded on the fly.

    `data=photos` takes a prepared folder as well: it is recognised by its manifest.

    Raises:
        ValueError: see the two classes.
    """
    prepared = config.name != "photos" or (config.root is not None and (Path(config.root) / MANIFEST).is_file())
    return (PreparedPairs if prepared else SynthesisedPairs)(config, seed, global_batch_size)


class PreparedPairs(Dataset[Pair]):
    """The training pairs of a folder that `scripts/prepare_data.py` made.

    An epoch visits every pair once, in an order drawn from the seed; pairs larger than `config.size` are cropped at
    random, and half of them mirrored, degraded and clean image alike. A pair costs 13 bytes of memory here (its shard,
    row and class) and 8 for the epoch's order; its pixels stay on disk.

    Args:
        config: root folder, crop size and classes.
        seed: of the run.
        global_batch_size: samples a step over all processes.

    Raises:
        ValueError: there is no manifest, no training pair of a class asked for, or the stored pairs are smaller than
            `config.size`.
    """

    def __init__(self, config: DataConfig, seed: int, global_batch_size: int) -> None:
        if not config.root:
            raise ValueError("data.root is not set: give data.root=FOLDER that scripts/prepare_data.py made")
        if config.size < 8 or config.size % 8:
            raise ValueError(f"data.size={config.size} is not a multiple of 8, which the VAE divides by")
        if not config.degradations:
            raise ValueError("data.degradations is empty: name at least one degradation")
        self.root = Path(config.root)
        self.size = config.size
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.shards: list[str] = []
        self._read_index(frozenset(config.degradations))
        found = {DEGRADATIONS[label] for label in np.unique(self.labels)}
        if missing := [name for name in config.degradations if name not in found]:
            raise ValueError(
                f"{self.root / MANIFEST} has no training pairs of {', '.join(missing)}; prepare them, or train on "
                f"data.degradations=[{','.join(sorted(found))}]"
            )
        stored = self._open(self.shards[0]).shape[2]
        if stored < config.size:
            raise ValueError(f"the pairs in {self.root} are {stored} pixels wide, data.size={config.size} is more")

    def _read_index(self, wanted: frozenset[str]) -> None:
        labels, shards, rows = [], [], []
        numbers: dict[str, int] = {}
        for batch in read_batches(self.root, ["lq", "gt", "degradation", "split"]):
            kept = [
                (degradation_index(degradation), *split_address(lq))
                for lq, gt, degradation, split in zip(*batch.values(), strict=True)
                if split == "train" and gt is not None and degradation in wanted
            ]
            labels.append(np.array([label for label, _, _ in kept], np.uint8))
            shards.append(np.array([numbers.setdefault(shard, len(numbers)) for _, shard, _ in kept], np.int32))
            rows.append(np.array([row for _, _, row in kept], np.int32))
        self.shards = list(numbers)
        if not self.shards:
            raise ValueError(f"{self.root / MANIFEST} has no training pairs of {', '.join(sorted(wanted))}")
        self.labels, self.shard_of, self.row_of = np.concatenate(labels), np.concatenate(shards), np.concatenate(rows)

    def source(self, step: int, position: int) -> tuple[Path, str]:
        """The address and the degradation of sample (step, position)."""
        index = self._index(step, position)
        path = self.root / f"{self.shards[self.shard_of[index]]}#{self.row_of[index]}"
        return path, DEGRADATIONS[self.labels[index]]

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        step, position = key
        index = self._index(step, position)
        pixels = self._open(self.shards[self.shard_of[index]])[self.row_of[index]]
        rng = counter_rng(self.seed, "crop", step, position)
        top, left = rng.integers(pixels.shape[1] - self.size + 1), rng.integers(pixels.shape[2] - self.size + 1)
        pixels = pixels[:, top : top + self.size, left : left + self.size]
        lq, gt = np.array(pixels[:, :, ::-1] if rng.random() < 0.5 else pixels)
        return Pair(lq, gt, int(self.labels[index]), step, position)

    def _index(self, step: int, position: int) -> int:
        epoch, index = divmod(step * self.global_batch_size + position, len(self.labels))
        return int(self._order(epoch)[index])

    @lru_cache(maxsize=2)  # noqa: B019 - the dataset lives as long as the run
    def _order(self, epoch: int) -> np.ndarray:
        return counter_rng(self.seed, "order", epoch).permutation(len(self.labels)).astype(np.int32)

    @lru_cache(maxsize=_OPEN_SHARDS)  # noqa: B019
    def _open(self, shard: str) -> np.ndarray:
        try:
            pixels = np.load(self.root / shard, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.root / shard} cannot be read ({error}); --check finds what is damaged") from None
        if pixels.dtype != np.uint8 or pixels.ndim != 5 or pixels.shape[1] != 2:
            raise ValueError(f"{self.root / shard} does not hold pairs: {pixels.dtype} {pixels.shape}")
        return np.asarray(pixels)
