"""The training pairs that a configuration asks for, from any source."""

from diffrestorer.config.schema import DataConfig
from diffrestorer.data.manifest import MANIFEST, read_batches
from diffrestorer.data.pair_folders import PairFolders, find_pairs, found_classes
from diffrestorer.data.pairs import SynthesisedPairs
from diffrestorer.data.remote import Location, open_root
from diffrestorer.data.stored_pairs import PreparedPairs as PreparedPairs
from diffrestorer.data.stored_photos import StoredPhotos, holds_only_photos

TrainingPairs = SynthesisedPairs | PreparedPairs | PairFolders
"""Training pairs of any source."""


def open_pairs(config: DataConfig, seed: int, global_batch_size: int) -> "TrainingPairs":
    """Return the training pairs that a configuration asks for: prepared ones, folders, or photos degraded on the fly.

    `data=photos` and `data=pairs` take a prepared folder as well: it is recognised by its manifest. If it holds clean
    photos only, `data=photos` degrades them on the fly.

    Raises:
        ValueError: see the four classes.
    """
    if config.name == "photos" and not is_prepared(config.root):
        return SynthesisedPairs(config, seed, global_batch_size)
    if config.name == "pairs" and not is_prepared(config.root):
        return PairFolders(config, seed, global_batch_size)
    if config.name == "photos" and holds_only_photos(_root(config)):
        return StoredPhotos(config, seed, global_batch_size)
    return PreparedPairs(config, seed, global_batch_size)


def is_prepared(root: str | None) -> bool:
    """Tell whether a folder holds prepared pairs."""
    return root is not None and (open_root(root) / MANIFEST).is_file()


def name_classes(config: DataConfig) -> list[str]:
    """Return the classes of the pairs in a user's folders, or in the prepared folder that was made of them.

    Raises:
        ValueError: as `find_pairs` or `read_batches`.
    """
    if not is_prepared(config.root):
        pairs = find_pairs(
            config.root, config.lq, config.gt, config.degradation, config.lq_name, config.gt_name
        )
        return found_classes(pairs)
    found: set[str] = set()
    for batch in read_batches(_root(config), ["degradation", "split"]):
        rows = zip(batch["degradation"], batch["split"], strict=True)
        found.update(degradation for degradation, split in rows if split == "train")
    return sorted(found)


def _root(config: DataConfig) -> Location:
    assert config.root is not None
    return open_root(config.root, config.cache_dir, config.cache_gb)
