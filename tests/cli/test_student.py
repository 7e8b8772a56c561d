"""`diffrestorer restore` with a student: one step without a flag, whatever the seed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from photo_files import save

from diffrestorer.cli import main
from diffrestorer.inference.model_folder import save_model_folder
from diffrestorer.inference.one_step import OneStepScheduler
from diffrestorer.inference.pipeline import DiffRestorerPipeline


@pytest.fixture(scope="module")
def student(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of random weights that says that it restores in one step."""
    pipe = DiffRestorerPipeline.from_pretrained(random_model)
    folder = tmp_path_factory.mktemp("student")
    save_model_folder(pipe.restorer, OneStepScheduler.from_teacher(pipe.scheduler, tau=200), folder)
    return folder


@pytest.fixture
def restore(student: Path, photos: Path, tmp_path: Path) -> Callable[..., int]:
    save(photos / "a.jpg")
    fixed = [str(photos), "--model", str(student), "--device", "cpu"]
    return lambda out, *options: main(["restore", *fixed, "-o", str(tmp_path / out), *options])


def test_no_flag_is_needed_and_no_seed_matters(restore: Callable[..., int], tmp_path: Path) -> None:
    assert restore("first") == 0
    assert restore("second", "--seed", "7", "--steps", "1") == 0
    first, second = ((tmp_path / out / "a.png").read_bytes() for out in ("first", "second"))
    assert first == second


def test_more_steps_change_nothing_and_are_told_once(
    restore: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert restore("first") == 0
    assert "restores in one step" not in capfd.readouterr().err
    assert restore("second", "--steps", "4") == 0
    sentence = "diffrestorer: this model restores in one step: --steps 4 changes nothing\n"
    assert capfd.readouterr().err.count(sentence) == 1
    first, second = ((tmp_path / out / "a.png").read_bytes() for out in ("first", "second"))
    assert first == second
