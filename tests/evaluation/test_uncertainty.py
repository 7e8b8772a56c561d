"""Intervals and tests: coverage over simulated tables, and SciPy's and the textbook's values."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from diffrestorer.evaluation.scoring import uncertainty
from diffrestorer.evaluation.scoring.uncertainty import holm, mean_interval, rank_balance, wilcoxon_p

TABLES = 1000


def covered(sizes: tuple[int, ...], draw: str) -> float:
    """Share of simulated tables whose interval holds the true mean, in percent."""
    rng = np.random.default_rng(0)
    hits = 0
    for table in range(TABLES):
        strata = [getattr(rng, draw)(size=size) for size in sizes]
        interval = mean_interval(strata, table % 16)
        hits += (
            interval.low
            <= {"standard_normal": 0.0, "laplace": 0.0, "logistic": 0.0}[draw]
            <= interval.high
        )
    return 100 * hits / TABLES


@pytest.mark.parametrize(
    ("sizes", "draw"),
    [((8,), "standard_normal"), ((26,), "standard_normal"), ((26,), "laplace"), ((100,), "logistic"),
     pytest.param((20, 30, 40), "standard_normal", marks=pytest.mark.soak)],
)  # fmt: skip
def test_intervals_cover_the_true_mean(
    sizes: tuple[int, ...], draw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        uncertainty, "DRAWS", 2000
    )  # a fifth of the work; the draws' own error is small beside it
    uncertainty._draws.cache_clear()
    share = covered(sizes, draw)
    uncertainty._draws.cache_clear()
    assert 93 <= share <= 97, f"{share} % of the intervals hold the true mean"


def test_a_normal_sample_gets_students_interval() -> None:
    values = np.random.default_rng(1).standard_normal(30)
    interval = mean_interval([values])
    expected = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(expected, abs=0.05)


def test_draws_depend_on_the_seed_alone() -> None:
    values = np.random.default_rng(2).standard_normal(12)
    first = mean_interval([values], 3)
    uncertainty._draws.cache_clear()
    assert mean_interval([values], 3) == first
    assert mean_interval([values], 4) != first


@pytest.mark.parametrize("strata", [[], [np.ones(1)], [np.ones(3), np.array([1.0, math.nan])]])
def test_there_is_no_interval_without_two_finite_values(strata: list[np.ndarray]) -> None:
    assert math.isnan(mean_interval(strata).low)


def test_wilcoxon_counts_the_signs_of_all_ranks() -> None:
    """By definition: of the 2^n signs the share with a rank sum at least as far from the middle."""
    differences = np.array([1.5, -0.5, 2.5, 3.0, -1.0, 4.0])
    ranks = stats.rankdata(abs(differences))
    middle = ranks.sum() / 2
    found = abs(ranks[differences > 0].sum() - middle)
    sums = [ranks @ signs for signs in itertools.product((0, 1), repeat=len(ranks))]
    assert wilcoxon_p(differences) == pytest.approx(
        np.mean([abs(total - middle) >= found for total in sums])
    )
    assert wilcoxon_p(differences) == stats.wilcoxon(differences).pvalue
    gap = ranks[differences > 0].sum() - ranks[differences < 0].sum()
    assert rank_balance(differences) == pytest.approx(gap / ranks.sum())
    assert rank_balance(-differences) == -rank_balance(differences)
    assert (rank_balance(np.zeros(4)), rank_balance(np.array([0.0, 0.0, -2.0]))) == (0, -1)
    assert math.isnan(rank_balance(np.array([1.0, math.nan])))
    assert wilcoxon_p(np.zeros(4)) == 1
    assert math.isnan(wilcoxon_p(np.array([1.0, math.nan])))


@pytest.mark.parametrize("equal", [0, 3, 8, 45, 100])
@pytest.mark.parametrize("sizes", [np.arange(1.0, 6), np.ones(5), np.array([0.2, 0.2, 0.1])])
def test_five_images_that_differ_prove_nothing_beside_any_number_that_do_not(
    sizes: np.ndarray, equal: int
) -> None:
    """The exact test of those that differ; SciPy approximates it where zeros are among more than 13."""
    differences = np.concatenate([sizes, np.zeros(equal)])
    assert wilcoxon_p(differences) == pytest.approx(2 / 2 ** len(sizes))
    assert rank_balance(-differences) == -1


@pytest.mark.parametrize("runs", [3, 5, 6, 7])
def test_the_rounding_of_a_mean_over_runs_is_no_difference(runs: int) -> None:
    rng = np.random.default_rng(0)
    single = 25 + rng.standard_normal(500)
    pooled = pd.Series(np.tile(single, runs)).groupby(np.tile(np.arange(500), runs)).mean().to_numpy()
    assert (pooled != single).sum() > 10, "in the last digit some differ"
    assert wilcoxon_p(pooled - single) == 1
    assert rank_balance(pooled - single) == 0
    shifted = np.where(np.arange(500) % 2, 0.1, -0.1)
    assert wilcoxon_p(pooled + shifted - single) == wilcoxon_p(shifted), "nor does it break ties"


def test_holm_rejects_what_its_steps_reject() -> None:
    """Step down by definition, at every level; and the example of Wikipedia's article."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values = rng.uniform(size=6) ** 3
        for level in (0.01, 0.05, 0.2):
            rejected = set()
            for rank, index in enumerate(np.argsort(p_values)):
                if p_values[index] > level / (6 - rank):
                    break
                rejected.add(int(index))
            corrected = holm(list(p_values))
            assert {index for index in range(6) if corrected[index] <= level} == rejected
    assert math.isnan(holm([0.5, math.nan])[1])
    assert holm([0.02, math.nan]) == pytest.approx([0.02, math.nan], nan_ok=True)


@pytest.mark.soak
def test_errors_of_the_whole_family_stay_below_the_level() -> None:
    """Five methods that do not differ: in at most 5 % of tables (and the chance of 1,000 tables) one looks worse."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(TABLES):
        differences = rng.standard_normal((5, 20))
        wrong += min(holm([wilcoxon_p(row) for row in differences])) < 0.05
    assert wrong / TABLES < 0.05 + 3 * math.sqrt(0.05 * 0.95 / TABLES)
