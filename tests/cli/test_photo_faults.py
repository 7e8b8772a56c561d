"""Photos, names and outputs as people have them: what nobody reads is counted, nothing hangs, nothing is lost."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from photo_files import files_in, noise, save
from PIL import Image
from soaking import some_now

from diffrestorer.cli import main
from diffrestorer.cli.commands import COMMANDS, run_command
from diffrestorer.cli.parser import parse
from diffrestorer.cli.threads import leave_busy_cores


def test_auto_follows_the_input(restore: Callable[..., int], photos: Path, tmp_path: Path) -> None:
    """And date and place come along, in every format."""
    exif = Image.Exif()
    exif[0x0132] = "2024:05:06 07:08:09"
    for name in ("a.JPG", "b.jpeg", "c.png", "d.tif", "e.webp", "f.bmp"):
        save(photos / name, noise(), **({} if name == "f.bmp" else {"exif": exif}))
    assert restore(photos, "--format", "auto") == 0
    assert files_in(tmp_path / "out") == ["a.jpg", "b.jpg", "c.png", "d.tif", "e.webp", "f.png"]
    for name, format in {
        "a.jpg": "JPEG",
        "b.jpg": "JPEG",
        "c.png": "PNG",
        "d.tif": "TIFF",
        "e.webp": "WEBP",
    }.items():
        with Image.open(tmp_path / "out" / name) as image:
            assert (image.format, image.getexif()[0x0132]) == (format, "2024:05:06 07:08:09")


def test_photos_that_nothing_reads_are_counted(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Raw files beside their JPEGs are no failure, but no secret either; the first of a kind is named."""
    save(photos / "a.jpg")
    for name in ("a.NEF", "b.cr3", "sub/c.dng", "d.jxl"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"raw")
    assert restore(photos, "--json") == 0
    out, err = capfd.readouterr()
    assert err.endswith(
        "restored 1, skipped 0 (already there), failed 0, cannot read 4 (formats that are not supported)\n"
    )
    assert (err.count("raw file"), err.count("JPEG XL")) == (1, 1)
    unread = [line for line in map(json.loads, out.splitlines()) if line["status"] == "unreadable"]
    assert sorted(Path(line["input"]).name for line in unread) == ["a.NEF", "b.cr3", "c.dng", "d.jxl"]
    assert restore(photos / "d.jxl") == 1, "named outright, it is a failure"


def test_inputs_may_stand_behind_options() -> None:
    for line in (
        "a.jpg -o out b.jpg",
        "-o out a.jpg b.jpg",
        "a.jpg b.jpg -o out",
        "a.jpg --json b.jpg -o out",
    ):
        assert parse(["restore", *line.split()]).inputs == [Path("a.jpg"), Path("b.jpg")]
    assert parse(["restore", "a.jpg", "-o", "out", "--", "-b.jpg"]).inputs[0] == Path("a.jpg")
    for line in ("restore a.jpg -o out b.jpg --stesp 3", "restore a.jpg -o out -b.jpg", "app a.jpg"):
        with pytest.raises(SystemExit):
            parse(line.split())


@pytest.mark.parametrize("command", ["restore", "detect"])
def test_stdout_on_a_full_disk_is_one_sentence(
    random_model: Path,
    photos: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    save(photos / "a.png")
    save(photos / "b.png")
    arguments = [command, str(photos), "--json", "--model", str(random_model), "--device", "cpu"]
    arguments += ["-o", str(tmp_path / "out"), "--steps", "1"] if command == "restore" else []
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(arguments) == 1
    monkeypatch.undo()
    err = capfd.readouterr().err
    assert err.startswith("diffrestorer: stdout takes no more (No space left on device): stopped")
    assert len(err.splitlines()) == 1


def test_names_of_255_bytes(restore: Callable[..., int], photos: Path, tmp_path: Path) -> None:
    """With a suffix to swap, without one, doubled because two have one name, and of letters of several bytes."""
    long = "x" * 251
    save(photos / f"{long}.jpg")
    save(photos / f"{long}.png")
    save(photos / ("é" * 125 + ".webp"))
    bare = save(photos / "y.png").rename(photos / ("y" * 255))
    assert restore(photos, bare) == 0
    names = files_in(tmp_path / "out")
    assert len(names) == 4
    assert all(len(os.fsencode(name)) <= 255 and name.endswith(".png") for name in names)
    assert restore(photos, bare) == 0, "the same names again: nothing to do"
    assert files_in(tmp_path / "out") == names


@pytest.mark.parametrize("place", ["itself", "inside"])
def test_pipes_named_like_models_do_not_hang(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], place: str
) -> None:
    save(photos / "a.png")
    model = tmp_path / "model"
    pipe = model
    if place == "inside":
        (model / "unet").mkdir(parents=True)
        pipe = model / "unet" / "config.json"
    os.mkfifo(pipe)
    assert main(["detect", str(photos), "--model", str(model)]) == 2
    assert capfd.readouterr().err == (
        f"diffrestorer: the model {str(model)!r} can't be loaded: {pipe} is not a regular file\n"
    )


def test_pipes_and_devices_among_the_files(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(photos / "a.png")
    os.mkfifo(photos / "b.png")
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "a.png")
    assert restore(photos, "/dev/zero", "--overwrite") == 1
    err = capfd.readouterr().err
    assert err.count("it is not a regular file") == 2
    assert "its name belongs to a pipe" in err
    assert restore(photos / "a.png") == 0, "skipped: something has the name"


def test_threads_wait_asleep_and_are_as_many_as_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = tmp_path / "cpu.max"
    cores = len(os.sched_getaffinity(0))
    for text, threads in (
        ("max 100000", None),
        ("50000 100000", "1"),
        (f"{cores}00000 100000", None),
        ("", None),
    ):
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        quota.write_text(text)
        leave_busy_cores(quota)
        assert os.environ["OMP_WAIT_POLICY"] == "passive"
        assert os.environ.get("OMP_NUM_THREADS") == (threads if cores > 1 else None)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    leave_busy_cores(tmp_path / "absent")
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("7", "active")


@pytest.mark.parametrize("name", some_now(COMMANDS, 3))
def test_scripts_leave_busy_cores_too(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before they import torch: `evaluate --suite demo` took ten times as long beside one busy program."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # what it was comes back after the test
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    run_command(name)
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["restore", "", "-o", "out"],
        ["restore", "a.jpg", "-o", ""],
        ["detect", ""],
        ["study", "score", ""],
        ["export", "--model", "mini", "-o", ""],
    ],
)
def test_an_empty_name_is_not_this_folder(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As of a shell's variable that is not set."""
    with pytest.raises(SystemExit) as end:
        parse(words)
    assert end.value.code == 2
    assert "it is empty: name a file or a folder" in capsys.readouterr().err
