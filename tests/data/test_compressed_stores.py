"""Compressed shards stand for raw ones: the same pairs at the same addresses, and damage is never read as pixels."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from miniatures import make, photos, rows_of, tree

from diffrestorer.config.schema import DataConfig, PrepareConfig
from diffrestorer.data.compressed_shard import SUFFIX, CompressedShard, FileBytes, shard_writer
from diffrestorer.data.manifest import open_shard
from diffrestorer.data.pair_codecs import CODECS
from diffrestorer.data.prepared import PreparedPairs
from diffrestorer.preparation.prepare import prepare

SIZE = 32
CLASSES = ["noise", "rain", "jpeg"]
SHARD = "pairs/photos/train/rain/00000" + SUFFIX


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pairs, raw and by each codec, beside test images."""
    root = tmp_path_factory.mktemp("stores")
    train, test = photos(root / "train", *range(1, 5)), photos(root / "test", 7)
    for name in ("none", *CODECS):
        keys = {"size": SIZE, "budget": None, "degradations": CLASSES, "compress": name}
        make("photos", train, root / name, **keys)
        make("photos", test, root / name, split="test", **keys)
    return {name: root / name for name in ("none", *CODECS)}


def open_pairs(store: Path, size: int = SIZE) -> PreparedPairs:
    return PreparedPairs(DataConfig("manifest", str(store), size, CLASSES), 3, 4)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 8, 24), (2, 3, 40, 32)])
def test_codecs_are_lossless(codec: str, shape: tuple[int, ...]) -> None:
    """For pixels of chance, which no picture resembles, and for flat ones."""
    chance = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for pixels in (chance, np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)):
        decoded = CODECS[codec].decode(CODECS[codec].encode(pixels), shape)
        np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("codec", CODECS)
def test_training_reads_the_pairs_of_the_raw_store(codec: str, stores: dict[str, Path]) -> None:
    """Whole or cropped, in the same order; the manifest has the same rows but for the shards' suffix."""
    for size in (SIZE, 24):
        raw, compressed = open_pairs(stores["none"], size), open_pairs(stores[codec], size)
        assert compressed.shards[0].endswith(SUFFIX)
        for number in range(2 * raw.num_pairs):
            expected, pair = raw[divmod(number, 4)], compressed[divmod(number, 4)]
            assert np.array_equal(pair.lq, expected.lq)
            assert np.array_equal(pair.gt, expected.gt)
            assert pair.label == expected.label
    for before, row in zip(rows_of(stores["none"]), rows_of(stores[codec]), strict=True):
        renamed = {side: before[side].replace(".npy", SUFFIX) for side in ("lq", "gt")}
        assert row == {**before, **renamed}


def test_test_images_are_stored_as_ever(stores: dict[str, Path]) -> None:
    """They stay uncompressed PNG files, whose plan does not name the codec."""
    trees = [tree(store / "pairs/photos/test") for store in stores.values()]
    assert trees[0] == trees[1] == trees[2]


def test_a_preparation_goes_on_with_its_codec_only(stores: dict[str, Path], tmp_path: Path) -> None:
    """What is missing is made again with the same bytes; another codec would mix two kinds in one folder."""
    root = photos(tmp_path / "photos", 1, 2)
    keys = {"size": SIZE, "budget": None, "degradations": CLASSES}
    make("photos", root, tmp_path / "out", compress="zstd", **keys)
    before = tree(tmp_path / "out")
    (tmp_path / "out" / SHARD).unlink()
    (tmp_path / "out" / SHARD).with_suffix(".json").unlink()
    make("photos", root, tmp_path / "out", compress="zstd", **keys)
    assert tree(tmp_path / "out") == before
    for other in ("none", "webp"):
        with pytest.raises(ValueError, match="other settings"):
            make("photos", root, tmp_path / "out", compress=other, **keys)
    assert tree(tmp_path / "out") == before


def test_a_pair_that_could_not_be_made_is_named(tmp_path: Path) -> None:
    """Its row is empty; the others are where their numbers say."""
    root = photos(tmp_path / "photos", *range(6))
    (root / "2.png").write_bytes(b"no image")
    keys = {"size": SIZE, "budget": None, "degradations": CLASSES, "skip_unreadable": True}
    rows = make("photos", root, tmp_path / "zstd", compress="zstd", **keys)
    make("photos", root, tmp_path / "none", **keys)
    compressed = open_shard(tmp_path / "zstd" / SHARD)
    raw = open_shard((tmp_path / "none" / SHARD).with_suffix(".npy"))
    assert compressed.shape == raw.shape
    made = [int(row["lq"].partition("#")[2][0]) for row in rows if row["degradation"] == "rain"]
    (gap,) = set(range(6)) - set(made)
    for row in made:
        assert np.array_equal(compressed[row], raw[row])
    with pytest.raises(ValueError, match=f"has no pair {gap}: its photo could not be read"):
        compressed[gap]
    with pytest.raises(ValueError, match="has no pair 6, only 6"):
        compressed[6]


def _missing(shard: Path) -> None:
    shard.unlink()


def _cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-1])


def _longer(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes() + b"\0")


def _emptied(shard: Path) -> None:
    shard.write_bytes(b"")


def _other(shard: Path) -> None:
    shard.write_bytes(b"no shard" * 1000)


def _pipe(shard: Path) -> None:
    shard.unlink()
    os.mkfifo(shard)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("harm", [_missing, _cut, _longer, _emptied, _other, _pipe])
def test_a_damaged_shard_is_named(
    harm: Callable[[Path], None], codec: str, stores: dict[str, Path], tmp_path: Path
) -> None:
    root = photos(tmp_path / "photos", 1, 2)
    keys = {"size": SIZE, "budget": None, "degradations": CLASSES, "compress": codec}
    make("photos", root, tmp_path / "out", **keys)
    shard = tmp_path / "out" / SHARD
    harm(shard)
    pairs = open_pairs(tmp_path / "out")
    with pytest.raises(ValueError, match=r"rain/00000\.pairs cannot be read \(.*--check finds"):
        [pairs[0, position] for position in range(6)]
    with pytest.raises(ValueError, match=r"2 of 6 pairs in .* are damaged or missing: .*rain/00000"):
        prepare(PrepareConfig(out=str(tmp_path / "out"), check=True))


@pytest.mark.parametrize("codec", CODECS)
def test_no_changed_byte_is_read_as_pixels(codec: str, tmp_path: Path) -> None:
    """A bit is turned at each place of a shard in turn: header, table, checksums, frames."""
    pixels = np.random.default_rng(1).integers(0, 256, (2, 2, 3, 8, 8), dtype=np.uint8)
    path = tmp_path / ("shard" + SUFFIX)
    with path.open("wb") as file, shard_writer(file, codec, pixels.shape) as writer:
        for row in range(2):
            writer.write(row, pixels[row])
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        refused = 0
        for row in range(2):
            try:
                with path.open("rb") as file:
                    found = CompressedShard(FileBytes(file), "it")[row]
            except ValueError:
                refused += 1
            else:
                assert np.array_equal(found, pixels[row]), f"byte {place} of {len(content)}"
        assert refused, f"byte {place} of {len(content)}"
