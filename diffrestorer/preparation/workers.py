"""Work spread over processes that end with the one that started them, even if that is killed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TypeVar

import cv2

Result = TypeVar("Result")


def run_all(
    tasks: Sequence[tuple[Callable[[], Result], int]],
    num_workers: int | None,
    advance: Callable[[int], None],
) -> list[Result]:
    """Run every task and return the results in the order of the tasks.

    Args:
        tasks: functions that can be sent to another process, each with the number of items it stands for.
        num_workers: processes; None starts one per core, 1 no further process.
        advance: told the items of each task that ended.

    Raises:
        ValueError: a process was killed, for lack of memory for instance.
        Exception: the first that a task raised; tasks that have not begun are dropped.
    """
    workers = min(num_workers or os.cpu_count() or 1, len(tasks))
    if workers <= 1:
        results = []
        for task, items in tasks:
            results.append(task())
            advance(items)
        return results

    # Each result is awaited as it comes, so that the first failure ends the run.
    context = multiprocessing.get_context(
        "forkserver"
    )  # a fork of this process would inherit its threads' locks
    context.set_forkserver_preload(
        ["diffrestorer.preparation.shards"]
    )  # imported once instead of by every worker
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
        try:
            with _delay_interrupt():
                futures = {pool.submit(task): items for task, items in tasks}
            for future in as_completed(futures):
                future.result()
                advance(futures[future])
        except BrokenProcessPool:  # a worker was killed, or the process that forks them
            pool.shutdown(wait=False, cancel_futures=True)
            raise ValueError(
                f"one of {workers} processes ended unexpectedly, which the system does to them where memory is short; "
                f"nothing is lost: give num_workers={max(workers // 2, 1)}, and the same command goes on"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


@contextmanager
def _delay_interrupt() -> Iterator[None]:
    """Have Ctrl-C wait until the workers have been started: their imports would end in tracebacks."""
    resource_tracker.ensure_running()  # its start would let the signal through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Give a worker one thread, beside one that waits for the parent's end."""
    cv2.setNumThreads(1)

    # Ctrl-C goes to every process of a terminal, and the parent tells of it.
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    # The parent may be killed.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        """End with the parent."""
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
