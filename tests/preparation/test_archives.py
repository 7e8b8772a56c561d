"""Archives are unpacked safely: images only, nothing outside the folder, whole or not at all."""

import io
import multiprocessing
import os
import tarfile
import zipfile
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from diffrestorer.data.manifest import open_shard
from diffrestorer.data.storage import whole_file
from diffrestorer.preparation.archives import list_files, unpack
from diffrestorer.preparation.inventory import Source, take_photos
from diffrestorer.preparation.shards import Planned, file_names


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, member: tarfile.TarInfo, content: bytes = b"") -> Path:
    member.size = len(content)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(member, io.BytesIO(content))
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_images_only(tmp_path: Path) -> None:
    archive = make_zip(
        tmp_path / "a.zip", {"x/1.png": b"1", "x/readme.txt": b"2", "__MACOSX/x/._1.png": b"3"}
    )
    assert files(unpack(archive, tmp_path / "out")) == ["x/1.png"]


def _unpack_elsewhere(archive: Path, folder: Path, start: Event) -> None:
    start.wait()
    assert files(unpack(archive, folder)) == [f"{number:03d}.png" for number in range(400)]


def test_processes_that_share_a_folder_unpack_once(tmp_path: Path) -> None:
    archive = make_zip(
        tmp_path / "a.zip", {f"{number:03d}.png": bytes(10_000) for number in range(400)}
    )
    context = multiprocessing.get_context("fork")
    start = context.Event()
    line = (archive, tmp_path / "out", start)
    processes = [context.Process(target=_unpack_elsewhere, args=line) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(files(tmp_path / "out")) == 400 + 1, "the images once, and the lock"


@pytest.mark.parametrize("name", ["../1.png", "x/../../1.png", "/etc/1.png", "C:/1.png", "..\\1.png"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x/0.png": b"0", name: b"1"})
    with pytest.raises(ValueError, match="leads out of its folder"):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("x/1.png")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(ValueError, match="link or special file"):
        unpack(make_tar(tmp_path / "a.tar.gz", member), tmp_path / "out")
    assert files(tmp_path) == ["a.tar.gz"]


def test_links_in_zips_are_refused(tmp_path: Path) -> None:
    member = zipfile.ZipInfo("x/1.png")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(ValueError, match="link or special file"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_an_archive_that_is_cut_off(tmp_path: Path, suffix: str) -> None:
    content = bytes(range(256)) * 100
    archive = tmp_path / f"a{suffix}"
    if suffix == ".zip":
        make_zip(archive, {"x/1.png": content})
    else:
        make_tar(archive, tarfile.TarInfo("x/1.png"), content)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"a\.(zip|tar\.gz) is damaged or cut off"):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path) == [archive.name]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_file(tmp_path / "a") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["a.png", "x/b.zip", "c.tar.gz"])
def test_pipes_named_like_images_or_archives_do_not_hang(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    (root / "x").mkdir(parents=True)
    os.mkfifo(root / name)
    for take in (
        lambda: list_files(root, tmp_path / "out"),
        lambda: list_files(root / name, tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match=r"regular file|cannot be listed"):
            take()


def test_a_pipe_named_like_a_photo_or_a_shard_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="regular file"):
        take_photos(tmp_path, "train")
    os.mkfifo(tmp_path / "00000.npy")
    with pytest.raises(ValueError, match="regular file"):
        open_shard(tmp_path / "00000.npy")


def test_names_that_would_be_too_long_are_shortened_and_stay_apart(tmp_path: Path) -> None:
    sources = [
        Source("é" * 100 + "/" + "x" * 180 + end, None, tmp_path / "a.png") for end in ("1", "2", "2")
    ]
    names = file_names([Planned(source, 0) for source in sources])
    assert len(set(names)) == 3
    for name in names:
        with whole_file(tmp_path / f"{name}.png") as file:
            file.write(b"x")
