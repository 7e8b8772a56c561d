"""What goes wrong is named in one sentence, and nothing is lost."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photo_files import claim, files_in, noise, save, write_bad_files
from safetensors.torch import load_file, save_file

from diffrestorer.cli import main
from diffrestorer.inference import photos as photos_module
from diffrestorer.inference.memory import free_memory
from diffrestorer.inference.pipeline import DiffRestorerPipeline

PATH_MAX = 4096


def test_bad_files_are_named_and_good_ones_restored(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.webp", "sub/deep/c.png"):
        save(photos / name)
    (photos / "folder.png").mkdir()
    reasons = write_bad_files(photos)
    assert restore(photos, tmp_path / "missing.png") == 1
    out, err = capfd.readouterr()
    assert files_in(tmp_path / "out") == ["a.png", "b.png", "sub/deep/c.png"]
    assert out == ""
    for name, reason in reasons.items():
        assert any(str(photos / name) in line and reason in line for line in err.splitlines()), (
            name,
            err,
        )
    assert f"diffrestorer: {tmp_path / 'missing.png'}: there is no such file\n" in err
    assert err.endswith("restored 3, skipped 0 (already there), failed 8\n")
    assert len(err.splitlines()) == 9, err  # libraries keep quiet


def test_what_memory_cannot_hold_is_refused(
    restore: Callable[..., int],
    photos: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The batch of small ones is too large together and restored one by one."""
    save(photos / "large.png", noise(300, 200))
    for name in ("s1.png", "s2.png"):
        save(photos / name, noise(160, 160))
    monkeypatch.setattr(photos_module, "free_memory", lambda: 33_500_000)
    assert restore(photos, "--batch-size", "2") == 1
    assert files_in(tmp_path / "out") == ["s1.png", "s2.png"]
    assert (
        "large.png: restoring it takes about 44 MB of memory, 27 MB are free" in capfd.readouterr().err
    )


@pytest.mark.soak
def test_tiles_shrink_to_what_memory_holds(
    restore: Callable[..., int], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up front on a CPU, where the system would kill the process; a tile that was asked for stays."""
    save(photos / "large.png", noise(700, 500))
    tiles: list[tuple[object, object]] = []
    plain = DiffRestorerPipeline.__call__

    def call(
        self: DiffRestorerPipeline, *args: Any, tile: object, tile_batch_size: object, **options: Any
    ) -> Any:
        tiles.append((tile, tile_batch_size))
        return plain(self, *args, tile=tile, tile_batch_size=tile_batch_size, **options)

    monkeypatch.setattr(DiffRestorerPipeline, "__call__", call)
    for free, status, tile in ((10**9, 0, "auto"), (200_000_000, 0, 256), (200_000_000, 1, 512)):
        monkeypatch.setattr(photos_module, "free_memory", lambda free=free: free)
        assert restore(photos, "--overwrite", *(() if status == 0 else ("--tile", "512"))) == status, (
            free,
            tile,
        )
    assert tiles == [("auto", None), (256, 1)]
    assert files_in(tmp_path / "out") == ["large.png"]


def test_memory_that_is_kept_is_not_cleared_again() -> None:
    """Fewer pages are faulted in by blocks that are freed and taken again; in a process of its own: it is for good."""
    program = (
        "import resource, numpy as np\n"
        "from diffrestorer.inference.memory import keep_freed_memory\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def rounds():\n"
        "    before = faults()\n"
        "    for _ in range(9): blocks = [np.ones(2**20) for _ in range(6)]; del blocks\n"
        "    return faults() - before\n"
        "default = rounds(); keep_freed_memory(); rounds(); print(default, rounds())\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    default, kept = map(int, run.stdout.split())
    assert kept < default / 10, run.stdout


def test_free_memory_is_that_of_this_machine() -> None:
    assert 10**8 < free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("tile", "width", "height", "memory", "why"),
    [
        ("auto", 20_000, 5_000, 4_000, "it claims 20000x5000 pixels, more than the limit of 62500000"),
        ("none", 4_096, 3_000, 8_000, "restoring it takes about 9044 MB of memory, 6400 MB are free"),
    ],
)
def test_a_panorama_beyond_memory_is_refused_before_it_is_restored(
    restore: Callable[..., int],
    photos: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tile: str, width: int, height: int, memory: int, why: str,
) -> None:  # fmt: skip
    """A hundred megapixels are refused by their header; what can be decoded, by what restoring it takes."""
    if tile == "none":
        save(photos / "wide.png", np.zeros((height, width, 3), np.uint8))
    else:
        claim(photos / "wide.png", width, height)
    monkeypatch.setattr(photos_module, "free_memory", lambda: memory * 1_000_000)
    assert restore(photos, "--tile", tile) == 1
    assert f"wide.png: {why}" in capfd.readouterr().err


@pytest.mark.parametrize(
    "damage", ["missing", "truncated", "mismatched", "nonsense", "nan", "architecture"]
)
def test_a_bad_model_folder_is_one_sentence(
    random_model: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    broken = shutil.copytree(random_model, tmp_path / "broken")
    weights, config = (
        broken / "unet" / "diffusion_pytorch_model.safetensors",
        broken / "vae" / "config.json",
    )
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "mismatched":
        shutil.copy(random_model / "decoder" / weights.name, weights)
    elif damage == "nan":
        tensors = load_file(weights)
        next(iter(tensors.values())).view(-1)[0] = float("nan")
        save_file(tensors, weights, metadata={"format": "pt"})
    elif damage == "architecture":
        config = broken / "unet" / "config.json"
        config.write_text(
            json.dumps({**json.loads(config.read_text()), "class_embed_type": "timestep"})
        )
    else:
        config.write_text("{")
    save(photos / "a.png")
    assert main(["restore", str(photos), "-o", str(tmp_path / "out"), "--model", str(broken)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    named = {"nonsense": config, "nan": weights.parent, "architecture": weights.parent.parent}.get(
        damage, weights
    )
    assert str(named) in err
    assert files_in(tmp_path / "out") == []


def test_where_nothing_can_be_written(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(photos / "a.png")
    save(photos / "sub" / "b.png")
    (tmp_path / "out").write_text("a file")
    assert restore(photos) == 2
    assert f"diffrestorer: can't write to {tmp_path / 'out'} (File exists)\n" == capfd.readouterr().err
    (tmp_path / "out").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("a file")
    assert restore(photos) == 1
    err = capfd.readouterr().err
    assert files_in(tmp_path / "out") == ["a.png", "sub"]
    assert f"diffrestorer: {photos / 'sub' / 'b.png'}: File exists: {tmp_path / 'out' / 'sub'}\n" in err


def test_a_full_disk_ends_the_run(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real limit on the size of files: what fits is whole, and nobody waits for photos that can't be written."""
    save(photos / "a.png", noise(8, 8))
    for name in "bcdefgh":
        save(photos / f"{name}.png", noise(96, 96))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        assert restore(photos) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    first, *_, last = capfd.readouterr().err.splitlines()
    assert first == f"diffrestorer: {photos / 'b.png'}: it cannot be written (File too large)"
    assert (
        last
        == f"diffrestorer: {tmp_path / 'out'} takes no more files: stopped; 1 restored so far stand"
    )
    assert files_in(tmp_path / "out") == ["a.png"]


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_restored(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(photos / "sub" / "a.png")
    folder = os.open(photos / "sub", os.O_DIRECTORY)
    for _ in range(
        PATH_MAX // 200 + 1
    ):  # whoever may read everything can't list a path that is too long either
        os.mkdir("x" * 200, dir_fd=folder)
        inner = os.open("x" * 200, os.O_DIRECTORY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    assert restore(photos) == 1
    err = capfd.readouterr().err
    assert "it cannot be listed (File name too long)" in err
    assert err.endswith("restored 1, skipped 0 (already there), failed 1\n")
    assert files_in(tmp_path / "out") == ["sub/a.png"]


def test_nothing_to_do(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in (["restore", str(photos), "-o", str(tmp_path / "out")], ["detect", str(photos)]):
        assert main(command) == 1
        assert capfd.readouterr().err == "diffrestorer: there are no images in INPUT: nothing to do\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta"])
def test_an_unusable_device_is_one_sentence(
    photos: Path, capfd: pytest.CaptureFixture[str], device: str
) -> None:
    save(photos / "a.png")
    assert main(["detect", str(photos), "--device", device]) == 2
    assert (
        capfd.readouterr().err
        == f"diffrestorer: device '{device}' can't be used on this machine; try --device cpu\n"
    )
