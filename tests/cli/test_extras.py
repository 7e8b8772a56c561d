"""What `pip install` brings suffices: every command with the packages of its own extra, and none of the others.

A folder of links to the installed packages stands in for a new environment, so that nothing is fetched.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

RUN_LINES = """
import sys
from diffrestorer.cli import main

for line in sys.stdin.read().splitlines():
    try:
        status = main(line.split())
    except SystemExit as end:
        status = end.code
    sys.stdout.flush()
    print("status", status, file=sys.stderr, flush=True)
"""
"""Runs command lines one after the other: starting a process takes longer than most of them."""


def required(extras: Sequence[str]) -> set[str]:
    """Names of the packages that `pip install .[EXTRAS]` brings."""
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    waiting = [Requirement(line) for line in lines]
    seen, found = set(), set()
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        found.add(canonicalize_name(requirement.name))

        # What it requires itself, on this machine and with the extras that are asked of it.
        for line in distribution(requirement.name).requires or []:
            more = Requirement(line)
            wanted = [more.marker is None or more.marker.evaluate({"extra": extra})
                      for extra in ("", *requirement.extras)]  # fmt: skip
            if any(wanted):
                more.marker = None
                waiting.append(more)
    return found


def link_packages(extras: Sequence[str], folder: Path) -> Path:
    """A folder with the packages of `pip install .[EXTRAS]`, links to the installed ones."""
    folder.mkdir()
    for name in required(extras):
        installed = distribution(name)
        tops = {file.parts[0] for file in installed.files or []}
        for top in tops - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(str(installed.locate_file(top)))
    return folder


def environment(packages: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_lines(lines: Sequence[str], packages: Path, folder: Path) -> tuple[list[int], str, str]:
    """Exit statuses, stdout and stderr of command lines of `diffrestorer`."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", RUN_LINES], input="\n".join(lines), cwd=folder, env=environment(packages),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    statuses = [int(line.split()[1]) for line in said if line.startswith("status ")]
    return statuses, done.stdout, done.stderr


def test_heif_is_heic() -> None:
    """Files are called both."""
    extras = PROJECT["optional-dependencies"]
    assert extras["heif"] == extras["heic"] != []


@pytest.mark.soak
def test_restoring_needs_no_extra(photos_dir: Path, tmp_path: Path) -> None:
    lines = [f"restore {photos_dir} -o restored", f"detect {photos_dir}", "--version"]
    statuses, out, said = run_lines(lines, link_packages([], tmp_path / "packages"), tmp_path)
    assert statuses == [0, 0, 0], said
    assert len(list((tmp_path / "restored").iterdir())) == len(list(photos_dir.iterdir()))
    assert "low_light" in out


@pytest.mark.soak
def test_training_needs_its_extra_alone(
    photos_dir: Path, tiny_overrides: list[str], tmp_path: Path
) -> None:
    short = " ".join([
        *tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=32", "train.max_steps=1",
        "train.global_batch_size=2", "train.num_workers=0",
    ])  # fmt: skip
    lines = [
        f"train stage1 {short} --check",
        f"train stage1 {short} output_dir=one train.tracker=tensorboard",
        f"train decoder {short} stage1=one output_dir=two train.tracker=wandb train.wandb_mode=offline",
        f"prepare set=photos root={photos_dir} out=prepared size=64",
    ]
    statuses, _, said = run_lines(lines, link_packages(["train"], tmp_path / "packages"), tmp_path)
    assert statuses == [0] * len(lines), said
    assert list((tmp_path / "one").rglob("events.out.tfevents.*"))
    assert list((tmp_path / "two").rglob("*.wandb"))


@pytest.mark.soak
def test_evaluating_needs_its_extra_alone(photos_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "dark").mkdir()
    for photo in photos_dir.iterdir():
        Image.open(photo).point(lambda level: level // 2).save(tmp_path / "dark" / photo.name)
    pairs = f"data.lq=dark data.gt={photos_dir} data.degradation=low_light"
    lines = [
        f"evaluate --suite pairs --method diff_restorer,diff_restorer_sd {pairs} metrics=[psnr,ssim] output_dir=scores",
        "study make scores -o study",
        f"prepare set=photos root={photos_dir} out=prepared size=64",
    ]
    statuses, _, said = run_lines(lines, link_packages(["eval"], tmp_path / "packages"), tmp_path)
    assert statuses == [0] * len(lines), said
    assert (tmp_path / "scores/index.html").is_file()
    assert (tmp_path / "study/page/index.html").is_file()


@pytest.mark.soak
def test_the_page_needs_its_extra_alone(tmp_path: Path) -> None:
    packages = link_packages(["app"], tmp_path / "packages")
    page = subprocess.Popen(
        [sys.executable, "-S", "-m", "diffrestorer", "app", "--port", str(free_port())],
        cwd=tmp_path, env=environment(packages), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert page.stderr is not None
    said = ""
    for line in page.stderr:
        if "DiffRestorer is at http://" in line and not said:
            page.send_signal(signal.SIGTERM)
        said += line
    assert page.wait() == 0, said
    assert "DiffRestorer is at http://" in said


@pytest.mark.slow
def test_a_missing_extra_is_one_sentence(tmp_path: Path) -> None:
    """Without any extra, each command that needs one names it."""
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    lines = {
        "app": "app",
        "export mini -o out": "onnx",
        "study make out -o study": "eval",
        "study score study": "eval",
        "train base": "train",
        "train stage1": "train",
        "train decoder": "train",
        "train student": "train",
        "train baseline": "train",
        "train mini": "train",
        "prepare set=photos": "train",
        "evaluate": "eval",
        "figures": "eval",
    }
    packages = link_packages([], tmp_path / "packages")
    statuses, out, said = run_lines(list(lines), packages, tmp_path)
    assert statuses == [2] * len(lines), said
    assert out == ""
    sentences = [line for line in said.splitlines() if not line.startswith("status ")]
    assert len(sentences) == len(lines), said
    for line, extra, sentence in zip(lines, lines.values(), sentences, strict=True):
        assert f"[{extra}]" in sentence, (line, sentence)
        assert "pip install" in sentence


@pytest.mark.soak
def test_a_library_that_can_t_be_loaded_is_one_sentence(photos_dir: Path, tmp_path: Path) -> None:
    """PyTorch's CPU build beside torchvision of PyPI; an OpenCV for screens on a machine without one."""
    packages = link_packages(["train", "eval", "app", "onnx"], tmp_path / "packages")
    broken = {
        "torchvision": "RuntimeError('operator torchvision::nms does not exist')",
        "cv2": "ImportError('libGL.so.1: cannot open shared object file: No such file or directory')",
    }
    for name, error in broken.items():
        (packages / name).unlink()
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text(f"raise {error}\n")

    # All that load networks refuse the torchvision.
    lines = [
        f"restore {photos_dir} -o restored",
        f"detect {photos_dir}",
        f"app --port {free_port()}",
        "export mini -o exported",
        "push nothing user/name",
        f"train stage1 model=mini data=photos data.root={photos_dir}",
        "evaluate",
    ]
    statuses, out, said = run_lines(lines, packages, tmp_path)
    assert statuses == [2] * len(lines), said
    assert out == ""
    sentences = [line for line in said.splitlines() if "does not fit PyTorch" in line]
    assert len(sentences) == len(lines), said
    assert "Traceback" not in said

    # With the right one, what degrades photos names the missing library of the system.
    shutil.rmtree(packages / "torchvision")
    (packages / "torchvision").symlink_to(str(distribution("torchvision").locate_file("torchvision")))
    lines = [lines[5], "evaluate", f"prepare set=photos root={photos_dir} out=prepared"]
    statuses, _, said = run_lines(lines, packages, tmp_path)
    assert statuses == [2, 2, 2], said
    assert said.count("libGL.so.1 is missing; apt-get install libgl1") == 3, said
    assert "Traceback" not in said
