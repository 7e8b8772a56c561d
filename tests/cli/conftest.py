"""`diffrestorer restore` on a model of random weights."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffrestorer.cli import main


@pytest.fixture
def restore(random_model: Path, tmp_path: Path) -> Callable[..., int]:
    """`diffrestorer restore ... -o tmp_path/out`, in one step."""

    def run(*arguments: str | Path, steps: int = 1) -> int:
        fixed = [
            "--model",
            str(random_model),
            "-o",
            str(tmp_path / "out"),
            "--steps",
            str(steps),
            "--device",
            "cpu",
        ]
        return main(["restore", *fixed, *map(str, arguments)])

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder a test fills."""
    folder = tmp_path / "in"
    folder.mkdir()
    return folder
