"""Randomness by counter: what a sample draws depends on (seed, stream, step, position) and on nothing that came before.

So neither a resumed run, nor another number of processes or workers, changes a single draw.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def counter_rng(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """A generator of its own for each (seed, stream, counters).

    Args:
        seed: of the run, >= 0.
        stream: what is drawn ("order", "crop", "noise", ...): streams are independent of one another.
        counters: up to three non-negative integers, such as step and position in the global batch.
    """
    key = np.array([seed, zlib.crc32(stream.encode())], dtype=np.uint64)
    counter = np.zeros(4, dtype=np.uint64)  # the lowest word counts the draws within one generator
    counter[1 : 1 + len(counters)] = counters
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def counter_normal(
    shape: Sequence[int],
    seed: int,
    stream: str,
    step: int,
    positions: Sequence[int],
    device: torch.device | str = "cpu",
) -> Float[Tensor, "b ..."]:
    """Standard normal noise (len(positions), *shape), each row by its own counter (step, position)."""
    rows = [counter_rng(seed, stream, step, p).standard_normal(tuple(shape), dtype=np.float32) for p in positions]
    return torch.from_numpy(np.stack(rows)).to(device)
