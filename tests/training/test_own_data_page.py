"""docs/own_data.md, followed as written: the worked ninth class, from its file to what the model detects."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import training_runs as runs
from tiny_runs import arguments as tiny_arguments
from tiny_runs import train_stage1

from diffrestorer.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text()


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture
def folder(photos_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the page's commands are typed."""
    shutil.copytree(photos_dir, tmp_path / "PHOTOS")
    (tmp_path / "my_degradations.py").write_text(block("python"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_worked_ninth_class(
    folder: Path, tiny_overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Only lengths and widths are smaller than on the page."""
    smaller = [
        *tiny_overrides, "data.size=32", "train.max_steps=2", "train.global_batch_size=9", "train.num_workers=1",
    ]  # fmt: skip
    commands = [shlex.split(line) for line in block("sh").splitlines()]
    assert [words[1] for words in commands] == ["train", "train", "detect"]
    for _, command, *words in commands:
        if command == "train":
            runs.run(f"train_{words[0]}.py", [*words[1:], *smaller], folder / "log")
        else:
            assert main([command, *words, "--device", "cpu"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "sandstorm"
    assert len(rows) == 4


@pytest.mark.soak
def test_a_changed_file_is_refused_on_resume(folder: Path, tiny_overrides: list[str]) -> None:
    words = tiny_arguments(
        tiny_overrides, folder / "PHOTOS", "data.synthesis_module=my_degradations.py",
        "data.classes=[noise,sandstorm]", "train.max_steps=1",
    )  # fmt: skip
    train_stage1(words, folder / "run")
    train_stage1(words, folder / "run")
    path = folder / "my_degradations.py"
    path.write_text(path.read_text().replace("210.0", "190.0"))
    with pytest.raises(ValueError, match=r"not those that the run in .* began with"):
        train_stage1(words, folder / "run")


def test_a_function_that_fails_ends_the_run_in_a_sentence(
    folder: Path, tiny_overrides: list[str]
) -> None:
    for workers in (0, 1):
        (folder / "my_degradations.py").write_text(
            "def sandstorm(image, rng):\n    return image / nothing\n"
        )
        words = tiny_arguments(
            tiny_overrides, folder / "PHOTOS", "data.synthesis_module=my_degradations.py",
            "data.classes=[sandstorm]", f"train.num_workers={workers}", "train.max_steps=1",
        )  # fmt: skip
        with pytest.raises(
            ValueError,
            match=r"sandstorm\(\) in my_degradations\.py failed \(NameError.*\); mend that function",
        ) as caught:
            train_stage1(words, folder / f"run{workers}")
        assert "\n" not in str(caught.value)
