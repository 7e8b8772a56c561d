"""Training pairs: crops of clean photos, degraded on the fly, each with its class, addressed by (step, position)."""

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from diffrestorer.config.classes import check_classes, model_classes
from diffrestorer.config.degradations import degradation_index
from diffrestorer.config.schema import DataConfig
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.images import ImageError, find_images
from diffrestorer.data.on_the_fly import PairMaker
from diffrestorer.data.recent_photos import read_pixels


@dataclass(frozen=True)
class PairBatch:
    """One process's share of a global batch.

    Attributes:
        lq, gt: degraded and clean images, uint8.
        label: index of the degradation among the model's classes.
        step: which step of the run, from 0.
        positions: of these samples in the global batch.
        encodings: what frozen networks say of the pairs, by name, where it is cached.
    """

    lq: UInt8[Tensor, "b 3 h w"]
    gt: UInt8[Tensor, "b 3 h w"]
    label: Int[Tensor, "b"]
    step: int
    positions: tuple[int, ...]
    encodings: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "PairBatch":
        """Return the batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "PairBatch":
        """Return the batch in page-locked memory, which a GPU copies while the host goes on; the loader calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, move: Callable[[Any], Any]) -> "PairBatch":
        """Return the batch with `move` applied to each tensor."""
        encodings = {name: move(value) for name, value in self.encodings.items()}
        return PairBatch(
            move(self.lq), move(self.gt), move(self.label), self.step, self.positions, encodings
        )


@dataclass(frozen=True)
class Pair:
    """One sample: `lq` and `gt` uint8 (h, w, 3), its class, where it came from, and cached encodings if any."""

    lq: np.ndarray
    gt: np.ndarray
    label: int
    step: int
    position: int
    encodings: dict[str, Tensor] = field(default_factory=dict)


def augment(pair: Pair, seed: int) -> Pair:
    """Return a square pair in one of its eight orientations, drawn by counter: quarter turns, mirrored or not."""
    turns, mirrored = divmod(int(counter_rng(seed, "augment", pair.step, pair.position).integers(8)), 2)
    images = [np.rot90(image[:, ::-1] if mirrored else image, turns) for image in (pair.lq, pair.gt)]
    lq, gt = map(np.ascontiguousarray, images)
    return replace(pair, lq=lq, gt=gt)


def check_data(config: DataConfig) -> None:
    """Check what every source of pairs needs.

    Raises:
        ValueError: the size is not one that the VAE divides, or the classes or degradations are not valid.
    """
    if config.size < 8 or config.size % 8:
        raise ValueError(f"data.size={config.size} is not a multiple of 8, which the VAE divides by")
    check_classes(config)


class SynthesisedPairs(Dataset[Pair]):
    """Pairs made from a folder of clean photos: crop, flip, then degrade.

    An epoch visits every (photo, class) once, in an order drawn from the seed. Sample (step, position) is number
    step * global_batch_size + position of that order, so any sample of the run can be made at any time.

    Args:
        config: root folder, crop size, classes and their strength.
        seed: of the run.
        global_batch_size: samples per step over all processes.

    Raises:
        ValueError: the folder is missing or holds no image; a class can't be made from photos; a variant of the
            synthesis is held out. An image that cannot be
            read is an `ImageError` when its turn comes, with its path.
    """

    def __init__(self, config: DataConfig, seed: int, global_batch_size: int) -> None:
        # A folder of photos.
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
        self.root = Path(config.root)
        self.paths = find_images(config.root)
        if not self.paths:
            raise ValueError(f"data.root={config.root} holds no images (jpg, png, webp, ...)")

        # Classes, all of which can be made from photos.
        self.size = config.size
        self.classes = model_classes(config)
        self.maker = PairMaker(config, seed)
        self.degradations = self.maker.degradations
        self.own = self.maker.own
        self.skip_unreadable = config.skip_unreadable
        self.augment = config.augment
        self.seed = seed
        self.global_batch_size = global_batch_size

    @property
    def num_fixed(self) -> int:
        """Number of pairs that `fixed` knows."""
        return len(self.paths)

    def counts(self) -> dict[str, int]:
        """Return the number of pairs of each class that an epoch makes."""
        return {name: len(self.paths) for name in self.degradations}

    def fingerprint(self) -> str:
        """Return a digest that changes when a photo is added, removed, renamed or resized; no photo is read."""
        digest = hashlib.sha256(" ".join(self.degradations).encode())
        digest.update(self.own.sha256.encode())
        for path in self.paths:
            digest.update(f"{path.relative_to(self.root)} {path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def source(self, step: int, position: int) -> tuple[Path, str]:
        """Return the photo and the degradation of sample (step, position)."""
        number = step * self.global_batch_size + position
        epoch, index = divmod(number, len(self.paths) * len(self.degradations))
        photo, degradation = divmod(int(self._order(epoch)[index]), len(self.degradations))
        return self.paths[photo], self.degradations[degradation]

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        pair = self._pair(*self.source(*key), *key)
        return augment(pair, self.seed) if self.augment else pair

    def fixed(self, index: int) -> Pair:
        """Return one pair of a set that no epoch reorders: photo number `index` by name, with the next class each."""
        return self._pair(
            self.paths[index], self.degradations[index % len(self.degradations)], 0, index
        )

    def _pair(self, path: Path, degradation: str, step: int, position: int) -> Pair:
        """Make a pair: crop, vary, then degrade."""
        lq, gt = self.maker.make(self._read(path), degradation, step, position)
        return Pair(lq, gt, degradation_index(degradation, self.classes), step, position)

    def _read(self, path: Path) -> np.ndarray:
        """Return a photo, or the next one by name if it cannot be read and `data.skip_unreadable` is true."""
        try:
            return read_pixels(path, self.size)
        except ImageError:
            if not self.skip_unreadable:
                raise
        place = self.paths.index(path)
        for other in (*self.paths[place + 1 :], *self.paths[:place]):
            with suppress(ImageError):
                return read_pixels(other, self.size)
        raise ImageError(f"none of the photos in {self.root} can be read")

    @lru_cache(maxsize=2)  # noqa: B019 - the dataset lives as long as the run
    def _order(self, epoch: int) -> np.ndarray:
        """Return the random order of an epoch's (photo, class) pairs."""
        return counter_rng(self.seed, "order", epoch).permutation(
            len(self.paths) * len(self.degradations)
        )


class StepBatches(Sampler[list[tuple[int, int]]]):
    """This process's positions of each global batch, a micro batch at a time, from `first_step` to `max_steps`.

    Args:
        micro_batch_size: samples of a micro batch; None: the process's whole share of the global batch.

    Attributes:
        accumulation: micro batches a step.

    Raises:
        ValueError: the global batch does not divide among the processes, or a share among its micro batches.
    """

    def __init__(
        self,
        first_step: int,
        max_steps: int,
        global_batch_size: int,
        rank: int,
        num_processes: int,
        micro_batch_size: int | None = None,
    ) -> None:
        if global_batch_size < num_processes:
            raise ValueError(
                f"train.global_batch_size={global_batch_size} leaves some of {num_processes} processes without a "
                f"sample: start at most {global_batch_size} processes, or take a larger batch with its learning rate "
                "and steps, such as train.scale=8gpu (128 samples in stage 1) or 64gpu (512)"
            )
        if global_batch_size % num_processes:
            raise ValueError(
                f"train.global_batch_size={global_batch_size} does not divide among {num_processes} processes"
            )

        # This process's share of each global batch, in equal micro batches.
        share = global_batch_size // num_processes
        self.micro_batch_size = share if micro_batch_size is None else micro_batch_size
        if self.micro_batch_size < 1 or share % self.micro_batch_size:
            raise ValueError(
                f"train.micro_batch_size={micro_batch_size} does not divide the {share} samples of a process "
                f"(train.global_batch_size={global_batch_size} over {num_processes}): choose a divisor of {share}"
            )
        self.accumulation = share // self.micro_batch_size
        self.steps = range(first_step, max_steps)
        self.positions = range(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            for start in self.positions[:: self.micro_batch_size]:
                yield [(step, position) for position in range(start, start + self.micro_batch_size)]

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation


def collate_pairs(pairs: Sequence[Pair]) -> PairBatch:
    """Stack pairs of one step into a batch."""
    return PairBatch(
        lq=_stack([pair.lq for pair in pairs]),
        gt=_stack([pair.gt for pair in pairs]),
        label=torch.tensor([pair.label for pair in pairs]),
        step=pairs[0].step,
        positions=tuple(pair.position for pair in pairs),
        encodings={
            name: torch.stack([pair.encodings[name] for pair in pairs]) for name in pairs[0].encodings
        },
    )


def _stack(images: Sequence[np.ndarray]) -> UInt8[Tensor, "b 3 h w"]:
    """Stack images (h, w, 3) into one tensor; in a worker, in memory that the main process shares."""
    return default_collate(
        [torch.from_numpy(image.transpose(2, 0, 1)) for image in images]
    ).contiguous()


def pair_loader(
    dataset: Dataset[Pair], batches: Iterable[list[Any]], num_workers: int, pin_memory: bool = False
) -> DataLoader[PairBatch]:
    """Return a loader of this process's batches; the number of workers changes nothing but the speed.

    Its workers end with its last batch. Persistent ones would wait for the garbage collector, which may close their
    queues first; each then costs five seconds.
    """
    cv2.setNumThreads(
        0
    )  # OpenCV's thread pool does not survive the fork into workers: they would wait for it forever
    return DataLoader(
        dataset,  # type: ignore[arg-type] # of Pair; collate_pairs makes PairBatch of them
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate_pairs,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker,
    )


def _prepare_worker(worker: int) -> None:
    """Give a loader's worker one thread, and leave the signals to stop to the main process.

    The loader itself ends a worker by SIGTERM, so that one counts where the main process sent it. A system that does
    not name a signal's sender (macOS) leaves SIGTERM as it is.
    """
    torch.set_num_threads(1)
    signal.set_wakeup_fd(-1)  # it is the main process's
    for name in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(main_process: int) -> None:
    """End this worker when the main process sends SIGTERM; ignore anybody else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main_process:
        pass
    os._exit(0)
