"""Stopping when asked: SIGTERM or SIGUSR1 end a run after the step it is in, with a checkpoint."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, distributed

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_UNFINISHED = 75
"""Exit status of a run that was asked to stop: EX_TEMPFAIL, "not finished, the same command goes on"."""


class StopSignal:
    """Notes the signals while it is entered; outside the main thread, where Python allows no handler, it notes none.

    All processes of a run must stop after the same step, and a signal reaches them at different times. So each step
    starts a small reduction over what they have noted and reads the one the step before started: agreeing costs no
    waiting, and no device takes part.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, object] = {}
        self._group: Any = None
        self._running: tuple[Float[Tensor, ""], Any] | None = None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = {name: signal.signal(name, self._note) for name in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    def connect(self, accelerator: Accelerator) -> None:
        """Makes the processes' own line for agreeing, apart from the gradients'."""
        if accelerator.num_processes > 1:
            self._group = distributed.new_group(backend="gloo")

    def agreed(self) -> bool:
        """Whether the run stops after this step; asked once a step by every process."""
        if self._group is None:
            return self.received is not None
        stop = False
        if self._running is not None:
            noted, work = self._running
            work.wait()
            stop = bool(noted.item())
        noted = torch.tensor(float(self.received is not None))
        self._running = noted, distributed.all_reduce(noted, distributed.ReduceOp.MAX, self._group, async_op=True)
        return stop

    def leave(self, log: logging.Logger, step: int) -> None:
        """Ends the process with status 75.

        Raises:
            SystemExit: always.
        """
        log.info("stopped at step %d (%s): the same command goes on from there", step, self.received or "signal")
        raise SystemExit(EXIT_UNFINISHED)
