"""Randomness by counter: what a sample draws depends on (seed, stream, step, position) and on nothing that came before.

So neither a resumed run, nor another number of processes or workers, changes a single draw.
"""

import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def counter_rng(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """Return a generator of its own for each (seed, stream, counters).

    Args:
        seed: of the run, >= 0.
        stream: what is drawn ("order", "crop", "noise", ...): streams are independent of one another.
        counters: up to three non-negative integers, such as step and position in the global batch.
    """
    key = np.array([seed, zlib.crc32(stream.encode())], dtype=np.uint64)
    counter = np.zeros(4, dtype=np.uint64)  # the lowest word counts the draws within one generator
    counter[1 : 1 + len(counters)] = counters
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def shuffled(place: int, count: int, seed: int, stream: str, *counters: int) -> int:
    """Return the element at `place` of a random order of 0 ... count - 1, without computing the order itself.

    A Feistel network of six rounds permutes the smallest square of a power of two that holds `count`; values outside
    are sent through again until one is inside. Source: Black and Rogaway, "Ciphers with arbitrary finite domains",
    CT-RSA 2002.

    Args:
        place: in [0, count).
        count: of what is ordered.
        seed, stream, counters: which order, see `counter_rng`.
    """
    # The two halves of the place's bits are mixed into each other, round by round.
    keys = _round_keys(seed, stream, *counters)
    bits = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    while True:
        left, right = place >> bits, place & mask
        for key in keys:
            mixed = (right + key) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
            mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ (mixed >> 32 & mask)
        place = left << bits | right
        if place < count:
            return place


@lru_cache(maxsize=16)
def _round_keys(seed: int, stream: str, *counters: int) -> tuple[int, ...]:
    """Return the keys of the six rounds of an order."""
    return tuple(int(key) for key in counter_rng(seed, stream, *counters).integers(1 << 63, size=6))


def counter_normal(
    shape: Sequence[int],
    seed: int,
    stream: str,
    step: int,
    positions: Sequence[int],
    device: torch.device | str = "cpu",
) -> Float[Tensor, "b ..."]:
    """Draw standard normal noise (len(positions), *shape), each row by its own counter (step, position)."""
    rows = [
        counter_rng(seed, stream, step, p).standard_normal(tuple(shape), dtype=np.float32)
        for p in positions
    ]
    return to_device(np.stack(rows), device)


def to_device(drawn: np.ndarray, device: torch.device | str) -> Shaped[Tensor, "..."]:
    """Copy what the host has drawn to a device, without waiting for the device.

    A GPU copies page-locked memory by itself, in its turn. Any other copy begins when all earlier work is done, and the
    host waits for it.
    """
    tensor = torch.from_numpy(drawn)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
