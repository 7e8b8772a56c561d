"""Headless Chromium over its DevTools pipe: nothing but the browser itself is needed.

python tests/browser.py outputs/evaluate/index.html docs/report.png     # takes the picture of the documentation
"""

import base64
import fcntl
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page in a browser of its own. Messages are JSON ended by a zero byte, on file descriptors 3 and 4.

    https://chromedevtools.github.io/devtools-protocol/
    """

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        assert CHROMIUM is not None
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--remote-debugging-pipe", f"--window-size={width},{height}",
            f"--user-data-dir={self._profile.name}", "about:blank",
        ]  # fmt: skip

        def rearrange() -> None:
            # Copies that nothing else uses first: either end may itself be number 3 or 4.
            read, write = (
                fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 5) for end in (theirs_in, theirs_out)
            )
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(
            command,
            preexec_fn=rearrange,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._session = ""
        self.requests: list[str] = []
        """Addresses that pages have asked for since `watch_network`."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, page: Path | str) -> None:
        """Opens a file or an address and waits until it is loaded."""
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = 1800) -> None:
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"!!({script})"):
            assert time.monotonic() < deadline, f"still not: {script}"
            time.sleep(0.05)

    def upload(self, selector: str, *files: Path) -> None:
        """Gives files to an `<input type="file">`."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve()) for file in files])

    def download_to(self, folder: Path) -> None:
        """Saves what pages offer into `folder`."""
        page, self._session = self._session, ""  # a matter of the whole browser
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder.resolve()))
        self._session = page

    def watch_network(self) -> None:
        """Starts to fill `requests`."""
        self.call("Network.enable")

    def centre(self, selector: str) -> tuple[float, float]:
        """Where the middle of an element is in the window, after scrolling to it."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        self._settle()
        x, y = self.run(
            "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
            + f"({element}.getBoundingClientRect())"
        )
        return x, y

    def click(self, selector: str) -> None:
        """Clicks the mouse on an element."""
        x, y = self.centre(selector)
        self._mouse(("mousePressed", (x, y)), ("mouseReleased", (x, y)))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Presses the mouse at `start`, moves it to `end` and lets go; pixels of the window."""
        self._mouse(("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end))

    def _mouse(self, *events: tuple[str, tuple[float, float]]) -> None:
        for kind, (x, y) in events:
            held = int(kind != "mouseReleased")
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                buttons=held,
                clickCount=1,
            )
        self._settle()

    def _settle(self) -> None:
        """Lets the page draw twice: whatever scrolls, moves or waits for its turn has come."""
        frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.call("Runtime.evaluate", expression=frames, awaitPromise=True)

    def screenshot(self, **clip: float) -> bytes:
        """The window as PNG, or the rectangle x, y, width, height of the page."""
        region = {"clip": {"scale": 1, **clip}} if clip else {}
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", **region)["data"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._in, 1 << 16)
            assert chunk, "the browser has ended"
            self._buffer += chunk
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = dict(json.loads(text))
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message


if __name__ == "__main__":
    with Browser(1280, 1640) as browser:
        browser.open(Path(sys.argv[1]))
        picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    picture.quantize(256, method=Image.Quantize.MEDIANCUT).save(sys.argv[2], optimize=True)
