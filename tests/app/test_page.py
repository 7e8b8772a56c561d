"""The page in a real browser, before a real server: what a visitor sees, gets, and can't get."""

import json
import os
import socket
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import app_runs
import cv2
import numpy as np
import pytest
from photo_files import RNG, claim, files_in
from soaking import some_now

import diffrestorer
from diffrestorer.app.cleanup import KEEP_SECONDS
from diffrestorer.app.visitors import GRACE_SECONDS
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.data.images import read_photo
from diffrestorer.inference.photos import Options, load_pipeline, read, restore

if TYPE_CHECKING:
    from browser import Browser

STEPS = 3


@pytest.fixture(scope="module")
def app_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server writes its log, and its temporary files below tmp/."""
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def address(random_model: Path, app_folder: Path) -> Iterator[str]:
    """A server that runs as long as these tests and then ends by SIGTERM: cleanly, or the last of them fails."""
    with app_runs.app(app_folder, "--model", str(random_model), "--device", "cpu") as address:
        yield address


@pytest.fixture(scope="module")
def page(browser: "Browser", address: str) -> "Browser":
    app_runs.open_page(browser, address)
    return browser


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16-bit, with alpha, of an odd size."""
    path = tmp_path_factory.mktemp("photos") / "old photo.png"
    assert cv2.imwrite(str(path), RNG.integers(0, 65536, (61, 90, 4), dtype=np.uint16))
    return path


def get(address: str, data: dict[str, Any] | None = None) -> tuple[int, bytes]:
    """Status and content, whatever it is."""
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=1800) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_photo_is_looked_at_restored_compared_and_downloaded(
    page: "Browser", photo: Path, random_model: Path, tmp_path: Path
) -> None:
    """What comes down is what the command line makes of the photo: its size, depth and transparency, bit for bit."""
    app_runs.drop(page, photo)
    lines = page.run("document.querySelector('#degradations').innerText").split("\n")
    shares = [int(line.rstrip("%")) for line in lines if line.endswith("%")]
    assert {name.replace("_", " ") for name in DEGRADATIONS} <= set(lines)
    assert len(shares) == len(DEGRADATIONS)
    assert sum(shares) == pytest.approx(100, abs=5)

    app_runs.restore(page, STEPS)
    sizes = page.run(
        "[...document.querySelectorAll('#compare img')].map((i) => [i.naturalWidth, i.naturalHeight])"
    )
    assert sizes == [[90, 61], [90, 61]]
    clip = "document.querySelectorAll('#compare img')[1].style.clipPath"
    assert "50%" in page.run(clip)
    x, y = page.centre("#compare [data-testid=slider] .inner")
    page.drag((x, y), (x + 100, y))
    page.wait(f"!{clip}.includes('50%')")

    page.download_to(tmp_path)
    page.click("#download")
    output = tmp_path / "old photo_restored.png"
    deadline = time.monotonic() + 1800
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (expected,) = restore(load_pipeline(str(random_model), "cpu"), [read(photo)], Options(steps=STEPS))
    received = read_photo(output)
    assert received.pixels.dtype == np.uint16
    assert np.array_equal(received.alpha, expected.photo.alpha)
    assert np.abs(received.pixels.astype(int) - expected.photo.pixels).max() <= 2  # of 65535


def test_nothing_comes_from_elsewhere(page: "Browser", address: str) -> None:
    assert len(page.requests) > 20
    assert [url for url in page.requests if not url.startswith((address, "data:", "blob:"))] == []


@pytest.mark.parametrize("kind", ["text", "panorama"])
def test_a_bad_file_is_one_sentence(page: "Browser", tmp_path: Path, kind: str) -> None:
    bad = tmp_path / "bad.png"
    if kind == "text":
        bad.write_text("no picture")
        sentence = "It is not an image of a supported format, or its beginning is damaged."
    else:
        claim(bad, 20_000, 5_000)
        sentence = "It claims 20000x5000 pixels, more than the limit of 25000000."
    page.run("document.querySelector('#photo button[aria-label=Clear]')?.click()")
    page.wait(f"document.querySelector('{app_runs.INPUT}')")
    page.upload(app_runs.INPUT, bad)
    page.wait(f"document.body.innerText.includes('{sentence}')")
    assert not page.run("document.body.innerText.includes('Traceback')")
    assert page.run("document.querySelector('#restore').disabled")


def test_no_file_outside_the_own_folder_is_given(address: str, random_model: Path) -> None:
    weights = Path(diffrestorer.__file__).parent / "weights" / "mini" / "model_index.json"
    own = [
        random_model / "model_index.json",
        weights,
        Path(__file__),
        Path("/etc/passwd"),
        Path("/proc/self/environ"),
    ]
    for path in [*own, "../../../../etc/passwd", "pyproject.toml", "."]:
        for route in (
            "gradio_api/file=",
            "file=",
            "static/",
            "assets/",
            "theme.css/",
            "gradio_api/proxy=",
        ):
            status, content = get(f"{address}{route}{path}")
            assert status >= 400, (route, path, content[:200])


def test_a_job_cannot_name_a_file_of_the_server(address: str) -> None:
    """Neither what is looked at nor what is restored may be a file that nobody has uploaded."""
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for number in range(2):
        session = {"fn_index": number, "session_hash": f"nosy{number}"}
        values = [[file]] if number == 0 else [[file], 1, 0, "refined", 1, "what the model detects"]
        assert get(f"{address}gradio_api/queue/join", {"data": values, **session})[0] == 200
        _, events = get(f"{address}gradio_api/queue/data?session_hash=nosy{number}")
        done = [line for line in events.decode().splitlines() if "process_completed" in line]
        assert len(done) == 1, events
        assert '"success":false' in done[0].replace(" ", "")
        assert "root:" not in events.decode()


def test_uploads_have_bounds(address: str) -> None:
    boundary = b"--x\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\n"
    body = boundary + bytes(65 * 2**20) + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{address}gradio_api/upload", body, headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=1800)
    assert caught.value.code == 413


def send(address: str, photo: Path, name: str = "a.png") -> dict[str, Any]:
    """Upload a photo under a name, and return what names it in a job."""
    head = f"--x\r\nContent-Disposition: form-data; name=files; filename={name}\r\n\r\n"
    body = head.encode() + photo.read_bytes() + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{address}gradio_api/upload", body, headers)
    with urllib.request.urlopen(request, timeout=1800) as answer:
        (path,) = json.loads(answer.read())
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_fifty_abandoned_jobs_keep_nobody_waiting(address: str, photo: Path) -> None:
    """A visitor after them is answered in the time of one restoration, and of noticing that they have left."""
    values = [[send(address, photo)], 40, 0, "refined", 1, "what the model detects"]

    def join(session: str) -> int:
        return get(
            f"{address}gradio_api/queue/join", {"data": values, "fn_index": 1, "session_hash": session}
        )[0]

    def restored(session: str) -> float:
        start = time.monotonic()
        assert join(session) == 200
        status, events = get(f"{address}gradio_api/queue/data?session_hash={session}")
        assert status == 200
        done = [line for line in events.decode().splitlines() if "process_completed" in line]
        assert len(done) == 1
        assert '"success":true' in done[0].replace(" ", "")
        return time.monotonic() - start

    alone = min(restored("first"), restored("second"))
    assert [join(f"gone{number}") for number in range(50)] == [200] * 50
    assert restored("visitor") < 5 * alone + 2 * GRACE_SECONDS


def test_another_site_cannot_use_the_page(address: str) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        for route in ("", "config", "gradio_api/queue/join"):
            request = urllib.request.Request(address + route, headers=headers)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=1800)
            assert caught.value.code == 403


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(page: "Browser", address: str, theme: str) -> None:
    """4.5:1, or 3:1 where it is large (WCAG 2.1, 1.4.3), with a photo looked at and every option open."""
    page.open(f"{address}?__theme={theme}")
    page.wait(f"document.querySelector('{app_runs.INPUT}')")
    app_runs.try_sample(page)
    page.click("#options button")
    page.wait("document.querySelector('#steps input[type=number]')")
    time.sleep(1)  # whatever fades
    assert page.run("document.body.classList.contains('dark')") == (theme == "dark")
    assert page.run(app_runs.CONTRAST) == []


NAMES = """[
  ...[...document.querySelectorAll('div[aria-label]:not([role]), span[aria-label]:not([role])')].map(e => e.outerHTML),
  ...[...document.querySelectorAll('button[aria-label]')].filter(
    e => !e.getAttribute('aria-label').toLowerCase().includes(e.innerText.trim().toLowerCase())).map(e => e.outerHTML),
]"""


def test_a_screen_reader_says_what_is_seen(page: "Browser", address: str) -> None:
    """No name without a role, and no name that is not the text that is seen (WCAG 2.1, 4.1.2 and 2.5.3)."""
    app_runs.open_page(page, address)
    page.wait(f"{NAMES}.length === 0", 60)
    app_runs.try_sample(page)
    assert page.run(NAMES) == []


def test_several_photos_stay_in_view_and_come_down_together(
    page: "Browser", address: str, photo: Path, tmp_path: Path
) -> None:
    app_runs.open_page(page, address)
    assert "16 photos" in page.run("document.querySelector('#limits').innerText")
    second = tmp_path / "second.png"
    second.write_bytes(photo.read_bytes())
    bad = tmp_path / "third.png"
    bad.write_text("no picture")
    page.upload(app_runs.INPUT, photo, second, bad)
    page.wait(
        "document.querySelector('#restore:not([disabled])') && document.querySelector('#shown input')"
    )
    page.run(app_runs.WATCH_COMPARE)
    page.click("#restore")
    page.wait("document.querySelector('#download:not([disabled])')", 240)
    assert page.run("window.hiddenFrames") == 0, "the photo is in view all the time"
    assert page.run("document.body.innerText.includes('third.png: It is not an image')")
    page.download_to(tmp_path)
    page.click("#download")
    packed = tmp_path / "restored.zip"
    deadline = time.monotonic() + 1800
    while not packed.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == ["old photo_restored.png", "second_restored.png"]


def test_it_listens_on_loopback_only(address: str) -> None:
    port = int(address.rstrip("/").rpartition(":")[2])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; tells which address this machine has to others
        outside = probe.getsockname()[0]
    with socket.socket() as client:
        client.settimeout(1800)
        assert client.connect_ex(("127.0.0.1", port)) == 0
    with socket.socket() as client:
        client.settimeout(5)
        assert client.connect_ex((outside, port)) != 0


@pytest.mark.parametrize("width", some_now([390, 1280], 1))
def test_nothing_jumps_and_nothing_is_cut_off(page: "Browser", address: str, width: int) -> None:
    """Buttons stay where they are while a photo is looked at and restored, on a desk and on a phone."""
    places = (
        "Object.fromEntries(['options', 'restore', 'compare', 'status', 'download'].map((id) => "
        "[id, Math.round(document.getElementById(id).getBoundingClientRect().top + scrollY)]))"
    )
    sizes = "['degradations', 'compare'].map((id) => document.getElementById(id).offsetHeight)"
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=width, height=844, deviceScaleFactor=1, mobile=width < 600,
    )  # fmt: skip
    try:
        app_runs.open_page(page, address)
        app_runs.try_sample(page)
        page.wait("document.fonts.status === 'loaded'")
        looked_at = page.run(places)
        heights = page.run(sizes)
        inside = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert page.run(inside)
        app_runs.restore(page)
        assert page.run(places) == looked_at
        assert page.run(inside)

        # A list that is cleared takes the answer away, and none of its room.
        page.run("document.querySelector('#photo button[aria-label=Clear]').click()")
        page.wait("document.querySelector('#restore').disabled")
        page.wait("!document.querySelector('#compare img')")
        page.wait(f"{sizes}[0] === {heights[0]} && {sizes}[1] === {heights[1]}", 60)
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


def test_photos_and_results_of_an_hour_ago_are_gone(
    address: str, app_folder: Path, photo: Path
) -> None:
    """Those of a job of several photos too, of which a component of the page shows the last one only."""
    (folder,) = (app_folder / "tmp").glob("diffrestorer-*")

    def restored(session: str, *photos: dict[str, Any]) -> bool:
        values = [list(photos), 1, 0, "refined", 1, "what the model detects"]
        job = {"data": values, "fn_index": 1, "session_hash": session}
        assert get(f"{address}gradio_api/queue/join", job)[0] == 200
        _, events = get(f"{address}gradio_api/queue/data?session_hash={session}")
        (done,) = [line for line in events.decode().splitlines() if "process_completed" in line]
        return '"success":true' in done.replace(" ", "")

    # Two photos, so that they have two names.
    second = send(address, photo, "b.png")
    assert restored("several", send(address, photo), second)
    names = [name.rpartition("/")[2] for name in files_in(folder)]
    assert {"a.png", "b.png", "a_restored.png", "b_restored.png", "restored.zip"} <= set(names)

    # An hour later another visitor uploads a photo.
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - KEEP_SECONDS - 60,) * 2)
    new = send(address, photo, "c.png")
    assert [name.rpartition("/")[2] for name in files_in(folder)] == ["c.png"]
    assert not restored("late", second)
    assert restored("new", new)
