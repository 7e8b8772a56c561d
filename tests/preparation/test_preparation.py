"""Every set's miniature, in its distributed layout, goes from download to verified pairs and one training batch."""

import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import miniatures
import numpy as np
import pytest
from miniatures import BUDGET, SIZE, make, photos, rows_of, tree
from PIL import Image

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES, degradation_index
from diffrestorer.config.schema import DataConfig
from diffrestorer.data.images import read_photo
from diffrestorer.data.manifest import SCHEMA, list_test_pairs, open_shard, split_address
from diffrestorer.data.pairs import StepBatches, pair_loader
from diffrestorer.data.prepared import PreparedPairs
from diffrestorer.preparation.catalog import CATALOG, training_share


def read_row(out: Path, row: dict[str, Any]) -> list[np.ndarray]:
    """Degraded and clean image of a row, (size, size, 3)."""
    if "#" in row["lq"]:
        shard, place = split_address(row["lq"])
        return list(open_shard(out / shard)[place].transpose(0, 2, 3, 1))
    return [read_photo(out / row[side]).pixels for side in ("lq", "gt") if row[side]]


def resized(path: Path) -> bytes:
    return cv2.resize(
        np.asarray(Image.open(path)), (SIZE, SIZE), interpolation=cv2.INTER_AREA
    ).tobytes()


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All ten sets, unpacked."""
    root = tmp_path_factory.mktemp("downloads")
    for name in CATALOG:
        miniatures.build(name, root)
    return root


@pytest.fixture(scope="module")
def everything(downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All ten sets, prepared by one command."""
    out = tmp_path_factory.mktemp("all")
    make("all", downloads, out)
    return out


@pytest.mark.parametrize("name", CATALOG)
def test_a_set_from_download_to_batch(name: str, tmp_path: Path) -> None:
    miniatures.build(name, tmp_path / "downloads")
    rows = make(name, tmp_path / "downloads", tmp_path / "out")
    assert list(rows[0]) == SCHEMA.names
    assert {row["set"] for row in rows} == {name}
    train = Counter(row["degradation"] for row in rows if row["split"] == "train")
    for degradation, count in train.items():
        share = training_share(degradation, "OTS")
        assert count == pytest.approx(BUDGET * share[name] / sum(share.values()), abs=1)
    made = {
        (part.split, product.degradation) for part in CATALOG[name].parts for product in part.products
    }
    assert {(row["split"], row["degradation"]) for row in rows} == made

    files = [(lq, gt) for gt, lq, _ in miniatures.LAYOUTS[name]]
    root = tmp_path / "downloads"
    carried = {(resized(root / lq), resized(root / gt)) for lq, gt in files if lq and gt}
    clean = {resized(root / gt) for _, gt in files if gt}
    plain = [row for row in rows if not row["augmentation"]]
    assert plain
    for row in plain:
        images = [image.tobytes() for image in read_row(tmp_path / "out", row)]
        if name in ("div2k", "flickr2k"):
            assert images[1] in clean
            assert images[0] != images[1]
        elif len(images) == 2 and row["degradation"] in DEGRADATIONS:
            assert tuple(images) in carried, "partners are those of one name"

    if train:
        config = DataConfig("manifest", str(tmp_path / "out"), SIZE, list(train))
        pairs = PreparedPairs(config, seed=0, global_batch_size=8)
        (batch,) = pair_loader(pairs, StepBatches(0, 1, 8, 0, 1), num_workers=0)
        expected = [degradation_index(pairs.source(0, position)[1]) for position in range(8)]
        assert batch.label.tolist() == expected
        assert set(expected) <= {degradation_index(degradation) for degradation in train}
        stored = {
            tuple(image.tobytes() for image in read_row(tmp_path / "out", row))
            for row in rows
            if row["split"] == "train"
        }
        for lq, gt in zip(batch.lq.numpy(), batch.gt.numpy(), strict=True):
            views = [
                (a.transpose(1, 2, 0).tobytes(), b.transpose(1, 2, 0).tobytes())
                for a, b in ((lq, gt), (lq[..., ::-1], gt[..., ::-1]))
            ]
            assert stored & set(views), "a batch holds stored pairs, mirrored or not"


def test_every_class_has_its_budget(everything: Path) -> None:
    rows = rows_of(everything)
    train = Counter(row["degradation"] for row in rows if row["split"] == "train")
    assert train == dict.fromkeys(DEGRADATIONS, BUDGET)
    assert {row["seed"] for row in rows} == {0}


def test_fourteen_test_sets(everything: Path) -> None:
    """Eight single classes, RealSnow, RTTS and four mixtures (SPEC: the paper's Table I)."""
    found = list_test_pairs(everything)
    assert set(found) == {
        ("div2k", "noise"), ("lol", "low_light"), ("reside", "haze"), ("rain1400", "rain"), ("raindrop", "raindrop"),
        ("snow100k", "snow"), ("gopro", "blur"), ("div2k", "jpeg"), ("realsnow", "snow"), ("rtts", "haze"),
        ("div2k", "blur+noise"), ("div2k", "jpeg+blur+noise"), ("snow100k", "snow+noise"),
        ("raindrop", "raindrop+blur+noise"),
    }  # fmt: skip
    for (_, degradation), pairs in found.items():
        assert len({pair.name for pair in pairs}) == len(pairs)
        for pair in pairs:
            lq, gt = pair.read()
            assert lq.shape == (SIZE, SIZE, 3)
            assert (gt is None) == (pair.set == "rtts")
            assert gt is None or (lq != gt).any(), degradation
    assert set(list_test_pairs(everything, "test_b")) == {("raindrop", "raindrop")}


def test_set_by_set_equals_all_at_once(downloads: Path, everything: Path, tmp_path: Path) -> None:
    for name in CATALOG:
        make(name, downloads, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(everything)


def test_archives_equal_folders(everything: Path, tmp_path: Path) -> None:
    for index, name in enumerate(CATALOG):
        folder = tmp_path / "unpacked" / name
        miniatures.build(name, folder)
        (tmp_path / "downloads").mkdir(exist_ok=True)
        if index % 2:
            with tarfile.open(tmp_path / "downloads" / f"{name}.tar.gz", "w:gz") as archive:
                archive.add(folder, arcname=".")
        else:
            with zipfile.ZipFile(tmp_path / "downloads" / f"{name}.zip", "w") as packed:
                for file in folder.rglob("*"):
                    packed.write(file, file.relative_to(folder))
    make("all", tmp_path / "downloads", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(everything)
    assert not (tmp_path / "out" / ".unpacked").exists()


def test_seeds_differ(tmp_path: Path) -> None:
    miniatures.build("lol", tmp_path / "downloads")
    hashes = [
        {
            row["sha256"]
            for row in make("lol", tmp_path / "downloads", tmp_path / str(seed), seed=seed)
            if row["augmentation"]
        }
        for seed in (0, 1)
    ]
    assert not hashes[0] & hashes[1]


def test_oversampling_is_recorded_and_hits_both_images(tmp_path: Path) -> None:
    """With LQ = GT on disk, every augmented pair is still equal."""
    for number in (2, 10):
        for side in ("low", "high"):
            miniatures.save(
                tmp_path / "downloads" / "our485" / side / f"{number}.png", miniatures.scene(number)
            )
    rows = make("lol", tmp_path / "downloads", tmp_path / "out", allow_incomplete=True)
    assert len(rows) == BUDGET
    assert Counter(bool(row["augmentation"]) for row in rows) == {False: 2, True: BUDGET - 2}
    words = {word.partition("=")[0] for row in rows for word in row["augmentation"].split()}
    assert words == {"crop", "turns", "flip", "angle", "shear"}
    images = [read_row(tmp_path / "out", row) for row in rows]
    assert all((lq == gt).all() for lq, gt in images)
    assert len({lq.tobytes() for lq, _ in images}) == BUDGET, "no two augmentations are the same"


def test_larger_sets_are_sampled(tmp_path: Path) -> None:
    miniatures.build("rain1400", tmp_path / "downloads")
    rows = make("rain1400", tmp_path / "downloads", tmp_path / "out", budget=5)
    train = [row for row in rows if row["split"] == "train"]
    assert len(train) == 5
    assert {row["augmentation"] for row in train} == {""}
    assert len({row["sha256"] for row in train}) == 5


def test_scenes_of_the_test_are_not_trained_on(tmp_path: Path) -> None:
    miniatures.build("reside", tmp_path / "downloads")
    make("reside", tmp_path / "downloads", tmp_path / "out", budget=200)
    shards = [
        open_shard(path)
        for path in sorted((tmp_path / "out" / "pairs/reside/train/haze").glob("*.npy"))
    ]
    trained = {pixels.transpose(1, 2, 0).tobytes() for shard in shards for pixels in shard[:, 1]}
    clear = tmp_path / "downloads" / "RESIDE" / "OTS" / "clear"
    assert resized(clear / "0001.jpg") in trained
    assert resized(clear / "0007.jpg") not in trained


def test_photos_train_and_test(tmp_path: Path) -> None:
    root, others = photos(tmp_path / "train", 1, 2, 3), photos(tmp_path / "others", 4, 5)
    rows = make("photos", root, tmp_path / "out", budget=None)
    assert Counter(row["degradation"] for row in rows) == dict.fromkeys(DEGRADATIONS, 3)
    make("photos", others, tmp_path / "out", budget=None, split="test")
    found = list_test_pairs(tmp_path / "out")
    assert {degradation: len(pairs) for (_, degradation), pairs in found.items()} == dict.fromkeys(
        (*DEGRADATIONS, *MIXTURES), 2
    )
    clean = {
        pair.gt.read_bytes()
        for pairs in found.values()
        for pair in pairs
        if pair.name == "4" and pair.gt
    }
    assert len(clean) == 1, "a photo is cropped alike for every class"
    make("photos", root, tmp_path / "again", budget=None)
    make("photos", others, tmp_path / "again", budget=None, split="test")
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_a_photo_does_not_depend_on_the_others(tmp_path: Path) -> None:
    few = make("photos", photos(tmp_path / "few", 2), tmp_path / "1", split="test", budget=None)
    many = make("photos", photos(tmp_path / "many", 1, 2, 3), tmp_path / "3", split="test", budget=None)
    assert {row["sha256"] for row in few} <= {row["sha256"] for row in many}


def test_only_the_named_degradations_are_made(tmp_path: Path) -> None:
    rows = make(
        "photos", photos(tmp_path / "a", 1), tmp_path / "out", degradations=["noise", "blur"], budget=3
    )
    assert Counter(row["degradation"] for row in rows) == {"noise": 3, "blur": 3}


def test_files_tell_nothing_of_the_class(tmp_path: Path) -> None:
    """Size, mode, format and length are one for all classes, so a classifier of file statistics is at chance."""
    make("photos", photos(tmp_path / "a", 1, 2), tmp_path / "out", split="test", budget=None)
    statistics = set()
    for pairs in list_test_pairs(tmp_path / "out").values():
        for pair in pairs:
            with Image.open(pair.lq) as image:
                statistics.add(
                    (image.size, image.mode, image.format, *sorted(image.info), pair.lq.stat().st_size)
                )
    assert statistics == {((SIZE, SIZE), "RGB", "PNG", pair.lq.stat().st_size)}
    make("photos", tmp_path / "a", tmp_path / "train", budget=None)
    shards = list((tmp_path / "train").glob("pairs/photos/train/*/00000.npy"))
    assert len(shards) == len(DEGRADATIONS)
    assert len({(shard.stat().st_size, shard.read_bytes()[:128]) for shard in shards}) == 1
