"""Stopping when asked: SIGTERM, SIGUSR1 and Ctrl-C end a run after its current step, with a checkpoint.

The main thread may be unable to react: it waits for another process, or for data that never come. A thread beside it
then saves the last finished step and ends the process.
"""

import logging
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, distributed

from diffrestorer.training.launcher import restarts

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EXIT_UNFINISHED = 75
"""Exit status of a run that was asked to stop: EX_TEMPFAIL, "not finished, the same command goes on"."""

GRACE = 10.0
"""Seconds that a run has to stop by itself before the thread beside it stops it."""

SECOND_SIGNAL = 2.0
"""Seconds after which Ctrl-C counts again."""

SAVE_SECONDS = 60.0
"""Seconds that the main process then waits for its loop to finish what it shows or writes, and the others for its
checkpoint."""

STORE_SECONDS = 10.0
"""Seconds until a store that does not answer counts as gone."""

POLL_SECONDS = 0.5
LOG = logging.getLogger("diffrestorer.training")


class StopSignal:
    """Notes the signals while it is entered. Outside the main thread, where Python allows no handler, it notes none.

    All processes of a run must stop after the same step, and a signal reaches them at different times. So each step
    starts a small reduction over what they have noted and reads the one that the step before started: agreeing costs
    no waiting, and no device takes part.

    Attributes:
        reason: why the run is to stop, such as a signal's name; None: it goes on.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._group: Any = None
        self._running: tuple[Float[Tensor, ""], Any] | None = None
        self._watch: _Watch | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                self._previous[name] = signal.signal(name, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.close()
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._watch is not None:
            self.tell(name)
            return

        # Nothing is trained yet, so nothing is lost.
        LOG.warning("stopped before the first step (%s): the same command starts again", name)
        raise SystemExit(EXIT_UNFINISHED)

    def connect(self, accelerator: Accelerator, name: str, save: Callable[[], int | None]) -> None:
        """Start to agree with the other processes, and the thread that helps where the main one can't.

        Args:
            accelerator: of the run.
            name: of the run, the same on all processes.
            save: saves the last finished step and returns it; None if it can't. Called while nothing changes.
        """
        channel = None
        if accelerator.num_processes > 1:
            # A group of its own keeps the agreement apart from the gradients.
            self._group = distributed.new_group(backend="gloo")
            with suppress(KeyError, RuntimeError):
                channel = _Channel(name)
        self._watch = _Watch(self, channel, save if accelerator.is_main_process else None)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Surround what changes a run's state: it is not saved meanwhile."""
        with self._watch.state if self._watch is not None else threading.Lock():
            yield

    def tell(self, reason: str) -> None:
        """Ask for a stop after this step. Unlike a signal, it can wait for a slow step."""
        self.reason = self.reason or reason

    def agreed(self) -> bool:
        """Return whether the run stops after this step. Every process asks once per step."""
        stop = self.reason is not None
        if self._group is not None:
            stop = False
            if self._running is not None:
                noted, work = self._running
                work.wait()
                stop = bool(noted.item())
            noted = torch.tensor(float(self.reason is not None))
            work = distributed.all_reduce(noted, distributed.ReduceOp.MAX, self._group, async_op=True)
            self._running = noted, work
        if stop:
            self.retire()
        return stop

    def retire(self) -> None:
        """Let the loop end by itself from here on: it writes its last files."""
        if self._watch is not None:
            self._watch.leave()

    def leave(self, step: int) -> None:
        """End the process with status 75.

        Raises:
            SystemExit: always.
        """
        LOG.info(
            "stopped at step %d (%s): the same command goes on from there",
            step,
            self.reason or "signal",
        )
        raise SystemExit(EXIT_UNFINISHED)


class _Watch:
    """The thread beside the loop.

    Args:
        stop: holds the reason.
        channel: to the watches of other processes, if there are any.
        save: see `StopSignal.connect`; None on processes that save nothing.
    """

    def __init__(
        self, stop: StopSignal, channel: "_Channel | None", save: Callable[[], int | None] | None
    ) -> None:
        self.state = threading.RLock()
        self._stop = stop
        self._channel = channel
        self._save = save
        self._signal: str | None = None
        self._deadline: float | None = None
        self._leaving = False
        self._closed = threading.Event()

        # The system writes a signal's number here at once, even while the main thread is inside a library.
        self._wake, self._written = socket.socketpair()
        for end in (self._wake, self._written):
            end.setblocking(False)
        self._wakes_by_signal = threading.current_thread() is threading.main_thread()
        if self._wakes_by_signal:
            signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name="stop watch", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Let the loop end the run: it has agreed to."""
        self._leaving = True

    def close(self) -> None:
        """End the thread."""
        if self._wakes_by_signal:
            signal.set_wakeup_fd(-1)
        self._closed.set()
        with suppress(OSError):
            self._written.send(b"\0")
        self._thread.join()
        self._wake.close()
        self._written.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            readable, _, _ = select.select([self._wake], [], [], POLL_SECONDS)
            numbers = self._wake.recv(4096) if readable else b""
            self._take(numbers)
            if self._deadline is not None and not self._leaving and time.monotonic() > self._deadline:
                self._abandon()

    def _take(self, numbers: bytes) -> None:
        """Note signals, and what other processes noted, and pass on what is new."""
        for number in numbers:
            if number not in SIGNALS:
                continue
            self._signal = self._signal or signal.Signals(number).name

            # Whoever presses Ctrl-C twice does not want to wait. A launcher passes the first one on at once.
            elapsed = GRACE - (self._deadline - time.monotonic()) if self._deadline is not None else 0.0
            if number == signal.SIGINT and elapsed > SECOND_SIGNAL:
                self._deadline = time.monotonic()

        if self._channel is not None and self._signal is None:
            self._signal = self._channel.read()
        if self._signal is not None and self._deadline is None:
            self._stop.tell(self._signal)
            self._deadline = time.monotonic() + GRACE
            if self._channel is not None:
                self._channel.tell(self._signal)

    def _abandon(self) -> None:
        """End the process from here. The lock keeps the loop from changing anything meanwhile."""
        # The loop may hold the lock while it waits for a process that is gone, as in a sheet that all draw.
        free = self.state.acquire(timeout=SAVE_SECONDS)
        try:
            if self._leaving or self._closed.is_set():
                return
            if self._save is not None:
                self._save_and_tell(self._save if free else _no_checkpoint)
            elif self._channel is not None:
                self._channel.wait_for_end(SAVE_SECONDS)

            # Data workers hold copies of this process's connections: while they live, others take it for alive.
            for worker in multiprocessing.active_children():
                worker.kill()
            sys.stderr.flush()
            os._exit(EXIT_UNFINISHED)
        finally:
            if free:
                self.state.release()

    def _save_and_tell(self, save: Callable[[], int | None]) -> None:
        reason = self._stop.reason
        try:
            step = save()
        except Exception as error:  # whatever it is, the process must end
            LOG.warning("stopped (%s) without a new checkpoint: %s", reason, error)
        else:
            if step is None:
                LOG.warning(
                    "stopped (%s) within a step: the same command goes on from the last checkpoint",
                    reason,
                )
            else:
                LOG.info("stopped at step %d (%s): the same command goes on from there", step, reason)
        if self._channel is not None:
            self._channel.end()


def _no_checkpoint() -> None:
    """Save nothing: the state may be changing."""


class _Channel:
    """Two words that the processes of a run pass to each other beside their collectives, through torch's store.

    Args:
        name: of the run.
    """

    def __init__(self, name: str) -> None:
        # The store outlives processes that the launcher starts again.
        self._reason = f"diffrestorer/{restarts()}/{name}/stop"
        self._end = f"diffrestorer/{restarts()}/{name}/end"
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = distributed.TCPStore(  # type: ignore[attr-defined]
            address,
            port,
            is_master=False,
            timeout=timedelta(seconds=STORE_SECONDS),
            wait_for_workers=False,
        )

    def read(self) -> str | None:
        """Return why another process stops, if one does."""
        try:
            return self._store.get(self._reason).decode() if self._store.check([self._reason]) else None
        except RuntimeError:
            return None  # the process that holds the store is gone; the next collective reports it

    def tell(self, reason: str) -> None:
        """Tell the others."""
        with suppress(RuntimeError):
            self._store.set(self._reason, reason)

    def end(self) -> None:
        """Tell the others that the main process has saved what it could."""
        with suppress(RuntimeError):
            self._store.set(self._end, "1")

    def wait_for_end(self, seconds: float) -> None:
        """Wait for that, or for the main process's end."""
        deadline = time.monotonic() + seconds
        with suppress(RuntimeError):
            while time.monotonic() < deadline and not self._store.check([self._end]):
                time.sleep(POLL_SECONDS)
