"""The pairs of a prepared folder, local or remote, raw or compressed, addressed by (step, position)."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from torch.utils.data import Dataset

from diffrestorer.config.classes import model_classes, trained_classes
from diffrestorer.config.degradations import CLEAN, DEGRADATIONS, degradation_index
from diffrestorer.config.schema import DataConfig
from diffrestorer.config.synthesis_ranges import Synthesis
from diffrestorer.config.view_ranges import Views
from diffrestorer.data.counter import counter_rng, shuffled
from diffrestorer.data.manifest import (
    MANIFEST,
    Shard,
    manifest_file,
    open_shard,
    read_batches,
    split_address,
)
from diffrestorer.data.order import BalancedOrder
from diffrestorer.data.pairs import Pair, augment, check_data
from diffrestorer.data.remote import Location, open_root

_OPEN_SHARDS = 512  # each local one holds a file descriptor, of which a process usually has 1024


class PreparedPairs(Dataset[Pair]):
    """The training pairs of a folder that `scripts/prepare_data.py` made.

    An epoch visits every pair once, in an order drawn from the seed; pairs larger than `config.size` are cropped at
    random, and half of them mirrored, degraded and clean image alike. Memory does not grow with the number of pairs:
    the index keeps runs of rows (a few per shard), the order is computed, pixels stay on disk.

    Classes may have any name that the manifest's rows have. Pairs of `clean` are the manifest's; where it has none they
    are made of other pairs' clean images, as many as the other classes have on average.

    Args:
        config: root folder, crop size and classes.
        seed: of the run.
        global_batch_size: samples per step over all processes.

    Raises:
        ValueError: there is no manifest, or no training pair of a class that is trained on; the stored pairs are
            smaller than `config.size`; or `config.synthesis` or `config.views` is set, which would change nothing.
    """

    def __init__(self, config: DataConfig, seed: int, global_batch_size: int) -> None:
        if not config.root:
            raise ValueError(
                "data.root is not set: give data.root=FOLDER that `diffrestorer prepare` made"
            )
        check_data(config)

        # Settings that would change nothing are refused.
        if config.synthesis_module:
            raise ValueError(
                "data.synthesis_module degrades photos while training: give it with data=photos and a folder of photos"
            )
        if config.synthesis != Synthesis():
            raise ValueError(
                "data.synthesis says how photos are degraded; prepared pairs are: give it to `diffrestorer prepare`"
            )
        if config.views != Views():
            raise ValueError(
                "data.views says what is seen of photos; prepared pairs are what `diffrestorer prepare` made"
            )

        # The rows of the manifest, whose pairs must be as large as the crop.
        self.root = open_root(config.root, config.cache_dir, config.cache_gb)
        self.size = config.size
        self.augment = config.augment
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.classes = model_classes(config)
        self._read_index(trained_classes(config))
        self.balanced: BalancedOrder[int] | None = None
        if config.balance == "classes":
            slots = [degradation_index(name, self.classes) for name in trained_classes(config)]
            self._index_classes(slots)
        self.stored_size = int(self._open(self.shards[0]).shape[-1])
        if self.stored_size < config.size:
            raise ValueError(
                f"the pairs in {self.root} are {self.stored_size} pixels wide, data.size={config.size} is more"
            )

    def _read_index(self, wanted: Sequence[str]) -> None:
        """Find the runs of rows that follow one another in a shard: shard, class, first row, pairs before the run."""
        # A run ends where the shard, the class or the numbering changes.
        shards: dict[str, int] = {}
        labels = {name: degradation_index(name, self.classes) for name in wanted}
        runs: list[tuple[int, int, int, int]] = []
        count, expected = 0, ("", -1, "")
        for batch in read_batches(self.root, ["lq", "gt", "degradation", "split"]):
            for lq, gt, degradation, split in zip(*batch.values(), strict=True):
                if split != "train" or gt is None or degradation not in labels:
                    continue
                shard, row = split_address(lq)
                if (shard, row, degradation) != expected:
                    runs.append(
                        (shards.setdefault(shard, len(shards)), labels[degradation], row, count)
                    )
                expected = (shard, row + 1, degradation)
                count += 1
        if not count:
            raise ValueError(
                f"{self.root / MANIFEST} has no training pairs of {', '.join(sorted(labels))}; a store of clean photos "
                "alone is degraded by data=photos"
            )
        self.shards = list(shards)
        self.shard_of, self.labels, self.first_rows, self.starts = np.array(runs).T

        # Only now is it known whether `clean` has pairs of its own, and how many the other classes have.
        found = [name for name in self.classes if name in labels and labels[name] in self.labels]
        makes_clean = CLEAN in labels and CLEAN not in found
        if missing := [name for name in labels if name not in found and name != CLEAN]:
            raise ValueError(
                f"{self.root / MANIFEST} has no training pairs of {', '.join(missing)}; prepare them, or train on "
                f"data.degradations=[{','.join(found)}]"
            )
        self.num_stored = count
        self.num_pairs = count + (round(count / len(found)) if makes_clean else 0)

    def _index_classes(self, slots: Sequence[int]) -> None:
        """Number the pairs of each class, so that classes can take turns."""
        ends = np.append(self.starts[1:], self.num_stored)
        lengths = ends - self.starts
        self._runs_of: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        counts = {}
        for label in set(slots):
            runs = np.flatnonzero(self.labels == label)
            before = np.concatenate([[0], np.cumsum(lengths[runs])])
            self._runs_of[label] = (runs, before)
            counts[label] = int(before[-1]) or self.num_pairs - self.num_stored
        self.balanced = BalancedOrder(self.seed, counts, slots)

    def _in_class(self, label: int, place: int) -> int:
        """Return the number of the pair at a place among those of a class; generated `clean` ones are the last."""
        runs, before = self._runs_of[label]
        if not len(runs):
            return self.num_stored + place
        run = int(np.searchsorted(before, place, side="right")) - 1
        return int(self.starts[runs[run]] + place - before[run])

    def source(self, step: int, position: int) -> tuple[Location, str]:
        """Return the address and the degradation of sample (step, position)."""
        shard, row, label = self._locate(self._index(step, position))
        return self.root / f"{shard}#{row}", self.classes[label]

    def counts(self) -> dict[str, int]:
        """Return the number of pairs of each class."""
        lengths = np.append(self.starts[1:], self.num_stored) - self.starts
        counts = {
            self.classes[label]: int(lengths[self.labels == label].sum()) for label in set(self.labels)
        }
        if self.num_pairs > self.num_stored:
            counts[CLEAN] = self.num_pairs - self.num_stored
        return counts

    @property
    def num_variants(self) -> int | None:
        """Number of pairs counting mirrored ones; None if crops are drawn, so that no two epochs have the same."""
        return 2 * self.num_pairs if self.stored_size == self.size and not self.augment else None

    def fingerprint(self) -> str:
        """Return a digest of the manifest (with every pair's checksum), the classes and the crop; no pixel is read."""
        digest = hashlib.sha256(f"{sorted(set(self.labels.tolist()))} {self.size} ".encode())
        if (
            self.classes != DEGRADATIONS
        ):  # of the eight, the digest is that of runs before models had classes
            digest.update(
                f"{' '.join(self.classes)} {self.num_pairs - self.num_stored} clean ".encode()
            )
        digest.update(manifest_file(self.root).read_bytes())
        return digest.hexdigest()

    def variant(self, step: int, position: int) -> int:
        """Return the number of the variant that sample (step, position) is."""
        return 2 * self._index(step, position) + self._view(step, position)[2]

    def fixed(self, variant: int) -> Pair:
        """Return a variant, as position `variant` of step 0."""
        index, mirrored = divmod(variant, 2)
        return self._pair(index, (0, 0, mirrored), 0, variant)

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        pair = self._pair(self._index(*key), self._view(*key), *key)
        return augment(pair, self.seed) if self.augment else pair

    def _index(self, step: int, position: int) -> int:
        """Return the number of the pair that a sample is."""
        if self.balanced is not None:
            return self._in_class(*self.balanced(step * self.global_batch_size + position))
        epoch, place = divmod(step * self.global_batch_size + position, self.num_pairs)
        return shuffled(place, self.num_pairs, self.seed, "order", epoch)

    def _view(self, step: int, position: int) -> tuple[int, int, int]:
        """Return the top and left of a sample's crop, and whether it is mirrored."""
        rng = counter_rng(self.seed, "crop", step, position)
        room = self.stored_size - self.size + 1
        return int(rng.integers(room)), int(rng.integers(room)), int(rng.random() < 0.5)

    def _pair(self, index: int, view: tuple[int, int, int], step: int, position: int) -> Pair:
        """Read a pair, crop it and perhaps mirror it."""
        shard, row, label = self._locate(index)
        top, left, mirrored = view
        pixels = self._open(shard)[row][..., top : top + self.size, left : left + self.size]
        if mirrored:  # NumPy mirrors byte by byte
            pixels = cv2.flip(pixels.reshape(-1, self.size), 1).reshape(pixels.shape)
        lq, gt = pixels.transpose(0, 2, 3, 1)
        return Pair(gt if index >= self.num_stored else lq, gt, label, step, position)

    def _locate(self, index: int) -> tuple[str, int, int]:
        """Return the shard of a pair, its row there and its class; of a generated `clean` pair, those of its image.

        Those follow the stored pairs: no two of the same pair, drawn alike in every run.
        """
        if index >= self.num_stored:
            shard, row, _ = self._locate(shuffled(index - self.num_stored, self.num_stored, 0, CLEAN))
            return shard, row, degradation_index(CLEAN, self.classes)
        run = int(np.searchsorted(self.starts, index, side="right")) - 1
        row = int(self.first_rows[run] + index - self.starts[run])
        return self.shards[self.shard_of[run]], row, int(self.labels[run])

    @lru_cache(maxsize=_OPEN_SHARDS)  # noqa: B019 - the dataset lives as long as the run
    def _open(self, shard: str) -> Shard:
        """Open a shard, whose pixels stay where they are."""
        return open_shard(self.root / shard)
