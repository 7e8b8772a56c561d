"""What goes wrong is named in one sentence, and nothing is lost."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from photo_files import files_in, noise, save, write_bad_files

from diffrestorer import photos as photos_module
from diffrestorer.cli import main
from diffrestorer.memory import free_memory


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


@pytest.mark.parametrize("damage", ["missing", "truncated", "mismatched", "nonsense"])
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
    else:
        config.write_text("{")
    save(photos / "a.png")
    assert main(["restore", str(photos), "-o", str(tmp_path / "out"), "--model", str(broken)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert str(config if damage == "nonsense" else weights) in err
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
