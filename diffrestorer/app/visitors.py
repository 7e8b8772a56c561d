"""Visitors of the page: who still waits for an answer, and whose jobs can be dropped."""

import threading
import time

GRACE_SECONDS = 2.0
"""Time between asking for a job and listening to its progress, which a slow network may need."""


class Visitors:
    """The sessions that have jobs, and whether somebody listens to each of them.

    A browser asks for a job by one request and listens to its progress by another, which ends when the page is closed.
    Methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listening: dict[str, int] = {}
        self._last_seen: dict[str, float] = {}

    def ask(self, session: str) -> None:
        """Record that a session has asked for a job."""
        with self._lock:
            self._last_seen[session] = time.monotonic()

    def listen(self, session: str) -> None:
        """Record that a session has begun to listen."""
        with self._lock:
            self._listening[session] = self._listening.get(session, 0) + 1

    def leave(self, session: str) -> None:
        """Record that a session has stopped listening."""
        with self._lock:
            self._last_seen[session] = time.monotonic()
            self._listening[session] -= 1
            if not self._listening[session]:
                del self._listening[session]

    def has_left(self, session: str | None) -> bool:
        """Return whether nobody waits for a session's jobs any more."""
        with self._lock:
            return session is not None and self._has_left(session)

    def forget(self) -> list[str]:
        """Return the sessions that have left, and forget them."""
        with self._lock:
            gone = [session for session in self._last_seen if self._has_left(session)]
            for session in gone:
                del self._last_seen[session]
            return gone

    def _has_left(self, session: str) -> bool:
        """Return the same while the lock is held."""
        if session in self._listening:
            return False
        return time.monotonic() - self._last_seen.get(session, 0.0) > GRACE_SECONDS
