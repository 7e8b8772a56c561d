"""The Dockerfile's steps, run as a script in a clean directory: there is no docker where tests run."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).with_name("uv")
FROM_OUTSIDE = ("PIP_", "UV_", "SSL_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http", "no_proxy")
"""Beginnings of the variables by which a machine reaches its package index; a build gets no others."""


@dataclass
class Stage:
    """A stage of the Dockerfile: its base's name, its instructions in order."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages() -> dict[str, Stage]:
    """The Dockerfile's stages by name; the last one is also `final`."""
    text = (ROOT / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found.setdefault(name or "final", Stage(base))
        elif word:
            current.steps.append((word, rest.strip()))
    return found


def chain(name: str) -> list[tuple[str, str]]:
    """The instructions of a stage, those of its bases first."""
    known = stages()
    steps: list[tuple[str, str]] = []
    while name in known:
        steps = known[name].steps + steps
        name = known[name].base
    return steps


def ignored() -> set[str]:
    """The names in .dockerignore, without those of any folder (`**/`)."""
    lines = (ROOT / ".dockerignore").read_text().split()
    return {line for line in lines if not line.startswith("**/")}


def tracked() -> list[str]:
    """The checkout's files, but for what git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    names = set(filter(None, listing.stdout.decode().split("\0")))
    return sorted(name for name in names if os.path.lexists(ROOT / name))


class Build:
    """A build in a clean directory, which stands for the image's /app."""

    def __init__(self, folder: Path, torch: str) -> None:
        self.app = folder / "app"
        self.app.mkdir()

        # The base image's `python`, and nothing else of this one's environment.
        (folder / "bin").mkdir()
        (folder / "bin" / "python").symlink_to(getattr(sys, "_base_executable", sys.executable))
        self.environment = {
            name: value for name, value in os.environ.items() if name.startswith(FROM_OUTSIDE)
        }
        cache = subprocess.check_output([UV, "cache", "dir"], text=True).strip()
        self.environment |= {"UV_CACHE_DIR": cache}  # the mount of /tmp/.cache/uv
        self.environment |= {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "TORCH": torch}
        self.entry: dict[str, list[str]] = {}

    def place(self, text: str) -> str:
        return re.sub(r"/app\b", str(self.app), text)

    def run(self, name: str) -> None:
        """Execute a stage's instructions as docker would; apt-get is left out: it would change this machine."""
        for word, rest in chain(name):
            if word == "COPY":
                assert rest == ". ."
                for file in tracked():
                    (self.app / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / file, self.app / file, follow_symlinks=False)
            elif word == "ENV":
                key, _, value = rest.partition("=")
                self.environment[key] = self.place(value)
            elif word == "RUN" and not rest.startswith("apt-get"):
                self.call(["/bin/sh", "-c", self.place(re.sub(r"^--mount=\S+ ", "", rest))])
            elif word in ("ENTRYPOINT", "CMD"):
                self.entry[word] = [self.place(part) for part in json.loads(rest)]
            else:
                assert word in ("ARG", "WORKDIR", "RUN"), word

    def call(self, command: list[str], folder: Path | None = None) -> str:
        answer = subprocess.run(
            command,
            cwd=folder or self.app,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        text = answer.stdout + answer.stderr
        if answer.returncode and re.search(r"dns error|client error \(Connect\)", text):
            pytest.skip("PyTorch's CPU builds can't be reached from here")
        assert answer.returncode == 0, text
        return text


def test_its_form() -> None:
    found = stages()
    assert list(found) == ["base", "tests", "final"]
    assert ("ARG", "TORCH=cpu") in found["base"].steps, "PyTorch for CPUs unless a build says otherwise"
    extras = re.search(r"pip install .*(\[.*?\])", (ROOT / "Makefile").read_text())
    assert extras is not None
    assert extras[1] in str(found["tests"].steps), "the tests need what the Makefile installs"


def test_no_file_of_the_checkout_is_ignored() -> None:
    lost = [name for name in tracked() if Path(name).parts[0] in ignored()]
    assert not lost


@pytest.mark.soak
@pytest.mark.parametrize("torch", ["cpu", "cuda"])
def test_the_steps_make_a_program_that_restores_and_tests_that_pass(
    torch: str, photos_dir: Path, tmp_path: Path
) -> None:
    build = Build(tmp_path, torch)
    build.run("final")

    # The entry point, in another folder than the image's, as with `docker run -v ... -w ...`.
    help_page = build.call(build.entry["ENTRYPOINT"] + build.entry["CMD"])
    assert "restore photos" in help_page
    photos = tmp_path / "photos"
    shutil.copytree(photos_dir, photos)
    words = ["restore", "rocket.png", "-o", "restored", "--steps", "1"]
    build.call([*build.entry["ENTRYPOINT"], *words], photos)
    assert Image.open(photos / "restored" / "rocket.png").size == (160, 160)

    # The stage of the tests, on a few files of them.
    build.run("tests")
    assert build.entry["CMD"] == ["-m", "not soak"]
    few = ["tests/models/test_blocks.py", "tests/data/test_counter.py"]
    passed = build.call([*build.entry["ENTRYPOINT"], *build.entry["CMD"], *few])
    assert re.search(r"\d+ passed", passed), passed
    shutil.rmtree(build.app)
