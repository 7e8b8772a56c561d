"""Training pairs are addressed by (step, position): workers, processes and resumption change nothing."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.config.schema import DataConfig
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.images import ImageError
from diffrestorer.data.pairs import (
    Pair,
    PairBatch,
    StepBatches,
    SynthesisedPairs,
    collate_pairs,
    pair_loader,
)
from diffrestorer.data.synthesis import degrade

SIZE = 64
BATCH = 6


@pytest.fixture(scope="module")
def config(photos_dir: Path) -> DataConfig:
    return DataConfig(name="photos", root=str(photos_dir), size=SIZE, degradations=list(DEGRADATIONS))


@pytest.fixture(scope="module")
def pairs(config: DataConfig) -> SynthesisedPairs:
    return SynthesisedPairs(config, seed=3, global_batch_size=BATCH)


def equal(first: Pair, second: Pair) -> bool:
    return bool(
        (first.lq == second.lq).all() and (first.gt == second.gt).all() and first.label == second.label
    )


def load(
    pairs: SynthesisedPairs,
    first_step: int,
    max_steps: int,
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> list[PairBatch]:
    return list(pair_loader(pairs, StepBatches(first_step, max_steps, BATCH, rank, processes), workers))


def same_batches(first: list[PairBatch], second: list[PairBatch]) -> bool:
    return len(first) == len(second) and all(
        a.step == b.step
        and a.positions == b.positions
        and torch.equal(a.label, b.label)
        and torch.equal(a.lq, b.lq)
        and torch.equal(a.gt, b.gt)
        for a, b in zip(first, second, strict=True)
    )


def test_a_sample_is_a_function_of_step_and_position(
    config: DataConfig, pairs: SynthesisedPairs
) -> None:
    again = SynthesisedPairs(config, seed=3, global_batch_size=BATCH)
    late = again[7, 2]
    for key in [(0, 0), (7, 2), (7, 3)]:
        assert equal(pairs[key], again[key])
    assert equal(again[7, 2], late)
    assert (late.step, late.position) == (7, 2)
    assert not equal(SynthesisedPairs(config, seed=4, global_batch_size=BATCH)[7, 2], late)


def test_an_epoch_visits_every_photo_and_class_once(
    config: DataConfig, pairs: SynthesisedPairs
) -> None:
    length = len(pairs.paths) * len(DEGRADATIONS)
    assert length == 32
    # 32 samples at 6 a step: the epoch's end lies within a step.
    numbers = [(number // BATCH, number % BATCH) for number in range(2 * length)]
    sources = [pairs.source(*key) for key in numbers]
    first, second = sources[:length], sources[length:]
    everything = {(path, name): 1 for path in pairs.paths for name in DEGRADATIONS}
    assert Counter(first) == Counter(second) == everything
    assert first != second, "each epoch has its own order"
    other_batch = SynthesisedPairs(config, seed=3, global_batch_size=BATCH * 2)
    assert [other_batch.source(n // 12, n % 12) for n in range(length)] == first


def test_labels_are_those_of_the_degradation(pairs: SynthesisedPairs) -> None:
    seen = set()
    for number in range(32):
        key = (number // BATCH, number % BATCH)
        path, name = pairs.source(*key)
        pair = pairs[key]
        assert pair.label == DEGRADATIONS.index(name)
        assert (pair.lq == degrade(pair.gt, name, counter_rng(3, "degradation", *key))).all()
        assert (pair.lq != pair.gt).any()
        assert contains(np.asarray(Image.open(path)), pair.gt), (
            "gt is a crop of its photo, maybe mirrored"
        )
        seen.add(pair.label)
    assert seen == set(range(8))


def contains(photo: np.ndarray, crop: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(photo, (1, crop.shape[1], 3))[
        : photo.shape[0] - SIZE + 1, :, 0
    ]
    for candidate in (crop, crop[:, ::-1]):
        for top, left in np.argwhere((windows[:, :, 0] == candidate[0]).all(axis=(2, 3))):
            if (photo[top : top + SIZE, left : left + SIZE] == candidate).all():
                return True
    return False


def test_crops_move_and_mirror(config: DataConfig, photos_dir: Path) -> None:
    pairs = SynthesisedPairs(replace(config, degradations=["noise"]), seed=0, global_batch_size=4)
    by_photo: dict[Path, list[np.ndarray]] = {}
    for step in range(3):
        for position in range(4):
            by_photo.setdefault(pairs.source(step, position)[0], []).append(pairs[step, position].gt)
    assert all(len(crops) == 3 for crops in by_photo.values())
    assert all((crops[0] != crops[1]).any() for crops in by_photo.values())


def test_a_degradation_named_twice_is_made_twice_as_often(config: DataConfig) -> None:
    named = ["jpeg", "raindrop", "raindrop"]
    pairs = SynthesisedPairs(replace(config, degradations=named), seed=0, global_batch_size=3)
    epoch = Counter(pairs.source(step, i)[1] for step in range(len(pairs.paths)) for i in range(3))
    assert epoch == {"jpeg": len(pairs.paths), "raindrop": 2 * len(pairs.paths)}


def test_only_the_named_degradations_are_made(config: DataConfig) -> None:
    pairs = SynthesisedPairs(
        replace(config, degradations=["jpeg", "blur"]), seed=0, global_batch_size=BATCH
    )
    names = Counter(pairs.source(0, position)[1] for position in range(8))
    assert names == {"jpeg": 4, "blur": 4}
    assert {pairs[0, position].label for position in range(8)} == {6, 7}, (
        "the class index stays that of all eight"
    )


def test_batches_are_channels_first_bytes(pairs: SynthesisedPairs) -> None:
    (batch,) = load(pairs, 4, 5)
    assert batch.lq.shape == batch.gt.shape == (BATCH, 3, SIZE, SIZE)
    assert batch.lq.dtype == batch.gt.dtype == torch.uint8
    assert (batch.step, batch.positions) == (4, tuple(range(BATCH)))
    for row in range(BATCH):
        pair = pairs[4, row]
        assert (batch.lq[row].permute(1, 2, 0).numpy() == pair.lq).all()
        assert (batch.gt[row].permute(1, 2, 0).numpy() == pair.gt).all()
        assert batch.label[row] == pair.label
    moved = batch.to(torch.device("cpu"))
    assert same_batches([moved], [batch])


def test_workers_change_nothing(pairs: SynthesisedPairs) -> None:
    assert same_batches(load(pairs, 0, 3, workers=2), load(pairs, 0, 3, workers=0))


def test_resuming_changes_nothing(pairs: SynthesisedPairs) -> None:
    assert same_batches(load(pairs, 2, 4), load(pairs, 0, 4)[2:])
    assert load(pairs, 4, 4) == []


@pytest.mark.parametrize("processes", [2, 3])
def test_the_number_of_processes_changes_nothing(pairs: SynthesisedPairs, processes: int) -> None:
    whole = load(pairs, 1, 3)
    shares = [load(pairs, 1, 3, rank, processes) for rank in range(processes)]
    joined = [
        PairBatch(
            torch.cat([share.lq for share in step]),
            torch.cat([share.gt for share in step]),
            torch.cat([share.label for share in step]),
            step[0].step,
            tuple(position for share in step for position in share.positions),
        )
        for step in zip(*shares, strict=True)
    ]
    assert same_batches(joined, whole)
    keys = [list(StepBatches(0, 2, BATCH, rank, processes)) for rank in range(processes)]
    joined_keys = [[key for share in step for key in share] for step in zip(*keys, strict=True)]
    assert joined_keys == list(StepBatches(0, 2, BATCH, 0, 1))


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"train\.global_batch_size=6 does not divide among 4 processes"
    ):
        StepBatches(0, 1, 6, 0, 4)


def test_number_of_steps() -> None:
    assert len(StepBatches(3, 10, 6, 0, 2)) == 7
    assert len(StepBatches(10, 10, 6, 0, 2)) == 0


def test_small_and_deep_photos_become_crops(tmp_path: Path) -> None:
    import cv2

    deep = np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep[:, :, ::-1])
    Image.fromarray(np.full((20, 90, 3), 200, np.uint8)).save(tmp_path / "small.png")
    pairs = SynthesisedPairs(
        DataConfig("photos", str(tmp_path), SIZE, ["jpeg"]), seed=0, global_batch_size=2
    )
    made = {pairs.source(0, i)[0].name: pairs[0, i].gt for i in range(2)}
    assert all(gt.shape == (SIZE, SIZE, 3) and gt.dtype == np.uint8 for gt in made.values())
    assert (made["small.png"] == 200).all()
    expected = (deep >> 8).astype(np.uint8)
    assert any((made["deep.png"] == candidate).all() for candidate in (expected, expected[:, ::-1]))


def test_unusable_folders_are_one_sentence(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no photo")
    cases = {
        "data.root is not set": replace(config, root=None),
        f"data.root={tmp_path}/gone is not a folder": replace(config, root=f"{tmp_path}/gone"),
        f"data.root={tmp_path} holds no images": replace(config, root=str(tmp_path)),
        "data.degradations is empty": replace(config, degradations=[]),
        "data=photos": replace(config, name="paper"),
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=r".+") as caught:
            SynthesisedPairs(wrong, 0, BATCH)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_clean_pair_is_the_photo_itself(config: DataConfig) -> None:
    own = replace(config, classes=["clean", "sandstorm", "blur"], degradations=["blur", "clean"])
    pairs = SynthesisedPairs(own, 0, BATCH)
    made = {pairs.source(0, position)[1]: pairs[0, position] for position in range(BATCH)}
    assert {name: pair.label for name, pair in made.items()} == {"clean": 0, "blur": 2}
    assert np.array_equal(made["clean"].lq, made["clean"].gt)
    assert not np.shares_memory(made["clean"].lq, made["clean"].gt)
    assert not np.array_equal(made["blur"].lq, made["blur"].gt)


def test_photos_cannot_be_given_a_class_of_own_pairs(config: DataConfig) -> None:
    own = replace(config, classes=["noise", "sandstorm"], degradations=None)
    with pytest.raises(
        ValueError,
        match=r"photos can't be given sandstorm: .* with data=pairs, or give data\.synthesis_module=FILE\.py",
    ):
        SynthesisedPairs(own, 0, BATCH)
    with pytest.raises(
        ValueError, match=r"data\.degradations=rain is not valid, did you mean .* noise, sandstorm$"
    ):
        SynthesisedPairs(replace(own, degradations=["rain"]), 0, BATCH)


def test_an_unreadable_photo_is_named(config: DataConfig, photos_dir: Path, tmp_path: Path) -> None:
    whole = (photos_dir / "coffee.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])
    pairs = SynthesisedPairs(replace(config, root=str(tmp_path)), 0, BATCH)
    with pytest.raises(ImageError, match=r"broken\.png: .*cut off"):
        pairs[0, 0]


def test_collating_keeps_the_order(pairs: SynthesisedPairs) -> None:
    batch = collate_pairs([pairs[2, 5], pairs[2, 1]])
    assert batch.positions == (5, 1)
    assert batch.label.tolist() == [pairs[2, 5].label, pairs[2, 1].label]


def test_workers_end_with_the_last_batch(pairs: SynthesisedPairs) -> None:
    """Also where the loader refers to itself, which only the garbage collector ends, late and in its own order."""
    before = set(multiprocessing.active_children())
    loader = pair_loader(pairs, StepBatches(0, 2, BATCH, 0, 1), num_workers=2)
    circle: list[object] = [loader]
    circle.append(circle)
    assert len(list(loader)) == 2
    assert set(multiprocessing.active_children()) == before


@pytest.mark.slow
def test_workers_start_after_opencv_has_used_its_threads(photos_dir: Path) -> None:
    """OpenCV's thread pool does not survive a fork: workers would wait for it forever."""
    script = (
        "import sys, cv2, numpy as np\n"
        "from diffrestorer.config.schema import DataConfig\n"
        "from diffrestorer.data.pairs import StepBatches, SynthesisedPairs, pair_loader\n"
        "cv2.setNumThreads(4)\n"
        "cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (0, 0), 3)\n"
        "config = DataConfig('photos', sys.argv[1], 64, ['blur', 'snow'])\n"
        "pairs = SynthesisedPairs(config, 0, 4)\n"
        "print(len(list(pair_loader(pairs, StepBatches(0, 2, 4, 0, 1), num_workers=2))))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(photos_dir)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.communicate(timeout=1800)[0].strip() == "2"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
