"""Training pairs: crops of clean photos, degraded on the fly, each with its class, addressed by (step, position)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from diffrestorer.config.schema import DataConfig
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.images import ImageError, find_images, read_photo
from diffrestorer.data.synthesis import degrade
from diffrestorer.degradations import degradation_index


@dataclass(frozen=True)
class PairBatch:
    """One process's share of a global batch.

    Attributes:
        lq, gt: degraded and clean images, uint8.
        label: class index of the degradation.
        step: which step of the run, from 0.
        positions: of these samples in the global batch.
    """

    lq: UInt8[Tensor, "b 3 h w"]
    gt: UInt8[Tensor, "b 3 h w"]
    label: Int[Tensor, "b"]
    step: int
    positions: tuple[int, ...]

    def to(self, device: torch.device) -> "PairBatch":
        """The batch with its tensors on `device`."""
        move = lambda tensor: tensor.to(device, non_blocking=True)  # noqa: E731
        return PairBatch(move(self.lq), move(self.gt), move(self.label), self.step, self.positions)


@dataclass(frozen=True)
class Pair:
    """One sample: `lq` and `gt` uint8 (h, w, 3), its class, and where it came from."""

    lq: np.ndarray
    gt: np.ndarray
    label: int
    step: int
    position: int


def check_data(config: DataConfig) -> None:
    """What holds of pairs from anywhere.

    Raises:
        ValueError: the size is not one that the VAE divides, or no degradation is named.
    """
    if config.size < 8 or config.size % 8:
        raise ValueError(f"data.size={config.size} is not a multiple of 8, which the VAE divides by")
    if not config.degradations:
        raise ValueError("data.degradations is empty: name at least one degradation")


class SynthesisedPairs(Dataset[Pair]):
    """Pairs made from a folder of clean photos: crop, flip, then degrade.

    An epoch visits every (photo, class) once, in an order drawn from the seed. Sample (step, position) is number
    step * global_batch_size + position of that order, so any sample of the run can be made at any time.

    Args:
        config: root folder, crop size, classes and their strength.
        seed: of the run.
        global_batch_size: samples a step over all processes.

    Raises:
        ValueError: the folder is missing or holds no image; no degradation is named. An image that cannot be read is
            an `ImageError` when its turn comes, with its path.
    """

    def __init__(self, config: DataConfig, seed: int, global_batch_size: int) -> None:
        if config.name != "photos":
            raise ValueError(
                f"data={config.name} reads pairs prepared on disk, which are not made on the fly: use data=photos "
                "data.root=FOLDER_OF_PHOTOS"
            )
        check_data(config)
        if not config.root:
            raise ValueError("data.root is not set: give data.root=FOLDER_OF_PHOTOS")
        if not Path(config.root).is_dir():
            raise ValueError(f"data.root={config.root} is not a folder; give a folder of clean photos")
        self.paths = find_images(config.root)
        if not self.paths:
            raise ValueError(f"data.root={config.root} holds no images (jpg, png, webp, ...)")
        self.size = config.size
        self.degradations = tuple(config.degradations)
        self.synthesis = config.synthesis
        self.seed = seed
        self.global_batch_size = global_batch_size

    def source(self, step: int, position: int) -> tuple[Path, str]:
        """The photo and the degradation of sample (step, position)."""
        number = step * self.global_batch_size + position
        epoch, index = divmod(number, len(self.paths) * len(self.degradations))
        photo, degradation = divmod(int(self._order(epoch)[index]), len(self.degradations))
        return self.paths[photo], self.degradations[degradation]

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        step, position = key
        path, degradation = self.source(step, position)
        gt = self._crop(_read_cached(path, self.size), counter_rng(self.seed, "crop", step, position))
        lq = degrade(gt, degradation, counter_rng(self.seed, "degradation", step, position), self.synthesis)
        return Pair(lq, gt, degradation_index(degradation), step, position)

    def _crop(self, photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = photo.shape[:2]
        top, left = rng.integers(height - self.size + 1), rng.integers(width - self.size + 1)
        crop = photo[top : top + self.size, left : left + self.size]
        return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)

    @lru_cache(maxsize=2)  # noqa: B019 - the dataset lives as long as the run
    def _order(self, epoch: int) -> np.ndarray:
        return counter_rng(self.seed, "order", epoch).permutation(len(self.paths) * len(self.degradations))


@lru_cache(maxsize=256)
def _read_cached(path: Path, min_side: int) -> np.ndarray:
    """A photo's 8-bit pixels, enlarged where a side is shorter than the crop."""
    try:
        pixels = read_photo(path).pixels
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    scale = min_side / min(pixels.shape[:2])
    if scale > 1:
        size = tuple(max(min_side, round(side * scale)) for side in pixels.shape[1::-1])
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)
    return pixels


class StepBatches(Sampler[list[tuple[int, int]]]):
    """This process's positions of each global batch, from `first_step` to `max_steps`."""

    def __init__(self, first_step: int, max_steps: int, global_batch_size: int, rank: int, num_processes: int) -> None:
        if global_batch_size % num_processes:
            raise ValueError(
                f"train.global_batch_size={global_batch_size} does not divide among {num_processes} processes"
            )
        share = global_batch_size // num_processes
        self.steps = range(first_step, max_steps)
        self.positions = range(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            yield [(step, position) for position in self.positions]

    def __len__(self) -> int:
        return len(self.steps)


def collate_pairs(pairs: Sequence[Pair]) -> PairBatch:
    """Stacks pairs of one step into a batch."""
    return PairBatch(
        lq=_stack([pair.lq for pair in pairs]),
        gt=_stack([pair.gt for pair in pairs]),
        label=torch.tensor([pair.label for pair in pairs]),
        step=pairs[0].step,
        positions=tuple(pair.position for pair in pairs),
    )


def _stack(images: Sequence[np.ndarray]) -> UInt8[Tensor, "b 3 h w"]:
    """Images (h, w, 3) as one tensor; in a worker it is made in the memory that the main process reads."""
    return default_collate([torch.from_numpy(image.transpose(2, 0, 1)) for image in images]).contiguous()


def pair_loader(dataset: Dataset[Pair], batches: StepBatches, num_workers: int) -> DataLoader[PairBatch]:
    """A loader of this process's batches; the number of workers changes nothing but the speed."""
    cv2.setNumThreads(0)  # OpenCV's thread pool does not survive the fork into workers: they would wait for it forever
    return DataLoader(
        dataset,  # type: ignore[arg-type] # of Pair; collate_pairs makes PairBatch of them
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate_pairs,
        worker_init_fn=_single_thread,
        persistent_workers=num_workers > 0,
    )


def _single_thread(worker: int) -> None:
    torch.set_num_threads(1)
