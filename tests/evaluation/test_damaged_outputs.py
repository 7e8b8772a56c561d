"""Images that a run kept and that were damaged since, also past their header, are made again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from evaluation_runs import quiet, settings
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from soaking import some_now

from diffrestorer.evaluation.restoring.outputs import made_by, read_pixels
from diffrestorer.evaluation.run import evaluate

OUTPUT = Path("restored", "diff_restorer", "haze", "astronaut.png")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) * 2 // 3] ^= 0x55
    file.write_bytes(data)


def zero(file: Path) -> None:
    """Zero the second half, as a file system may after a power cut."""
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def repaint(file: Path) -> None:
    """Write other pixels under the same record, as a sound file."""
    with Image.open(file) as image:
        text = PngInfo()
        text.add_text("diffrestorer", image.info.get("diffrestorer", "null"))
    Image.new("RGB", (64, 64)).save(file, pnginfo=text)


DAMAGE = [cut, flip, zero, repaint]


@pytest.mark.parametrize("damage", some_now(DAMAGE, 1))
def test_a_damaged_output_is_made_again(
    damage: Callable[[Path], None], finished: Path, model: Path, tmp_path: Path
) -> None:
    """It alone; the run ends with the pixels that it had before."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    damage(run / OUTPUT)
    assert made_by(run / OUTPUT) is not None, "its header is sound"

    evaluate(settings(run, ["all"], model=str(model)), quiet())

    made = json.loads((run / "run.json").read_text())["methods"]
    assert (made["diff_restorer"]["restored"], made["diff_restorer_sd"]["restored"]) == (1, 0)
    assert np.array_equal(read_pixels(run / OUTPUT), read_pixels(finished / OUTPUT))


@pytest.mark.parametrize("damage", some_now(DAMAGE, 1))
@pytest.mark.parametrize("name", ["gt/astronaut.png", "lq/haze/astronaut.png"])
def test_a_damaged_photo_of_the_suite_is_made_again(
    name: str, damage: Callable[[Path], None], finished: Path, tmp_path: Path
) -> None:
    file = tmp_path / "suite" / name
    shutil.copytree(finished / "suite", tmp_path / "suite")
    damage(file)
    evaluate(settings(tmp_path, ["degraded"]), quiet())
    assert np.array_equal(read_pixels(file), read_pixels(finished / "suite" / name))


def test_an_output_of_an_older_version_is_kept(finished: Path, model: Path, tmp_path: Path) -> None:
    """It records no digest of its pixels."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    made, pixels = made_by(run / OUTPUT), read_pixels(run / OUTPUT)
    assert made is not None
    del made["pixels"]
    text = PngInfo()
    text.add_text("diffrestorer", json.dumps(made, sort_keys=True))
    Image.fromarray(pixels).save(run / OUTPUT, pnginfo=text)
    evaluate(settings(run, ["all"], model=str(model)), quiet())
    found = json.loads((run / "run.json").read_text())["methods"]
    assert found["diff_restorer"]["restored"] == 0
