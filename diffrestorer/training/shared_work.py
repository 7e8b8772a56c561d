"""Work that every process would otherwise do, or wait for: each does its share, and all have the whole result."""

from collections.abc import Callable
from typing import TypeVar

from torch import distributed

Result = TypeVar("Result")


def share_out(compute: Callable[[int], Result], count: int) -> list[Result]:
    """Return `[compute(0), ..., compute(count - 1)]` on every process, each item computed by one of them.

    Process r of n computes items r, r + n, r + 2 n and so on. Every process of the run has to call this; alone, a
    process computes all.

    Args:
        compute: takes an item's number. Its results travel between processes: tensors are best on the host.
        count: number of items.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return [compute(item) for item in range(count)]

    # Each process's own items, then those of all in their order.
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    own = [compute(item) for item in range(rank, count, processes)]
    everyones: list[list[Result]] = [[] for _ in range(processes)]
    distributed.all_gather_object(everyones, own)
    return [everyones[item % processes][item // processes] for item in range(count)]
