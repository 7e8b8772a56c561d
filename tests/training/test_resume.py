"""A run killed at any moment and started again ends exactly like one that was never stopped."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import training_runs as runs

STEPS, EVERY = 12, 4


@pytest.fixture(scope="module")
def arguments(tiny_overrides: list[str], photos_dir: Path) -> list[str]:
    return [
        *tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=64", f"train.max_steps={STEPS}",
        "train.global_batch_size=2", "train.num_workers=0", "train.log_every=1", f"train.checkpoint_every={EVERY}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    runs.run("train_stage1.py", [*arguments, f"output_dir={output}"], output / "log")
    return output


def after(step: int) -> Callable[[Path], bool]:
    return lambda output: (output / "losses.csv").exists() and len(runs.losses(output)) > step


def inside_a_checkpoint(output: Path) -> bool:
    return any((output / "checkpoints").glob(".step_*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", [after(1), after(9), inside_a_checkpoint], ids=["early", "late", "in a checkpoint"])
def test_a_killed_run_ends_like_one_that_was_not(
    moment: Callable[[Path], bool], arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = [*arguments, f"output_dir={output}"]
    runs.kill_when(runs.start("train_stage1.py", command, tmp_path / "log"), output, moment)
    assert not (output / "model").exists()
    runs.run("train_stage1.py", command, tmp_path / "log")

    assert runs.files_of(output / "model") == runs.files_of(uninterrupted / "model")
    assert runs.losses(output) == runs.losses(uninterrupted)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(6))
def test_a_run_killed_again_and_again_ends_like_one_that_was_not(
    seed: int, arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    moments = random.Random(seed)
    output = tmp_path / "run"
    command = [*arguments, f"output_dir={output}"]
    for _ in range(5):
        process = runs.start("train_stage1.py", command, tmp_path / "log")
        process.join(moments.uniform(0.5, 8))
        process.kill()
        process.join()
    runs.run("train_stage1.py", command, tmp_path / "log")

    assert runs.files_of(output / "model") == runs.files_of(uninterrupted / "model")
    assert runs.losses(output) == runs.losses(uninterrupted)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(arguments: list[str], uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(uninterrupted, output)
    shutil.rmtree(output / "model")
    weights = output / "checkpoints" / f"step_{STEPS}" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    runs.run("train_stage1.py", [*arguments, f"output_dir={output}"], tmp_path / "log")

    assert "step_12 is damaged" in (tmp_path / "log").read_text()
    assert runs.files_of(output / "model") == runs.files_of(uninterrupted / "model")


@pytest.mark.slow
def test_another_configuration_is_refused(arguments: list[str], uninterrupted: Path, tmp_path: Path) -> None:
    process = runs.start(
        "train_stage1.py", [*arguments, f"output_dir={uninterrupted}", "train.lr=0.5"], tmp_path / "log"
    )
    process.join(120)
    assert process.exitcode not in (0, None)
    assert "train.lr: 1e-05 -> 0.5" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_two_processes_equal_one(arguments: list[str], uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    five_steps = [a.replace(f"train.max_steps={STEPS}", "train.max_steps=5") for a in arguments]
    runs.run_with_torchrun("train_stage1.py", [*five_steps, f"output_dir={output}"], num_processes=2)

    assert json.loads((output / "environment.json").read_text())["num_processes"] == 2
    for two, one in zip(runs.losses(output), runs.losses(uninterrupted), strict=False):
        assert two == pytest.approx(one, rel=1e-5)
    assert len(runs.losses(output)) == 5
