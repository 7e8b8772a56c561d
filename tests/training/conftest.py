"""A run of eight steps, once to its end and once stopped before it. Shared: change a copy (`tiny_runs.copy_run`)."""

import shutil
from pathlib import Path

import pytest
from tiny_runs import arguments as tiny_arguments
from tiny_runs import copy_run, train_stage1

from diffrestorer.training.checkpoint import list_checkpoints


@pytest.fixture(scope="session")
def arguments(tiny_overrides: list[str], photos_dir: Path) -> list[str]:
    """The command line of `finished`. A file that trains in another way has a fixture of this name of its own."""
    return tiny_arguments(tiny_overrides, photos_dir)


@pytest.fixture(scope="session")
def finished(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    train_stage1(arguments, output)
    return output


@pytest.fixture(scope="session")
def unfinished(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run as if it had been killed after step 7: checkpoints of steps 4 and 6."""
    output = copy_run(finished, tmp_path_factory.mktemp("unfinished") / "run")
    shutil.rmtree(output / "model")
    step8, step6 = list_checkpoints(output / "checkpoints")[::-1]
    shutil.rmtree(step8)
    lines = (output / "losses.csv").read_text().splitlines(keepends=True)
    (output / "losses.csv").write_text("".join(lines[:-1]))
    assert step6.name == "step_6"
    return output
