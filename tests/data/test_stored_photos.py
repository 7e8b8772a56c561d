"""Clean photos in a store are degraded on the fly as those of a folder are, in an order that is computed."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from miniatures import make, photos, save

from diffrestorer.config.degradations import DEGRADATIONS, degradation_index
from diffrestorer.config.schema import DataConfig
from diffrestorer.config.synthesis_presets import named_synthesis
from diffrestorer.config.synthesis_ranges import Noise, Synthesis
from diffrestorer.config.view_ranges import Views
from diffrestorer.data.manifest import open_shard
from diffrestorer.data.pairs import SynthesisedPairs
from diffrestorer.data.prepared import PreparedPairs, open_pairs
from diffrestorer.data.stored_photos import StoredPhotos

SIZE, BATCH = 40, 4
NUMBERS = range(1, 6)


@pytest.fixture(scope="module", params=["none", "zstd"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    keys = {"size": SIZE, "budget": None, "degradations": ["clean"], "compress": request.param}
    make("photos", photos(root / "photos", *NUMBERS), root / "out", **keys)
    return root / "out"


@pytest.fixture
def config(store: Path) -> DataConfig:
    views = Views(scale=(0.5, 1.0), text_share=0.3, tone_share=0.3)
    return DataConfig(
        "photos", str(store), 32, synthesis=Synthesis(noise=Noise(sigma=(10.0, 20.0))), views=views
    )


def stored(root: Path, address: str) -> np.ndarray:
    """The photo at an address of the store."""
    shard, _, row = address.partition("#")
    return np.ascontiguousarray(open_shard(root / shard)[int(row)][1].transpose(1, 2, 0))


def test_pairs_are_those_of_a_folder_of_the_same_photos(config: DataConfig, tmp_path: Path) -> None:
    """Given the photo and the class: views, synthesis and every random number."""
    pairs = open_pairs(config, 3, BATCH)
    assert isinstance(pairs, StoredPhotos)
    assert pairs.num_variants is None
    root = Path(str(config.root))
    save(tmp_path / "photo.png", np.zeros((SIZE, SIZE, 3), np.uint8))
    folder = SynthesisedPairs(replace(config, root=str(tmp_path)), 3, BATCH)
    for number in range(2 * len(NUMBERS) * len(DEGRADATIONS)):
        step, position = divmod(number, BATCH)
        address, degradation = pairs.source(step, position)
        photo = stored(root, str(address.relative_to(root)))
        pair = pairs[step, position]
        lq, gt = folder.maker.make(photo, degradation, step, position)
        np.testing.assert_array_equal(pair.lq, lq)
        np.testing.assert_array_equal(pair.gt, gt)
        assert pair.label == degradation_index(degradation)
        assert pair.gt.shape == (32, 32, 3)


def test_an_epoch_visits_every_photo_with_every_class(config: DataConfig) -> None:
    count = len(NUMBERS) * len(DEGRADATIONS)
    pairs = open_pairs(config, 3, BATCH)
    assert pairs.counts() == dict.fromkeys(DEGRADATIONS, len(NUMBERS))
    sources = [pairs.source(*divmod(number, BATCH)) for number in range(2 * count)]
    assert len(set(sources[:count])) == len(set(sources[count:])) == count
    assert sources[:count] != sources[count:]
    other_batch = open_pairs(config, 3, 10)
    assert [other_batch.source(*divmod(number, 10)) for number in range(2 * count)] == sources
    twice = open_pairs(replace(config, degradations=["noise", "rain", "noise"]), 3, BATCH)
    drawn = Counter(twice.source(*divmod(number, BATCH))[1] for number in range(15))
    assert drawn == {"noise": 10, "rain": 5}


def test_the_fingerprint_follows_the_classes_and_the_crop(config: DataConfig) -> None:
    changed = (config, replace(config, size=40), replace(config, degradations=["noise"]))
    assert len({open_pairs(each, 3, BATCH).fingerprint() for each in changed}) == 3
    assert open_pairs(config, 4, 2).fingerprint() == open_pairs(config, 3, BATCH).fingerprint()


def test_a_store_of_other_pairs_is_read_as_it_is(config: DataConfig, tmp_path: Path) -> None:
    keys = {"size": SIZE, "budget": None, "degradations": ["clean", "noise"]}
    make("photos", photos(tmp_path / "photos", 1, 2), tmp_path / "out", **keys)
    mixed = DataConfig("photos", str(tmp_path / "out"), 32, ["noise"])
    assert type(open_pairs(mixed, 3, BATCH)) is PreparedPairs
    as_pairs = replace(config, name="manifest", synthesis=Synthesis(), views=Views())
    with pytest.raises(
        ValueError, match=r"no training pairs of blur.*photos alone is degraded by data=photos"
    ):
        open_pairs(as_pairs, 3, BATCH)


def test_what_cannot_be_made_is_refused(config: DataConfig) -> None:
    foreign = replace(config, classes=["noise", "fog"])
    with pytest.raises(ValueError, match="photos can't be given fog"):
        open_pairs(foreign, 3, BATCH)
    with pytest.raises(ValueError, match="held out"):
        open_pairs(replace(config, synthesis=named_synthesis("heldout")), 3, BATCH)
    with pytest.raises(ValueError, match=r"40 pixels wide, data\.size=48 is more"):
        open_pairs(replace(config, size=48), 3, BATCH)
