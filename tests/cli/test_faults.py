"""What goes wrong is named in one sentence, and nothing is lost."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from photo_files import claim, files_in, noise, save, write_bad_files
from safetensors.torch import load_file, save_file

from diffrestorer import photos as photos_module
from diffrestorer.cli import main
from diffrestorer.memory import free_memory

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
        assert any(str(photos / name) in line and reason in line for line in err.splitlines()), (name, err)
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
    monkeypatch.setattr(photos_module, "free_memory", lambda: 64_000_000)
    assert restore(photos, "--batch-size", "2") == 1
    assert files_in(tmp_path / "out") == ["s1.png", "s2.png"]
    assert "large.png: restoring it takes about 84 MB of memory, 51 MB are free" in capfd.readouterr().err


def test_free_memory_is_that_of_this_machine() -> None:
    assert 10**8 < free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("tile", "width", "height", "memory", "why"),
    [
        ("auto", 20_000, 5_000, 4_000, "it claims 20000x5000 pixels, more than the limit of 62500000"),
        ("none", 4_096, 3_000, 8_000, "restoring it takes about 17302 MB of memory, 6400 MB are free"),
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


@pytest.mark.parametrize("damage", ["missing", "truncated", "mismatched", "nonsense", "nan", "architecture"])
def test_a_bad_model_folder_is_one_sentence(
    random_model: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    broken = shutil.copytree(random_model, tmp_path / "broken")
    weights, config = broken / "unet" / "diffusion_pytorch_model.safetensors", broken / "vae" / "config.json"
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
        config.write_text(json.dumps({**json.loads(config.read_text()), "class_embed_type": "timestep"}))
    else:
        config.write_text("{")
    save(photos / "a.png")
    assert main(["restore", str(photos), "-o", str(tmp_path / "out"), "--model", str(broken)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    named = {"nonsense": config, "nan": weights.parent, "architecture": weights.parent.parent}.get(damage, weights)
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
    assert last == f"diffrestorer: {tmp_path / 'out'} takes no more files: stopped; 1 restored so far stand"
    assert files_in(tmp_path / "out") == ["a.png"]


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_restored(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(photos / "sub" / "a.png")
    folder = os.open(photos / "sub", os.O_DIRECTORY)
    for _ in range(PATH_MAX // 200 + 1):  # whoever may read everything can't list a path that is too long either
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
def test_an_unusable_device_is_one_sentence(photos: Path, capfd: pytest.CaptureFixture[str], device: str) -> None:
    save(photos / "a.png")
    assert main(["detect", str(photos), "--device", device]) == 2
    assert (
        capfd.readouterr().err == f"diffrestorer: device '{device}' can't be used on this machine; try --device cpu\n"
    )
