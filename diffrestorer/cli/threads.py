"""Threads on machines that have other work to do."""

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def leave_busy_cores(quota: Path = _QUOTA) -> None:
    """Set how many OpenMP threads run and how they wait, unless the environment says so. Call before importing torch.

    By default a thread that waits for the others keeps its core busy. Where other programs need the cores, the thread
    that all wait for does not get one: two threads were 18 times slower than one on two cores with a load of 14, and as
    fast as one when they sleep instead. A container that may use two of 64 cores gets two threads, not 64.

    Args:
        quota: the control group's limit: microseconds of computing, and the period that they are for.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if allowed := _allowed_cores(quota):
        os.environ.setdefault("OMP_NUM_THREADS", str(allowed))


def _allowed_cores(quota: Path) -> int | None:
    """Return the cores that the control group may use, if that is fewer than the machine has."""
    try:
        limit, period = quota.read_text().split()
        cores = max(1, int(limit) // int(period))
    except (OSError, ValueError):  # no control groups, or no limit ("max")
        return None
    return cores if cores < len(os.sched_getaffinity(0)) else None
