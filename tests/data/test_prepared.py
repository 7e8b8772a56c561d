"""Prepared training pairs: the same addressing as pairs made on the fly, in memory that their number does not move."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from miniatures import make, photos

from diffrestorer.config.degradations import DEGRADATIONS, degradation_index
from diffrestorer.config.schema import DataConfig
from diffrestorer.config.synthesis_ranges import Noise, Synthesis
from diffrestorer.config.view_ranges import Views
from diffrestorer.data.compressed_shard import SUFFIX
from diffrestorer.data.counter import shuffled
from diffrestorer.data.manifest import MANIFEST, SCHEMA, open_shard
from diffrestorer.data.pairs import StepBatches, SynthesisedPairs, pair_loader
from diffrestorer.data.prepared import PreparedPairs, open_pairs
from diffrestorer.preparation.shard_files import write_shard

SIZE = 32
BATCH = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos for training, one for a test."""
    root = tmp_path_factory.mktemp("prepared")
    make("photos", photos(root / "train", *range(1, 6)), root / "out", size=SIZE, budget=None)
    make("photos", photos(root / "test", 7), root / "out", size=SIZE, budget=None, split="test")
    return root / "out"


@pytest.fixture(scope="module")
def config(folder: Path) -> DataConfig:
    return DataConfig("manifest", str(folder), SIZE, list(DEGRADATIONS))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 1000])
def test_shuffled_is_an_order(count: int) -> None:
    order = [shuffled(place, count, 0, "order", 0) for place in range(count)]
    assert sorted(order) == list(range(count))


def test_shuffled_orders_look_drawn() -> None:
    """Places and what stands there are uncorrelated; epochs and seeds have their own orders."""
    count = 2000
    orders = [
        np.array([shuffled(p, count, *key) for p in range(count)])
        for key in ((0, "a", 0), (0, "a", 1), (1, "a", 0))
    ]
    place = np.arange(count)
    for order in orders:
        assert abs(np.corrcoef(place, order)[0, 1]) < 0.1
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.1
        assert (
            np.abs(np.bincount(order[: count // 2] * 8 // count, minlength=8) - count / 16).max()
            < count / 40
        )
    assert abs(np.corrcoef(orders[0], orders[1])[0, 1]) < 0.1
    assert abs(np.corrcoef(orders[0], orders[2])[0, 1]) < 0.1


def test_an_epoch_visits_every_pair_once(config: DataConfig) -> None:
    pairs = PreparedPairs(config, seed=3, global_batch_size=BATCH)
    sources = [pairs.source(*divmod(number, BATCH)) for number in range(80)]
    assert len(set(sources[:40])) == len(set(sources[40:])) == 40
    assert sources[:40] != sources[40:]
    assert Counter(name for _, name in sources[:40]) == dict.fromkeys(DEGRADATIONS, 5)
    other_batch = PreparedPairs(config, seed=3, global_batch_size=10)
    assert [other_batch.source(*divmod(number, 10)) for number in range(80)] == sources


def test_a_sample_is_a_stored_pair(config: DataConfig) -> None:
    pairs = PreparedPairs(config, seed=3, global_batch_size=BATCH)
    mirrored = set()
    for number in range(40):
        pair = pairs[divmod(number, BATCH)]
        path, degradation = pairs.source(*divmod(number, BATCH))
        assert path.parent.name == degradation
        assert pair.label == degradation_index(degradation)
        shard, row = str(path).split("#")
        stored = open_shard(Path(shard))[int(row)].transpose(0, 2, 3, 1)
        got = np.stack([pair.lq, pair.gt])
        plain, mirror = np.array_equal(got, stored), np.array_equal(got, stored[:, :, ::-1])
        assert plain or mirror
        mirrored.add(mirror)
    assert mirrored == {True, False}


def test_variants_are_the_samples(config: DataConfig) -> None:
    """Every sample is its variant, and the variants are the pairs, each as it is and mirrored."""
    pairs = PreparedPairs(config, seed=3, global_batch_size=BATCH)
    assert pairs.num_variants == 80
    seen = set()
    for number in range(40):
        sample, variant = pairs[divmod(number, BATCH)], pairs.variant(*divmod(number, BATCH))
        fixed = pairs.fixed(variant)
        assert np.array_equal(sample.lq, fixed.lq)
        assert np.array_equal(sample.gt, fixed.gt)
        assert sample.label == fixed.label
        other = pairs.fixed(variant ^ 1)
        assert np.array_equal(other.gt, fixed.gt[:, ::-1])
        seen.add(variant // 2)
    assert len(seen) == 40
    assert PreparedPairs(replace(config, size=8), 3, BATCH).num_variants is None, (
        "crops differ each epoch"
    )


def test_the_fingerprint_follows_the_data(config: DataConfig, folder: Path, tmp_path: Path) -> None:
    """Seed and batch do not matter, the manifest and the classes do; where the folder stands does not."""
    found = PreparedPairs(config, 3, BATCH).fingerprint()
    shutil.copytree(folder, tmp_path / "copy")
    moved = replace(config, root=str(tmp_path / "copy"))
    assert (
        found
        == PreparedPairs(config, 4, 2).fingerprint()
        == PreparedPairs(moved, 3, BATCH).fingerprint()
    )
    fewer = replace(config, degradations=["noise"])
    make(
        "photos", photos(tmp_path / "photos", *range(2, 7)), tmp_path / "other", size=SIZE, budget=None
    )
    other = replace(config, root=str(tmp_path / "other"))
    assert (
        len({found, *(PreparedPairs(changed, 3, BATCH).fingerprint() for changed in (fewer, other))})
        == 3
    )


def test_larger_pairs_are_cropped_alike(config: DataConfig) -> None:
    pairs = PreparedPairs(replace(config, size=8), seed=0, global_batch_size=BATCH)
    full = PreparedPairs(config, seed=0, global_batch_size=BATCH)
    for number in range(12):
        small, large = pairs[divmod(number, BATCH)], full[divmod(number, BATCH)]
        places = [
            (top, left)
            for image, crop in ((large.lq, small.lq), (large.gt, small.gt))
            for top in range(SIZE - 7)
            for left in range(SIZE - 7)
            if any(
                np.array_equal(view[top : top + 8, left : left + 8], crop)
                for view in (image, image[:, ::-1])
            )
        ]
        assert len(places) >= 2
        assert set(places[: len(places) // 2]) & set(places[len(places) // 2 :])


def test_workers_and_processes_change_nothing(config: DataConfig) -> None:
    pairs = PreparedPairs(config, seed=1, global_batch_size=BATCH)
    one = list(pair_loader(pairs, StepBatches(0, 3, BATCH, 0, 1), num_workers=0))
    workers = list(pair_loader(pairs, StepBatches(0, 3, BATCH, 0, 1), num_workers=2))
    halves = [
        list(pair_loader(pairs, StepBatches(0, 3, BATCH, rank, 2), num_workers=0)) for rank in (0, 1)
    ]
    for whole, same, first, second in zip(one, workers, *halves, strict=True):
        assert torch.equal(whole.lq, same.lq)
        assert torch.equal(whole.gt, torch.cat([first.gt, second.gt]))
        assert torch.equal(whole.label, torch.cat([first.label, second.label]))
        assert whole.lq.is_contiguous()


def test_a_subset_of_the_classes(config: DataConfig) -> None:
    pairs = PreparedPairs(
        replace(config, degradations=["noise", "blur"]), seed=0, global_batch_size=BATCH
    )
    assert pairs.num_pairs == 10
    assert {pairs.source(0, position)[1] for position in range(10)} == {"noise", "blur"}


def test_clean_pairs_are_made_where_the_manifest_has_none(config: DataConfig) -> None:
    """As many as the other classes have on average, each of another pair, the same in every run."""
    eight = PreparedPairs(config, seed=3, global_batch_size=BATCH)
    nine = replace(config, classes=[*DEGRADATIONS, "clean"], degradations=None)
    pairs = PreparedPairs(nine, seed=3, global_batch_size=BATCH)
    sources = [pairs.source(*divmod(number, BATCH)) for number in range(45)]
    assert Counter(name for _, name in sources) == {**dict.fromkeys(DEGRADATIONS, 5), "clean": 5}
    assert len(set(sources)) == 45
    for number, (path, degradation) in enumerate(sources):
        pair = pairs[divmod(number, BATCH)]
        assert pair.label == degradation_index(degradation, pairs.classes)
        shard, row = str(path).split("#")
        lq, gt = open_shard(Path(shard))[int(row)].transpose(0, 2, 3, 1)
        expected = np.stack([gt if degradation == "clean" else lq, gt])
        got = np.stack([pair.lq, pair.gt])
        assert np.array_equal(got, expected) or np.array_equal(got, expected[:, :, ::-1])
    other = PreparedPairs(nine, seed=4, global_batch_size=9)
    assert {other.source(*divmod(number, 9)) for number in range(45)} == set(sources)
    assert pairs.fingerprint() == other.fingerprint() != eight.fingerprint()
    assert pairs.num_variants == 90
    assert np.array_equal(pairs.fixed(89).lq, pairs.fixed(89).gt)
    with pytest.raises(ValueError, match="no training pairs of clean"):
        PreparedPairs(replace(nine, degradations=["clean"]), 0, BATCH)


def test_prepared_clean_pairs_count(tmp_path: Path) -> None:
    """Then none are made, and a photo's clean pair is the photo twice."""
    root, out = photos(tmp_path / "photos", 1, 2, 3), tmp_path / "out"
    rows = make("photos", root, out, size=SIZE, budget=None, degradations=["noise", "clean"])
    assert Counter(row["degradation"] for row in rows) == {"noise": 3, "clean": 3}
    config = DataConfig("manifest", str(out), SIZE, classes=["clean", "noise"])
    pairs = PreparedPairs(config, 0, BATCH)
    assert pairs.num_pairs == 6
    for position in range(6):
        pair = pairs[0, position]
        assert (
            np.array_equal(pair.lq, pair.gt)
            == (pairs.source(0, position)[1] == "clean")
            == (pair.label == 0)
        )


def test_labels_follow_the_model_s_classes(config: DataConfig) -> None:
    """Equal labels of other classes are other data: a cache of the one is not the other's."""
    own = [PreparedPairs(replace(config, classes=names, degradations=None), 0, 1) for names in (
        ["blur", "noise"], ["noise", "blur"], ["noise", "rain"],
    )]  # fmt: skip
    assert [pair.label for pair in (own[0][step, 0] for step in range(10))] == [
        ["blur", "noise"].index(own[0].source(step, 0)[1]) for step in range(10)
    ]
    assert len({pairs.fingerprint() for pairs in own}) == 3


def test_test_pairs_are_never_trained_on(config: DataConfig) -> None:
    pairs = PreparedPairs(config, seed=0, global_batch_size=BATCH)
    assert pairs.num_pairs == 40
    assert all("/train/" in shard for shard in pairs.shards)


def test_which_reader(config: DataConfig, tmp_path: Path) -> None:
    for name in ("paper", "manifest", "photos"):
        assert isinstance(open_pairs(replace(config, name=name), 0, BATCH), PreparedPairs)
    clean = photos(tmp_path, 1)
    assert isinstance(
        open_pairs(replace(config, name="photos", root=str(clean)), 0, BATCH), SynthesisedPairs
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"root": None}, "data.root is not set"),
        ({"root": "absent"}, "holds no manifest"),
        ({"size": 40}, "32 pixels wide, data.size=40 is more"),
        ({"size": 12}, "not a multiple of 8"),
        ({"degradations": []}, "data.degradations is empty"),
        (
            {"synthesis": Synthesis(noise=Noise(sigma=(10.0, 20.0)))},
            "give it to `diffrestorer prepare`",
        ),
        ({"views": Views(text_share=0.1)}, "prepared pairs are what `diffrestorer prepare` made"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    config: DataConfig, changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        PreparedPairs(replace(config, **changes), 0, BATCH)


def test_no_training_pairs(tmp_path: Path) -> None:
    """Never a silent epoch of no steps."""
    out = tmp_path / "out"
    make("photos", photos(tmp_path / "test", 1), out, split="test", budget=None)
    config = DataConfig("manifest", str(out), 16, list(DEGRADATIONS))
    with pytest.raises(ValueError, match="has no training pairs"):
        PreparedPairs(config, 0, BATCH)
    make("photos", photos(tmp_path / "train", 2), out, degradations=["rain"], budget=None)
    with pytest.raises(
        ValueError, match=r"no training pairs of noise, low_light.*data\.degradations=\[rain\]"
    ):
        PreparedPairs(config, 0, BATCH)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make("photos", photos(tmp_path / "train", 1), out, degradations=["rain", "snow"], budget=None)
    shard = out / "pairs/photos/train/snow/00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    pairs = PreparedPairs(DataConfig("manifest", str(out), 16, ["rain", "snow"]), 0, BATCH)
    with pytest.raises(ValueError, match=r"snow/00000\.npy cannot be read .* --check finds"):
        [pairs[0, position] for position in range(2)]


def _worker_bytes(root: str, cache: Path) -> int:
    """Memory that a loader worker shares with nobody, while it serves batches."""
    config = DataConfig("manifest", root, 8, ["noise", "jpeg"], cache_dir=str(cache))
    pairs = PreparedPairs(config, 0, BATCH)
    before = set(psutil.Process().children())
    batches = iter(pair_loader(pairs, StepBatches(0, 40, BATCH, 0, 1), num_workers=1))
    for _ in range(30):
        next(batches)
    (worker,) = set(psutil.Process().children()) - before
    return worker.memory_full_info().uss


@pytest.mark.soak
@pytest.mark.parametrize("suffix", [".npy", SUFFIX])
@pytest.mark.parametrize("protocol", ["", "file://"])
def test_a_worker_s_memory_does_not_grow_with_the_number_of_pairs(
    suffix: str, protocol: str, tmp_path: Path
) -> None:
    """A thousand pairs and a million, in shards of as many pairs as at 512 x 512."""
    pixels = np.zeros((170, 2, 3, 8, 8), np.uint8)
    used = []
    for number in (1_000, 1_000_000):
        out = tmp_path / str(number)
        for degradation in ("noise", "jpeg"):
            (out / degradation).mkdir(parents=True)
            with write_shard(
                out / degradation / f"a{suffix}", pixels.shape, "none" if suffix == ".npy" else "zstd"
            ) as write:
                for row in range(170):
                    write(row, pixels[row])
        with pq.ParquetWriter(out / MANIFEST, SCHEMA) as writer:
            for start in range(0, number, 170):
                rows = range(min(170, number - start))
                degradation = ("noise", "jpeg")[start // 170 % 2]
                # A name of its own for every shard, all of them one file.
                shard = f"{degradation}/{'./' * (start // 340 % 50)}a{suffix}"
                columns = [
                    [f"{shard}#{row}/0" for row in rows], [f"{shard}#{row}/1" for row in rows],
                    *([value] * len(rows) for value in (degradation, "train", "set", 0, "", "0" * 64)),
                ]  # fmt: skip
                writer.write_table(pa.table(dict(zip(SCHEMA.names, columns, strict=True)), SCHEMA))
        used.append(_worker_bytes(f"{protocol}{out}", tmp_path / "cache"))
    assert used[1] - used[0] < 4_000_000, used
