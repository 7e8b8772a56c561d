"""A folder that prepare_data.py made is all that training needs: raw or compressed, here or at a URL."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import training_runs as runs
from memory_training import URL
from miniatures import make, photos

from diffrestorer.data.pair_codecs import CODECS

STEPS = 6
MEMORY = "../tests/memory_training.py"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pairs by each codec, in a folder of its own."""
    root = tmp_path_factory.mktemp("stores")
    train = photos(root / "photos", 1, 2, 3)
    for name in ("none", *CODECS):
        keys = {"size": 64, "budget": None, "degradations": ["noise", "blur"], "compress": name}
        make("photos", train, root / name, **keys)
    return root


@pytest.fixture(scope="module")
def arguments(tiny_overrides: list[str]) -> list[str]:
    return [
        *tiny_overrides, "data=manifest", "data.size=64", f"train.max_steps={STEPS}", "train.log_every=1",
        "train.global_batch_size=2", "train.num_workers=0", "data.degradations=[noise,blur]",
        "train.checkpoint_every=2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def from_files(
    stores: Path, arguments: Sequence[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run on the raw store, which the others must equal."""
    output = tmp_path_factory.mktemp("files") / "run"
    command = [*arguments, f"data.root={stores / 'none'}", f"output_dir={output}"]
    runs.run("train_stage1.py", command, output.with_name("log"))
    assert len(runs.losses(output)) == STEPS
    assert (output / "model" / "model_index.json").exists()
    return output


def assert_equal(output: Path, expected: Path) -> None:
    assert runs.losses(output) == runs.losses(expected)
    assert runs.files_of(output / "model") == runs.files_of(expected / "model")


@pytest.mark.soak
@pytest.mark.parametrize("codec", CODECS)
def test_a_compressed_store_trains_like_the_raw_one(
    codec: str, stores: Path, arguments: Sequence[str], from_files: Path, tmp_path: Path
) -> None:
    """Bit for bit, with a worker."""
    output = tmp_path / "run"
    command = [*arguments, f"data.root={stores / codec}", f"output_dir={output}", "train.num_workers=1"]
    runs.run("train_stage1.py", command, tmp_path / "log")
    assert_equal(output, from_files)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["none", "zstd"])
def test_training_from_a_url_survives_a_kill(
    kind: str, stores: Path, arguments: Sequence[str], from_files: Path, tmp_path: Path
) -> None:
    """Killed after a few steps, it goes on and ends as the run from files did, that was never stopped."""
    output = tmp_path / "run"
    command = [
        str(stores / kind), *arguments, f"data.root={URL}", f"output_dir={output}",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    begun = runs.start(MEMORY, command, tmp_path / "log")
    runs.kill_when(begun, output / "losses.csv", lambda path: path.exists() and has_rows(path, 3))
    assert not (output / "model").exists()
    assert list((tmp_path / "cache").glob("*/*"))
    runs.run(MEMORY, [*command, "data.cache_gb=1"], tmp_path / "log")
    assert_equal(output, from_files)


@pytest.mark.soak
def test_stored_photos_train_from_a_url_and_survive_a_kill(
    stores: Path, arguments: Sequence[str], tmp_path: Path
) -> None:
    """Degraded on the fly: raw photos in a folder and compressed ones at a URL, killed and resumed, train alike."""
    for codec in ("none", "zstd"):
        keys = {"size": 80, "budget": None, "degradations": ["clean"], "compress": codec}
        make("photos", stores / "photos", tmp_path / codec, **keys)
    general = [word for word in arguments if word != "data=manifest"]
    command = [*general, "data=photos", "data.synthesis.noise.sigma=[10,20]"]
    local = [*command, f"data.root={tmp_path / 'none'}", f"output_dir={tmp_path / 'files'}"]
    runs.run("train_stage1.py", local, tmp_path / "log")
    output = tmp_path / "run"
    remote = [
        str(tmp_path / "zstd"), *command, f"data.root={URL}", f"output_dir={output}",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    begun = runs.start(MEMORY, remote, tmp_path / "log")
    runs.kill_when(begun, output / "losses.csv", lambda path: path.exists() and has_rows(path, 3))
    runs.run(MEMORY, remote, tmp_path / "log")
    assert_equal(output, tmp_path / "files")


def has_rows(path: Path, number: int) -> bool:
    return len(path.read_text().splitlines()) > number
