"""The scripts as commands of `diffrestorer`, from a wheel that was built from the source distribution."""

import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from soaking import some_now

from diffrestorer.cli import commands, main

ROOT = Path(__file__).resolve().parents[2]


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a distribution by the project's own backend; nothing is fetched."""
    target.mkdir()
    code = f"import setuptools.build_meta as backend; backend.build_{kind}({str(target)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel installs it: clone -> source distribution -> wheel -> folder."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("diffrestorer", "configs"):
        shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, clone)

    with tarfile.open(build("sdist", clone, folder / "sdist")) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.glob("diffrestorer-*")
    with zipfile.ZipFile(build("wheel", unpacked, folder / "wheel")) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_of_the_source_distribution_holds_every_file(installed: Path) -> None:
    package = ROOT / "diffrestorer"
    files = [file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    ours = {str(file.relative_to(ROOT)) for file in files}
    ours |= {f"diffrestorer/{file.relative_to(ROOT)}" for file in (ROOT / "configs").rglob("*.yaml")}
    built = {str(file.relative_to(installed)) for file in installed.rglob("*") if file.is_file()}
    assert ours - built == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", some_now(commands.COMMANDS, 2))
def test_a_command_of_the_wheel_composes_its_configuration(
    name: str, installed: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "diffrestorer", *name.split(), "seed=7", "--cfg", "job"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "seed: 7" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", some_now(commands.COMMANDS, 2))
def test_scripts_and_commands_are_one(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Both refuse the same line with the same words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "sead=1"])
    assert end.value.code == 2
    command = capsys.readouterr().err

    script = f"{commands.COMMANDS[name].root}.py"
    monkeypatch.setattr(sys, "argv", [script, "sead=1"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    assert end.value.code == 2
    assert capsys.readouterr().err == command.replace(f"diffrestorer {name}: ", f"{script}: ")
    assert "unknown key 'sead', did you mean 'seed'?" in command


@pytest.mark.parametrize("words", [["train"], ["train", "stage2"], ["trian", "stage1"]])
def test_an_unknown_stage_names_those_there_are(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: diffrestorer" in capsys.readouterr().err


def test_help_lists_the_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["train", "--help"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert not end.value.code
    listing = capsys.readouterr().out
    assert all(name.split()[-1] in listing for name in commands.COMMANDS)


@pytest.mark.parametrize(
    ("package", "line", "extra"),
    [
        ("hydra", "train stage1 data.root=x", "train"),
        ("hydra", "evaluate", "eval"),
        pytest.param("pyarrow", "prepare root=x out=y", "train", marks=pytest.mark.soak),
        pytest.param("pyarrow", "train stage1 data.root=x", "train", marks=pytest.mark.soak),
        pytest.param("pandas", "evaluate --suite mixed", "eval", marks=pytest.mark.soak),
    ],
)
def test_a_missing_extra_is_one_sentence(package: str, line: str, extra: str, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from diffrestorer.cli import main; main({line.split()!r})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    refusal = [line for line in done.stderr.splitlines() if "loading PyTorch" not in line]
    assert len(refusal) == 1
    assert (
        f"needs {package}, which is not installed: pip install 'diffrestorer[{extra}]'" in done.stderr
    )


@pytest.mark.slow
def test_a_command_starts_without_what_it_does_not_use() -> None:
    """diffusers, peft and timm load two large packages for nothing; asked for afterwards they are there."""
    program = (
        "import sys\n"
        "from importlib import import_module\n"
        "from diffrestorer.config.installation import import_without_unused\n"
        "import_without_unused()\n"
        "import diffrestorer.inference.pipeline, diffrestorer.models.lora, diffrestorer.training.stage1\n"
        "packages = ['bitsandbytes', 'wandb']\n"
        "print([name in sys.modules for name in packages])\n"
        "print([import_module(name).__name__ for name in packages])\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.stdout.splitlines() == ["[False, False]", "['bitsandbytes', 'wandb']"], found.stderr
