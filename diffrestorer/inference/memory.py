"""The memory that is left, and the way it is taken from the system."""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers of two settings, see mallopt(3)."""

LARGE_BLOCK, KEPT_BLOCKS = 32 * 2**20, 64 * 2**20
"""Blocks from the first size on are taken from the system and given back one by one (glibc's largest choice); of the
others' memory, free bytes up to the second number are kept for the next ones."""


def keep_freed_memory() -> None:
    """Let this process keep some of the memory it frees for the tensors to come; for networks on the CPU.

    By default the C library gives it back after every layer, and the system clears it again for the next one. Tensors
    live as long as before, so peaks stay about the same. Without glibc nothing happens.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BLOCKS)


def free_memory() -> int:
    """Return the bytes that may still be taken, of the machine or of the control groups around this process."""
    if not os.path.exists("/proc/meminfo"):
        return sys.maxsize  # not Linux: nobody tells

    # The machine's own.
    memory = Path("/proc/meminfo").read_text()
    free = [1024 * int(memory.split("MemAvailable:")[1].split()[0])]

    # The limits of the control groups, if there are any.
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        old = (
            kinds == "memory"
        )  # version 1 of control groups; in version 2 all kinds are one, without a name
        root = Path("/sys/fs/cgroup", kinds)
        for group in (root, root / path.lstrip("/")) if old or not kinds else ():
            with suppress(
                OSError, ValueError
            ):  # there is no such group in here, or it has no limit ("max")
                limit = int((group / ("memory.limit_in_bytes" if old else "memory.max")).read_text())
                used = int((group / ("memory.usage_in_bytes" if old else "memory.current")).read_text())
                statistics = (group / "memory.stat").read_text().split()
                free.append(limit - used + int(statistics[statistics.index("inactive_file") + 1]))
    return max(0, min(free))
