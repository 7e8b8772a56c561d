"""Statistics of paired scores: bootstrap intervals of mean differences, and Wilcoxon's test with Holm's correction.

Scores are paired over images: every method restores the same ones. Images are drawn with replacement, all methods of a
draw on the same images, within each task (a mean over tasks counts every task once).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from diffrestorer.data.counter import counter_rng

DRAWS = 10_000
"""Bootstrap draws behind every interval of a mean."""

BLOCK_VALUES = 1_000_000
"""Weights that are drawn at a time, 8 MB."""

DECIMALS = 9
"""Scores that agree to so many decimals are equal: three equal runs have a mean that differs in the 15th digit."""

LEVEL = 0.95
"""Coverage of the intervals; 1 - LEVEL is the level of the tests."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a mean; both ends are NaN where it has none, as with a single image."""

    low: float
    high: float


NO_INTERVAL = Interval(math.nan, math.nan)


def mean_interval(strata: Sequence[np.ndarray], seed: int = 0) -> Interval:
    """Return the bootstrap interval of a mean over strata, each counting once.

    Percentiles of the bootstrap are too narrow for few images. They are taken further out, so that a normal
    distribution gets Student's interval (Hesterberg, "What teachers should know about the bootstrap", 2015, Sec. 4.1).

    Args:
        strata: values of the images of each task.
        seed: of the draws.
    """
    sizes = [len(values) for values in strata]
    finite = all(np.isfinite(values).all() for values in strata)
    if min(sizes, default=0) < 2 or not finite:
        return NO_INTERVAL

    # Each draw's mean over tasks, of the means over the images drawn.
    means = np.zeros(DRAWS)
    for index, values in enumerate(strata):
        means += _drawn_means(values, index, seed) / len(strata)

    # The tail that widens the interval to Student's: more degrees of freedom, less widening.
    freedom = sum(sizes) - len(sizes)
    size = sum(sizes) / len(sizes)
    student = stats.t.ppf((1 + LEVEL) / 2, freedom)
    tail = stats.norm.cdf(-student * math.sqrt(size / (size - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _drawn_means(
    values: np.ndarray,
    stratum: int,
    seed: int,
) -> np.ndarray:
    """Return the mean of each draw, (DRAWS,)."""
    size = len(values)
    means = []
    # Blocks bound the memory. The draws of a size are kept, for every method and metric asks for the same ones.
    block = max(1, BLOCK_VALUES // size)
    for start in range(0, DRAWS, block):
        means.append(_draws(size, stratum, seed, start, min(block, DRAWS - start)) @ values)
    return np.concatenate(means)


@lru_cache(maxsize=32)
def _draws(
    size: int,
    stratum: int,
    seed: int,
    start: int,
    count: int,
) -> np.ndarray:
    """Return the weights (count, size) of the images in some draws: how often each was drawn, as a share."""
    rng = counter_rng(seed, f"bootstrap/{size}", stratum, start)
    return rng.multinomial(size, np.full(size, 1 / size), size=count) / size


def wilcoxon_p(differences: np.ndarray) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; 1 where no difference is left, NaN with a NaN.

    The test does not say which side is better: `rank_balance` does. Images that are equal take no part, so that the
    exact test of the others is found, which needs six of them to reject.
    """
    if not np.isfinite(differences).all():
        return math.nan
    left = _unequal(differences)
    if not len(left):
        return 1.0
    return float(stats.wilcoxon(left).pvalue)


def rank_balance(differences: np.ndarray) -> float:
    """Return the positive minus the negative rank sum of Wilcoxon's test, as a share of both: -1 to 1.

    Its sign is the direction of the test, which may oppose that of the mean: one large loss outweighs many small gains
    in the mean, and no more than its rank here. 0 where no difference is left, NaN with a NaN.
    Source: Kerby, "The simple difference formula", 2014 (the rank-biserial correlation of matched pairs).
    """
    if not np.isfinite(differences).all():
        return math.nan
    left = _unequal(differences)
    if not len(left):
        return 0.0
    ranks = stats.rankdata(abs(left))
    return float((ranks * np.sign(left)).sum() / ranks.sum())


def _unequal(differences: np.ndarray) -> np.ndarray:
    """Return the differences that are not 0, without the rounding error that a mean over runs leaves in them."""
    rounded = np.round(differences, DECIMALS)
    return rounded[rounded != 0]


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm, 1979); NaN takes no part and stays.

    The k-th smallest of m is multiplied by m - k + 1; none becomes smaller than the one before it.
    """
    # From the smallest on; the largest so far is the least that the next one becomes.
    order = np.argsort(p_values)
    known = [int(index) for index in order if not math.isnan(p_values[index])]
    corrected = list(p_values)
    largest = 0.0
    for rank, index in enumerate(known):
        scaled = (len(known) - rank) * p_values[index]
        largest = max(largest, min(1.0, scaled))
        corrected[index] = largest
    return corrected
