"""Training on folders of pairs: the classes are the folders', a kill changes nothing, and bad pairs are named first."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import training_runs as runs
from miniatures import save, scene

from diffrestorer.cli import main
from diffrestorer.config.schema import PrepareConfig
from diffrestorer.inference.model_folder import find_model
from diffrestorer.models.components import read_classes
from diffrestorer.preparation.prepare import prepare


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pairs of noise and three of sandstorm, of several sizes."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, numbers in (("noise", range(1, 6)), ("sandstorm", range(6, 9))):
        for number in numbers:
            clean = scene(number)[: 40 + number]
            save(folder / name / "gt" / f"{number}.png", clean)
            save(folder / name / "lq" / f"{number}_lq.png", clean // 2)
    return folder


def command(tiny: list[str], root: Path, output: Path, *more: str) -> list[str]:
    return [
        *tiny, "data=pairs", f"data.root={root}", "data.lq_name={}_lq", "data.size=32", "train.max_steps=6",
        "train.global_batch_size=4", "train.num_workers=1", "train.checkpoint_every=2", "data.balance=classes",
        f"output_dir={output}", *more,
    ]  # fmt: skip


@pytest.mark.soak
def test_both_stages_train_on_pairs_and_a_kill_changes_nothing(
    tiny_overrides: list[str], root: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.run("train_stage1.py", command(tiny_overrides, root, whole), tmp_path / "log")
    process = runs.start("train_stage1.py", command(tiny_overrides, root, killed), tmp_path / "log")
    runs.kill_when(process, killed / "checkpoints" / "step_2", Path.exists)
    runs.run("train_stage1.py", command(tiny_overrides, root, killed), tmp_path / "log")
    assert runs.losses(killed) == runs.losses(whole)
    assert runs.files_of(killed / "model") == runs.files_of(whole / "model")
    assert read_classes(find_model(whole)) == ("noise", "sandstorm")

    # Two processes give the losses of one; pairs may move; the decoder takes the classes of stage 1.
    two = tmp_path / "two"
    runs.run_ranks("train_stage1.py", [command(tiny_overrides, root, two)], tmp_path / "log", 2)
    assert np.allclose(runs.losses(two)[0]["total"], runs.losses(whole)[0]["total"], rtol=1e-4)
    moved = Path(shutil.copytree(root, tmp_path / "moved"))
    runs.run("train_stage1.py", command(tiny_overrides, moved, whole), tmp_path / "log")
    decoder = command(
        tiny_overrides, root, tmp_path / "decoder", f"stage1={whole}", "train.max_steps=2"
    )
    runs.run("train_decoder.py", decoder, tmp_path / "log")
    assert read_classes(find_model(tmp_path / "decoder")) == ("noise", "sandstorm")


@pytest.mark.slow
def test_pairs_are_validated_on_pairs(tiny_overrides: list[str], root: Path, tmp_path: Path) -> None:
    keys = (f"data.validation_root={root}", "train.validate_every=1", "train.max_steps=1")
    runs.run(
        "train_stage1.py", command(tiny_overrides, root, tmp_path / "run", *keys), tmp_path / "log"
    )
    assert (tmp_path / "run" / "validation.csv").read_text().count("\n") == 2


@pytest.mark.parametrize("stage", ["base", "stage1"])
def test_check_counts_the_pairs_and_trains_nothing(
    stage: str,
    tiny_overrides: list[str],
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = command(tiny_overrides, root, tmp_path / "run")
    if stage == "base":
        words = [word for word in words if not word.startswith(("base=", "model.base="))]
    main(["train", stage, *words, "--check"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [["noise", "5", "pairs"], ["sandstorm", "3", "pairs"]]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("checks", [True, False])
def test_a_pair_of_two_sizes_is_named_before_the_first_step(
    checks: bool, tiny_overrides: list[str], root: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    bad = Path(shutil.copytree(root, tmp_path / "bad"))
    save(bad / "sandstorm/gt/7.png", scene(7)[:30])
    words = command(tiny_overrides, bad, tmp_path / "run", *["--check"][: int(checks)])
    with pytest.raises(SystemExit) as end:
        main(["train", "stage1", *words])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "1 of 16 files of the training data cannot be read" in said
    assert "7_lq.png: it is 56x47 pixels, its partner" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_prepared_pairs_train_like_folders(
    tiny_overrides: list[str], root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "prepared"
    prepare(PrepareConfig("pairs", str(root), str(out), size=32, num_workers=1, lq_name="{}_lq"))
    words = command(tiny_overrides, out, tmp_path / "run", "train.max_steps=2")
    runs.run("train_stage1.py", words, tmp_path / "log")
    assert read_classes(find_model(tmp_path / "run")) == ("noise", "sandstorm")
