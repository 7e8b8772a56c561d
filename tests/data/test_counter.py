"""Draws by counter: a function of (seed, stream, step, position) and of nothing else."""

from itertools import combinations

import numpy as np
import pytest
import torch

from diffrestorer.data.counter import counter_normal, counter_rng


def draws(*key: object) -> np.ndarray:
    return counter_rng(*key).random(8)  # type: ignore[arg-type]


def test_same_counters_same_draws() -> None:
    first = draws(7, "crop", 3, 4)
    draws(7, "noise", 3, 4)
    np.random.seed(0)
    torch.manual_seed(0)
    assert (draws(7, "crop", 3, 4) == first).all()


def test_everything_that_differs_makes_a_difference() -> None:
    keys = [
        (0, "crop", 0, 0),
        (1, "crop", 0, 0),
        (0, "noise", 0, 0),
        (0, "crop", 1, 0),
        (0, "crop", 0, 1),
    ]
    keys += [(0, "crop", 1, 1), (0, "crop", 0, 0, 1), (2**40, "crop", 0, 0), (0, "crop", 2**40, 0)]
    for first, second in combinations(keys, 2):
        assert not np.isin(draws(*first), draws(*second)).any(), f"{first} and {second}"


def test_long_streams_do_not_run_into_the_next() -> None:
    """The draws of one generator use a counter word of their own: the 1000th of position 0 is not position 1's."""
    long = counter_rng(0, "crop", 5, 0).random(10_000)
    assert not np.isin(counter_rng(0, "crop", 5, 1).random(100), long).any()
    assert not np.isin(counter_rng(0, "crop", 6, 0).random(100), long).any()


def test_draws_never_change_between_versions() -> None:
    """Philox's raw words are fixed for all time: a change here changes every run's samples."""
    bits = counter_rng(1, "noise", 2, 3).bit_generator.random_raw(3)
    assert bits.tolist() == [17204223932063318400, 346464924013318243, 6133041253461832696]


@pytest.mark.parametrize("key", [(-1, "a", 0), (0, "a", -1), (0, "a", 0, 0, 0, 0)])
def test_impossible_counters_are_refused(key: tuple) -> None:
    with pytest.raises((OverflowError, ValueError)):
        counter_rng(*key)


def test_noise_rows_do_not_depend_on_their_batch() -> None:
    whole = counter_normal((4, 3, 2), 0, "noise", 9, range(8))
    assert whole.shape == (8, 4, 3, 2)
    assert whole.dtype == torch.float32
    parts = torch.cat([counter_normal((4, 3, 2), 0, "noise", 9, p) for p in ([0], [1, 2], range(3, 8))])
    assert torch.equal(parts, whole)
    assert torch.equal(counter_normal((4, 3, 2), 0, "noise", 9, [5, 1]), whole[[5, 1]])
    assert len(whole.unique()) == whole.numel()


def test_noise_is_standard_normal() -> None:
    noise = counter_normal((100, 100), 0, "noise", 0, range(10)).flatten()
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise.abs() < 1).float().mean() - 0.6827) < 0.01
    assert abs((noise > 2).float().mean() - 0.0228) < 0.003
    rows = noise.view(10, -1)
    correlations = torch.corrcoef(rows) - torch.eye(10)
    assert correlations.abs().max() < 0.05
