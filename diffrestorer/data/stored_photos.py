"""A prepared store of clean photos, which are degraded while training."""

import hashlib
from dataclasses import replace

import numpy as np

from diffrestorer.config.classes import model_classes
from diffrestorer.config.degradations import CLEAN, degradation_index
from diffrestorer.config.schema import DataConfig
from diffrestorer.config.synthesis_ranges import Synthesis
from diffrestorer.config.view_ranges import Views
from diffrestorer.data.counter import shuffled
from diffrestorer.data.manifest import read_batches
from diffrestorer.data.on_the_fly import PairMaker
from diffrestorer.data.pairs import Pair, augment
from diffrestorer.data.remote import Location
from diffrestorer.data.stored_pairs import PreparedPairs


def holds_only_photos(root: Location) -> bool:
    """Tell whether all training pairs of a prepared folder are clean photos.

    Raises:
        ValueError: as `read_batches`.
    """
    found = False
    for batch in read_batches(root, ["degradation", "split"]):
        for degradation, split in zip(batch["degradation"], batch["split"], strict=True):
            if split == "train" and degradation != CLEAN:
                return False
            found = found or split == "train"
    return found


class StoredPhotos(PreparedPairs):
    """Pairs made on the fly from the photos that `diffrestorer prepare set=photos degradations=[clean]` stored.

    An epoch visits every (photo, class) once, in an order drawn from the seed that is computed, so memory does not grow
    with the photos. Sample (step, position) is cropped, varied and degraded as `data=photos` does it to a folder's.

    Args:
        config: root, crop size, classes, their strength and views.
        seed: of the run.
        global_batch_size: samples per step over all processes.

    Raises:
        ValueError: as `PreparedPairs` and `PairMaker`.
    """

    def __init__(self, config: DataConfig, seed: int, global_batch_size: int) -> None:
        # The index knows one class: what is made of the photos is no matter of the store.
        stored = replace(
            config,
            classes=[CLEAN],
            degradations=None,
            synthesis=Synthesis(),
            synthesis_module=None,
            views=Views(),
            balance="pairs",
        )
        super().__init__(stored, seed, global_batch_size)
        self.maker = PairMaker(config, seed)
        self.classes = model_classes(config)
        self.degradations = self.maker.degradations

    @property
    def num_variants(self) -> None:
        """None: no two epochs have the same pairs."""
        return None

    def counts(self) -> dict[str, int]:
        """Return the number of pairs of each class that an epoch makes."""
        return dict.fromkeys(self.degradations, self.num_stored)

    def fingerprint(self) -> str:
        """Return a digest of the manifest, the classes, the crop and the user's functions; no pixel is read."""
        made = f"{super().fingerprint()} {' '.join(self.degradations)} {self.maker.own.sha256}"
        return hashlib.sha256(made.encode()).hexdigest()

    def source(self, step: int, position: int) -> tuple[Location, str]:
        """Return the address of the photo and the degradation of sample (step, position)."""
        photo, degradation = self._draw(step, position)
        shard, row, _ = self._locate(photo)
        return self.root / f"{shard}#{row}", degradation

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        photo, degradation = self._draw(*key)
        shard, row, _ = self._locate(photo)
        clean = np.ascontiguousarray(self._open(shard)[row][1].transpose(1, 2, 0))
        lq, gt = self.maker.make(clean, degradation, *key)
        pair = Pair(lq, gt, degradation_index(degradation, self.classes), *key)
        return augment(pair, self.seed) if self.augment else pair

    def _draw(self, step: int, position: int) -> tuple[int, str]:
        """Return the number of a sample's photo, and its degradation."""
        count = self.num_stored * len(self.degradations)
        epoch, place = divmod(step * self.global_batch_size + position, count)
        number = shuffled(place, count, self.seed, "order", epoch)
        photo, degradation = divmod(number, len(self.degradations))
        return photo, self.degradations[degradation]
