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
from browser import Browser
from PIL import Image

INPUT = "#photo input[type=file]"

CONTRAST = """
(() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith('color(srgb') ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
  };
  const over = (top, ground) => top.slice(0, 3).map((c, i) => c * top[3] + ground[i] * (1 - top[3]));
  const ground = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.data.trim();
    const shows = element.checkVisibility({opacityProperty: true, visibilityProperty: true});
    if (!shows || !/[\\p{L}\\p{N}]/u.test(text)) continue;
    if (element.closest('[disabled], script, style, noscript')) continue;
    const style = getComputedStyle(element);
    const below = ground(element);
    const [a, b] = [light(over(parse(style.color), below)), light(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push([text.slice(0, 40), Math.round(ratio * 100) / 100, style.color]);
  }
  return found;
})()
"""
"""Visible text that stands out too little from its ground, by WCAG's formula, with the ratio."""

WATCH_COMPARE = """
(() => {
  window.hiddenFrames = 0;
  const look = () => {
    const image = document.querySelector('#compare img');
    const covered = image && document.elementFromPoint(
      ...((b) => [b.x + b.width / 4, b.y + b.height / 2])(image.getBoundingClientRect()));
    const shows = image && image.checkVisibility({opacityProperty: true}) && covered && covered.closest('#compare');
    const veiled = document.querySelector('#compare .wrap.generating, #compare .wrap.translucent, #compare .eta-bar');
    if (!shows || veiled) window.hiddenFrames += 1;
    requestAnimationFrame(look);
  };
  document.querySelector('#compare').scrollIntoView({block: 'center', behavior: 'instant'});
  look();
})()
"""
"""Counts in `window.hiddenFrames` the frames in which the photo is not to be seen."""


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
    deadline = time.monotonic() + 1800
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
    browser.wait(
        "document.querySelector('#restore:not([disabled])') && document.querySelectorAll('#compare img')[1]"
    )


def try_sample(browser: Browser) -> None:
    """Click on the sample photo, as soon as the page listens, and wait until the page has looked at it."""
    deadline = time.monotonic() + 1800
    while not browser.run("document.querySelector('#photo')?.innerText.includes('sample')"):
        assert time.monotonic() < deadline, "the page has no sample photo"
        if browser.run("document.querySelector('#sample')?.checkVisibility()"):
            browser.click("#sample")
        time.sleep(2)
    browser.wait(
        "document.querySelector('#restore:not([disabled])') && document.querySelectorAll('#compare img')[1]"
    )


def restore(browser: Browser, steps: int | None = None) -> None:
    """Presses the button and waits for the result; with `steps`, sets them first."""
    if steps is not None:
        browser.click("#options button")
        browser.wait("document.querySelector('#steps input[type=number]')")
        deadline = time.monotonic() + 1800
        while browser.run("document.querySelector('#steps input[type=range]').value") != str(steps):
            assert time.monotonic() < deadline, "the page does not take the number of steps"
            browser.run("document.querySelector('#steps input[type=number]').select()")
            browser.call("Input.insertText", text=str(steps))
            browser.run("document.activeElement.blur()")
            time.sleep(0.2)
    browser.click("#restore")
    browser.wait("document.querySelector('#download:not([disabled])')", 120)
    browser.wait(
        "(([a, b]) => a.complete && b.complete && a.src !== b.src)(document.querySelectorAll('#compare img'))"
    )


def take_picture(output: Path) -> None:
    """The page with its sample photo, restored by the bundled weights."""
    with (
        tempfile.TemporaryDirectory() as folder,
        app(Path(folder)) as address,
        Browser(1280, 960) as browser,
    ):
        open_page(browser, address)
        try_sample(browser)
        restore(browser)
        time.sleep(1)  # whatever fades
        picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    picture.quantize(256, method=Image.Quantize.MEDIANCUT).save(output, optimize=True)


if __name__ == "__main__":
    take_picture(Path(sys.argv[1]))
