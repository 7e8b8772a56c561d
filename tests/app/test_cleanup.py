"""What visitors leave behind is removed after an hour, and nothing of a job before that job has ended."""

import asyncio
import os
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from photo_files import files_in, save

from diffrestorer.app import desk as desk_module
from diffrestorer.app import guard as guard_module
from diffrestorer.app.cleanup import KEEP_SECONDS, renew, sweep
from diffrestorer.app.desk import DETECTED, Desk
from diffrestorer.app.guard import Guard
from diffrestorer.app.visitors import Visitors
from diffrestorer.data.images import read_photo
from diffrestorer.inference.photos import Options, Restored

KINDS = {
    "upload": f"{'a' * 64}/photo.png",
    "upload in progress": "tmp8x_1",
    "shown image": f"{'b' * 64}/image.png",
    "copy in progress": f"{'b' * 64}/.image.png.x7",
    "sample": f"{'c' * 32}/sample.jpg",
    "result": f"{'d' * 32}/photo_restored.png",
    "result in progress": f"{'d' * 32}/.{'0' * 16}.tmp",
    "archive": f"{'e' * 32}/restored.zip",
    "deep": "deep_links/one/state.json",
}
"""Files below the server's folder, as Gradio and the desk name them."""


def make_old(*paths: Path, seconds: float = KEEP_SECONDS + 60) -> None:
    """Set the times of files and folders back."""
    for path in paths:
        os.utime(path, (time.time() - seconds,) * 2)


def make_all_old(folder: Path) -> None:
    """Set the times of everything below a folder back, as if more than an hour had passed."""
    make_old(*folder.rglob("*"))


def pass_time(folder: Path, seconds: float) -> None:
    """Set the times of everything below a folder back by so much, as if it had passed."""
    for path in folder.rglob("*"):
        make_old(path, seconds=time.time() - path.stat().st_mtime + seconds)


def put(folder: Path, name: str, size: int = 100) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(size))
    return file


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS.keys())
def test_a_file_of_any_kind_goes_after_an_hour_with_its_folder(name: str, tmp_path: Path) -> None:
    file = put(tmp_path, name)
    make_old(file, seconds=KEEP_SECONDS - 60)
    assert sweep(tmp_path) == 100
    assert files_in(tmp_path) == [name]
    make_all_old(tmp_path)
    make_old(tmp_path)
    assert sweep(tmp_path) == 0
    assert files_in(tmp_path) == []
    make_all_old(tmp_path)  # a folder in a folder stays until it has been empty for an hour
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [], "empty folders would be left for ever"
    assert tmp_path.is_dir()


def test_young_files_stay_beside_old_ones(tmp_path: Path) -> None:
    """In old folders too; a new folder waits for its file."""
    for name in KINDS.values():
        put(tmp_path, name)
    make_all_old(tmp_path)
    young = {put(tmp_path, f"{Path(name).parent}/young") for name in KINDS.values()}
    renewed = [tmp_path / KINDS["upload"], tmp_path / KINDS["result"]]
    renew([str(file) for file in renewed] + [str(tmp_path / "gone")])
    (tmp_path / "new").mkdir()
    assert sweep(tmp_path) == 100 * (len(young) + len(renewed))
    left = [file.relative_to(tmp_path).as_posix() for file in (*young, *renewed)]
    assert files_in(tmp_path) == sorted(left)
    assert (tmp_path / "new").is_dir()


def test_several_threads_sweep_at_once(tmp_path: Path) -> None:
    for number in range(300):
        put(tmp_path, f"{number:032x}/photo_restored.png")
    make_all_old(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(sweep, [tmp_path] * 8))[-1] == 0
    assert list(tmp_path.iterdir()) == []


async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Say yes to everything, in place of the page."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def guard_of(folder: Path, page: Any = answer) -> Guard:
    async def drop(session: str) -> None:
        raise AssertionError(session)

    return Guard(page, {"localhost"}, folder, Visitors(), drop, lambda: False)


def upload(folder: Path, length: int = 1000) -> int:
    """Return the status of an upload of so many bytes."""
    sent: list[dict[str, Any]] = []
    headers = [(b"host", b"localhost"), (b"content-length", str(length).encode())]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(guard_of(folder)(scope, None, send))  # type: ignore[arg-type]
    return int(sent[0]["status"])


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS.keys())
def test_a_full_server_takes_photos_again_after_an_hour(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "LARGEST_FOLDER", 5000)
    put(tmp_path, name, 4500)
    assert upload(tmp_path) == 507
    assert files_in(tmp_path) == [name]
    make_all_old(tmp_path)
    assert upload(tmp_path) == 200
    assert files_in(tmp_path) == []


def test_a_server_that_nobody_visits_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "_SWEEP_SECONDS", 0)
    old, young = put(tmp_path, KINDS["result"]), put(tmp_path, KINDS["upload"])
    make_old(old)

    async def page(scope: dict[str, Any], receive: Any, send: Any) -> None:
        while old.exists():
            assert len(asyncio.all_tasks()) == 2, "nothing sweeps beside the page"
            await asyncio.sleep(0)

    asyncio.run(guard_of(tmp_path, page)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert young.exists()


class QuietProgress(gr.Progress):
    """A progress bar without a page."""

    def __call__(self, *args: Any, **keys: Any) -> None:
        """Show nothing."""


class Job:
    """A visitor's job of several photos, at a desk whose model takes hours and returns what it is given."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 3) -> None:
        self.folder = folder
        self.paths = []
        for number in range(count):
            path = save(folder / f"{number:064x}" / "photo.png", np.full((8, 8, 3), number, np.uint8))
            self.paths.append(str(path))
        self.desk = Desk(None, folder, Visitors())
        self.on_hour: Callable[[], object] = lambda: None
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))  # as the server does
        monkeypatch.setattr(desk_module, "check_options", lambda pipe, options: options)
        monkeypatch.setattr(desk_module, "detect", lambda pipe, photo: {"haze": 1.0})
        monkeypatch.setattr(desk_module, "restore", self._restore)

    def _restore(self, pipe: Any, photos: list[Any], options: Options, on_step: Any) -> list[Restored]:
        """Let another visitor come after each step, when 40 minutes more have passed."""
        for _ in range(options.steps or 1):
            pass_time(self.folder, 2400)
            on_step(1)
            self.on_hour()
            sweep(self.folder)
        pass_time(self.folder, 2400)  # decoding
        return [Restored(photos[0], {})]

    def run(self) -> list[tuple[Any, ...]]:
        """Restore the photos in four steps each."""
        request = gr.Request(session_hash="visitor")
        self.desk.visitors.listen("visitor")
        job = self.desk.restore(self.paths, 4, 0, "refined", 1.0, DETECTED, request, QuietProgress())
        try:
            return list(job)
        finally:
            self.desk.visitors.leave("visitor")


@pytest.mark.parametrize("count", [1, 3])
def test_a_job_of_hours_loses_nothing(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its photos and results stay for an hour after its end, and then go, though only the last one was shown."""
    job = Job(tmp_path, monkeypatch, count)
    *_, ready, results, _ = job.run()[-1]
    assert list(results) == job.paths
    for number, result in enumerate(results.values()):
        assert (read_photo(result).pixels == number).all()
    if count > 1:
        with zipfile.ZipFile(ready.value["path"]) as archive:
            assert len(archive.namelist()) == count

    # An hour from now on.
    left = files_in(tmp_path)
    assert len(left) == 2 * count + (count > 1)
    pass_time(tmp_path, KEEP_SECONDS - 60)
    assert upload(tmp_path) == 200
    assert files_in(tmp_path) == left
    pass_time(tmp_path, 120)
    assert upload(tmp_path) == 200
    assert files_in(tmp_path) == []


def test_writing_a_result_removes_what_others_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No upload comes in between."""
    job = Job(tmp_path, monkeypatch, 1)
    monkeypatch.setattr(
        desk_module, "restore", lambda pipe, photos, options, on_step: [Restored(photos[0], {})]
    )
    left_behind = [put(tmp_path, f"{number}/photo_restored.png") for number in "xyz"]
    make_old(*left_behind[:2])
    job.run()
    assert [file.exists() for file in left_behind] == [False, False, True]


def test_results_of_a_visitor_who_leaves_go_after_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first photo is restored when the page is closed."""
    job = Job(tmp_path, monkeypatch)

    def leave() -> None:
        if any(tmp_path.rglob("*_restored.png")):
            monkeypatch.setattr(job.desk.visitors, "has_left", lambda session: True)

    job.on_hour = leave
    with pytest.raises(gr.Error, match="The page was closed"):
        job.run()
    assert len(list(tmp_path.rglob("*_restored.png"))) == 1
    make_all_old(tmp_path)
    assert upload(tmp_path) == 200
    assert files_in(tmp_path) == []
