"""The guard before the page, by itself: a page that answers everything stands behind it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from diffrestorer.app import guard as guard_module
from diffrestorer.app import visitors as visitors_module
from diffrestorer.app.desk import differing_names
from diffrestorer.app.guard import LARGEST_REQUEST, Guard
from diffrestorer.app.visitors import Visitors


class Queue:
    """The jobs of a page, by session."""

    def __init__(self) -> None:
        self.sessions: list[str] = []

    async def drop(self, session: str) -> None:
        self.sessions = [each for each in self.sessions if each != session]


class Site:
    """A guard, the queue behind it, and requests to it."""

    def __init__(self, folder: Path, places: int = 3) -> None:
        self.queue, self.visitors = Queue(), Visitors()
        self.seen: list[str] = []
        self.listening = asyncio.Event()
        full = lambda: len(self.queue.sessions) >= places  # noqa: E731
        self.guard = Guard(
            self.page, {"localhost", "photos.example"}, folder, self.visitors, self.queue.drop, full
        )

    async def page(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.seen.append(scope["path"])
        if scope["path"].endswith("/queue/data"):
            await self.listening.wait()
        if scope["path"].endswith("/queue/join"):
            self.queue.sessions.append(json.loads((await receive())["body"])["session_hash"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> int:
        """The status that a request gets."""
        sent: list[dict[str, Any]] = []
        named = {
            "host": "localhost:7860",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        path, _, query = path.partition("?")
        scope = {
            "type": "http", "method": method, "path": path, "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in named.items() if value],
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.guard(scope, receive, send)
        return int(sent[0]["status"])

    async def join(self, session: str) -> int:
        return await self.ask(
            "/gradio_api/queue/join", "POST", json.dumps({"session_hash": session}).encode()
        )


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:7860", "", 200),
        ("localhost:7860", "http://localhost:7860", 200),
        ("127.0.0.1:7860", "http://127.0.0.1:7860", 200),
        ("[::1]:7860", "http://[::1]:7860", 200),
        ("192.0.2.7", "", 200),
        ("photos.example", "https://photos.example", 200),
        ("PHOTOS.example", "https://photos.example", 200),
        ("evil.example:7860", "", 403),  # a name that has been made to point here
        ("evil.example:7860", "http://evil.example:7860", 403),
        ("localhost.evil.example", "", 403),
        ("", "", 403),
        ("[", "", 403),
        ("localhost:7860", "http://evil.example", 403),
        ("localhost:7860", "http://localhost:8000", 403),
        ("localhost:7860", "null", 403),
        ("localhost:7860", "http://[", 403),
    ],
)
def test_host_and_origin(tmp_path: Path, host: str, origin: str, status: int) -> None:
    site = Site(tmp_path)
    for path, method in (("/", "GET"), ("/gradio_api/upload", "POST"), ("/gradio_api/file=x", "GET")):
        length = {"content_length": "5"} if method == "POST" else {}
        assert asyncio.run(site.ask(path, method, host=host, origin=origin, **length)) == status
    assert len(site.seen) == (3 if status == 200 else 0)


def test_uploads_are_bounded_each_and_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path)
    upload = ("/gradio_api/upload", "POST")
    assert asyncio.run(site.ask(*upload)) == 411
    assert asyncio.run(site.ask(*upload, content_length="many")) == 411
    assert asyncio.run(site.ask(*upload, content_length=str(LARGEST_REQUEST + 1))) == 413
    assert asyncio.run(site.ask(*upload, content_length="1000")) == 200
    monkeypatch.setattr(guard_module, "LARGEST_FOLDER", 5000)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "old.png").write_bytes(bytes(4500))
    assert asyncio.run(site.ask(*upload, content_length="1000")) == 507
    assert asyncio.run(site.ask(*upload, content_length="400")) == 200
    (tmp_path / "sub" / "old.png").unlink()
    assert asyncio.run(site.ask(*upload, content_length="1000")) == 200


def test_jobs_of_visitors_who_left_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty that nobody listens to are dropped for one more; those that somebody listens to stay."""
    monkeypatch.setattr(visitors_module, "GRACE_SECONDS", 0.2)

    async def crowd() -> None:
        site = Site(tmp_path)
        assert await site.join("patient") == 200
        patient = asyncio.create_task(site.ask("/gradio_api/queue/data?session_hash=patient"))
        for number in range(50):
            assert await site.join(f"gone{number}") == 200
        assert len(site.queue.sessions) <= 3
        assert "patient" in site.queue.sessions
        assert site.visitors.has_left("gone0")
        assert not site.visitors.has_left("patient")
        site.listening.set()
        assert await patient == 200
        await asyncio.sleep(0.3)
        assert site.visitors.has_left("patient")

    asyncio.run(crowd())


def test_a_full_queue_of_people_who_wait_is_the_pages_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "_WAIT_SECONDS", 0.3)

    async def crowd() -> None:
        site = Site(tmp_path, places=1)
        await site.join("first")
        first = asyncio.create_task(site.ask("/gradio_api/queue/data?session_hash=first"))
        await asyncio.sleep(0)
        assert await site.join("second") == 200, "the guard passes it on"
        assert site.queue.sessions == ["first", "second"]
        site.listening.set()
        await first

    asyncio.run(crowd())


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"session_hash": 3}', b'{"session_hash": ""}', b"x" * (2 << 20)]
)
def test_what_is_no_job(tmp_path: Path, body: bytes) -> None:
    site = Site(tmp_path)
    assert asyncio.run(site.ask("/gradio_api/queue/join", "POST", body)) == 400
    assert site.seen == []


def test_web_sockets_are_refused(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with pytest.raises(ValueError, match="no web sockets"):
        asyncio.run(site.guard({"type": "websocket"}, None, None))


def test_files_of_one_name_have_names_of_their_own_in_the_archive() -> None:
    files = ["1/a.png", "2/3_a.png", "3/a.png", "4/a.png", "5/4_a.png"]
    assert differing_names(files) == ["a.png", "3_a.png", "3_3_a.png", "4_a.png", "5_4_a.png"]
