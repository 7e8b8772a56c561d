"""The gate before the page: who may send requests, how much, and how long their jobs live."""

import asyncio
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from diffrestorer.app.cleanup import sweep
from diffrestorer.app.visitors import GRACE_SECONDS, Visitors

LARGEST_REQUEST = 256 * 2**20
"""Bytes of one upload, all of its photos together."""

LARGEST_FOLDER = 2 * 2**30
"""Bytes that all visitors' photos and results may take together."""

_LARGEST_JOB = 2**20  # bytes of a request for a job, which names photos and options
_WAIT_SECONDS = GRACE_SECONDS + 1
_SWEEP_SECONDS = 300  # between sweeps of a server that nobody visits

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


class Guard:
    """ASGI middleware around the page.

    - Host names other than this server's are refused: a page elsewhere whose name is made to point here (DNS rebinding)
      would otherwise be let in. IP addresses are let in, since a name is what that attack needs.
    - Requests that another page makes a browser send are refused, by their Origin.
    - Uploads are bounded, each and all together. What is too old is removed before they are counted.
    - Jobs whose visitors have left are dropped, so that nobody waits for them.

    Args:
        page: the ASGI application.
        hosts: names of this server.
        folder: where uploads and results lie.
        visitors: who waits for jobs.
        drop: drops the queued jobs of a session.
        is_full: tells whether the queue takes no more jobs.
    """

    def __init__(
        self,
        page: Application,
        hosts: Iterable[str],
        folder: Path,
        visitors: Visitors,
        drop: Callable[[str], Awaitable[None]],
        is_full: Callable[[], bool],
    ) -> None:
        self._page = page
        self._hosts = {host.lower() for host in hosts}
        self._folder = folder
        self._visitors = visitors
        self._drop = drop
        self._is_full = is_full
        self._uploading = 0

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on to the page, or refuse it."""
        if scope["type"] == "lifespan":
            return await self._run(scope, receive, send)
        if scope["type"] != "http":
            raise ValueError("the page has no web sockets")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if not self._is_own(headers):
            return await _refuse(send, 403, "This address is not that of the page.")

        # Three kinds of requests need more than that.
        path, posts = scope["path"], scope["method"] == "POST"
        if posts and path.endswith("/upload"):
            return await self._upload(scope, receive, send, headers)
        if posts and path.endswith("/queue/join"):
            return await self._ask(scope, receive, send)
        if path.endswith("/queue/data"):
            return await self._listen(scope, receive, send)
        await self._page(scope, receive, send)

    async def _run(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Run the page from its start to its end, and sweep the folder meanwhile, whether or not anybody comes."""
        sweeping = asyncio.create_task(self._sweep_regularly())
        try:
            await self._page(scope, receive, send)
        finally:
            sweeping.cancel()

    async def _sweep_regularly(self) -> None:
        """Remove what is too old every few minutes."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            await asyncio.to_thread(sweep, self._folder)

    def _is_own(self, headers: dict[str, str]) -> bool:
        """Return whether a request names this server, and comes from its own page or from no page at all."""
        host = headers.get("host", "")
        if not self._is_known(host):
            return False
        origin = headers.get("origin")
        return origin is None or origin.partition("://")[2].lower() == host.lower()

    def _is_known(self, host: str) -> bool:
        """Return whether a Host header names this server or is an IP address."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    async def _upload(
        self, scope: dict[str, Any], receive: Receive, send: Send, headers: dict[str, str]
    ) -> None:
        """Take an upload if there is room for it."""
        # What is being uploaded by others counts as if it were there.
        stated = headers.get("content-length", "")
        if not stated.isdecimal():
            return await _refuse(send, 411, "An upload must state its length.")
        length = int(stated)
        if length > LARGEST_REQUEST:
            return await _refuse(
                send, 413, f"Photos of one upload may have {LARGEST_REQUEST >> 20} MiB together."
            )
        if sweep(self._folder) + self._uploading + length > LARGEST_FOLDER:
            return await _refuse(
                send, 507, "The server has no room for more photos now; try again in an hour."
            )
        self._uploading += length
        try:
            await self._page(scope, receive, send)
        finally:
            self._uploading -= length

    async def _ask(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Take a job, after dropping those that nobody waits for."""
        body, more = b"", True
        while more and len(body) <= _LARGEST_JOB:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        session = _session(body)
        if more or session is None:
            return await _refuse(send, 400, "This is no job.")
        await self._make_room()
        self._visitors.ask(session)

        # The page reads the body again.
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._page(scope, again, send)

    async def _make_room(self) -> None:
        """Drop the jobs of visitors who have left; wait a little for more of them where the queue is full."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            for session in self._visitors.forget():
                await self._drop(session)
            if not self._is_full() or time.monotonic() > deadline:
                return
            await asyncio.sleep(0.1)

    async def _listen(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Pass on the progress of a session's jobs; when that ends, the visitor has left."""
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        self._visitors.listen(session)
        try:
            await self._page(scope, receive, send)
        finally:
            self._visitors.leave(session)


def _session(body: bytes) -> str | None:
    """Return the session that a request for a job names."""
    try:
        session = json.loads(body)["session_hash"]
    except (ValueError, KeyError, TypeError):
        return None
    return session if isinstance(session, str) and 0 < len(session) < 100 else None


async def _refuse(send: Send, status: int, sentence: str) -> None:
    """Answer a request with a sentence."""
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
