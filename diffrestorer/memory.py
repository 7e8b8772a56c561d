"""How much memory there is left."""

import os
import sys
from contextlib import suppress
from pathlib import Path


def free_memory() -> int:
    """Bytes that may still be taken, of the machine or of the control group (container, job) this process runs in."""
    if not os.path.exists("/proc/meminfo"):
        return sys.maxsize  # not Linux: nobody tells
    memory = Path("/proc/meminfo").read_text()
    free = [1024 * int(memory.split("MemAvailable:")[1].split()[0])]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        old = kinds == "memory"  # version 1 of control groups; in version 2 all kinds are one, without a name
        root = Path("/sys/fs/cgroup", kinds)
        for group in (root, root / path.lstrip("/")) if old or not kinds else ():
            with suppress(OSError, ValueError):  # there is no such group in here, or it has no limit ("max")
                limit = int((group / ("memory.limit_in_bytes" if old else "memory.max")).read_text())
                used = int((group / ("memory.usage_in_bytes" if old else "memory.current")).read_text())
                statistics = (group / "memory.stat").read_text().split()
                free.append(limit - used + int(statistics[statistics.index("inactive_file") + 1]))
    return max(0, min(free))
