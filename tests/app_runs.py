"""`diffrestorer app` in a process of its own, and what a visitor does on its page.

python tests/app_runs.py docs/app.png     # takes the picture of the documentation, with the bundled weights
"""

import io
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cli_runs
import numpy as np
from browser import Browser
from PIL import Image

INPUT = "#photo input[type=file]"


@contextmanager
def app(folder: Path, *options: str) -> Iterator[str]:
    """Serves the page from a free port of this machine and yields its address; then ends the server as `kill` does.

    It must end as it should, and leave nothing behind.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, temporary = folder / "log", folder / "tmp"
    temporary.mkdir()
    process = cli_runs.start(["app", "--port", str(port), *options], log, TMPDIR=str(temporary))
    address = f"http://127.0.0.1:{port}/"
    deadline = time.monotonic() + 120
    while not (log.exists() and address in log.read_text()):
        assert process.is_alive(), log.read_text()
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.05)
    try:
        yield address
        assert process.is_alive(), log.read_text()
    finally:
        os.kill(process.pid or 0, signal.SIGTERM)
        assert cli_runs.wait(process) == 0, log.read_text()
    lines = log.read_text().splitlines()
    assert (lines[0], lines[-1]) == (f"DiffRestorer is at {address} (Ctrl-C ends it)", "stopped")
    assert list(temporary.iterdir()) == []


def open_page(browser: Browser, address: str) -> None:
    """Opens the page and waits until it can be used."""
    browser.watch_network()
    browser.open(address)
    browser.wait(f"document.querySelector('{INPUT}')")


def drop(browser: Browser, photo: Path) -> None:
    """Gives the page a photo and waits until it has looked at it."""
    browser.upload(INPUT, photo)
    browser.wait("document.querySelector('#restore:not([disabled])') && document.querySelectorAll('#compare img')[1]")


def restore(browser: Browser, steps: int | None = None) -> None:
    """Presses the button and waits for the result; with `steps`, sets them first."""
    if steps is not None:
        browser.click("#options button")
        browser.wait("document.querySelector('#steps input[type=number]')")
        deadline = time.monotonic() + 60
        while browser.run("document.querySelector('#steps input[type=range]').value") != str(steps):
            assert time.monotonic() < deadline, "the page does not take the number of steps"
            browser.run("document.querySelector('#steps input[type=number]').select()")
            browser.call("Input.insertText", text=str(steps))
            browser.run("document.activeElement.blur()")
            time.sleep(0.2)
    browser.click("#restore")
    browser.wait("document.querySelector('#download:not([disabled])')", 120)
    browser.wait("(([a, b]) => a.complete && b.complete && a.src !== b.src)(document.querySelectorAll('#compare img'))")


def take_picture(output: Path) -> None:
    """The page with a photo that the bundled weights have restored."""
    import skimage.data

    from diffrestorer.data.synthesis import degrade

    photo = Image.fromarray(skimage.data.chelsea()).crop((40, 0, 340, 300))
    with tempfile.TemporaryDirectory() as folder:
        degraded = Path(folder, "chelsea.png")
        Image.fromarray(degrade(np.asarray(photo), "low_light", np.random.default_rng(1))).save(degraded)
        with app(Path(folder)) as address, Browser(1280, 960) as browser:
            open_page(browser, address)
            drop(browser, degraded)
            restore(browser)
            time.sleep(1)  # whatever fades
            picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    picture.quantize(256, method=Image.Quantize.MEDIANCUT).save(output, optimize=True)


if __name__ == "__main__":
    take_picture(Path(sys.argv[1]))
