"""The standing of each method in a score of sets, such as FID."""

import math
from collections.abc import Sequence

import numpy as np

from diffrestorer.evaluation.scoring.metrics import Metric
from diffrestorer.evaluation.scoring.scores import SetScore
from diffrestorer.evaluation.scoring.standings import INPUT, Difference, Standing, best_method
from diffrestorer.evaluation.scoring.uncertainty import LEVEL, NO_INTERVAL, Interval


def compare_sets(
    found: dict[str, list[SetScore]],
    metric: Metric,
    advised: int,
) -> dict[str, Standing]:
    """Compare methods in a score of sets, such as FID.

    There are no pairs to test: a method leads unless the whole interval of its difference to the best is worse. Nobody
    leads on fewer images than advised, where such a score claims nothing.

    Args:
        found: method -> its score on each task of a row, its runs pooled by `pool_sets`.
        metric: the metric.
        advised: number of images from which the score may be compared.
    """
    # Each task counts once, in the value and in every draw.
    means, draws = {}, {}
    for name, scores in found.items():
        means[name] = float(np.mean([score.value for score in scores]))
        draws[name] = np.mean([score.draws for score in scores], axis=0)
    best = best_method(metric, means)

    standings = {}
    for name, scores in found.items():
        to_input = _set_difference(name, INPUT, means, draws)
        to_best = _set_difference(name, best, means, draws)

        # Few images claim nothing, nor does a lone method.
        smallest = min(score.n for score in scores)
        claims = best != "" and len(found) > 1 and smallest >= advised
        runs = _run_means(scores)
        level = to_best is None or _reaches(to_best.interval, metric)
        standings[name] = Standing(
            n=sum(score.n for score in scores),
            mean=means[name],
            median=math.nan,
            worst=math.nan,
            worst_image="",
            harmed=math.nan,
            runs=len(runs),
            run_spread=float(np.std(runs, ddof=1)) if len(runs) > 1 else math.nan,
            to_input=to_input,
            to_best=to_best,
            leads=claims and level,
        )
    return standings


def _reaches(interval: Interval, metric: Metric) -> bool:
    """Return whether the interval of a difference to the best holds 0 or anything better; False where it is unknown."""
    return interval.low <= 0 if metric.lower_is_better else interval.high >= 0


def _run_means(scores: Sequence[SetScore]) -> np.ndarray:
    """Return the mean over tasks of each run, (runs,)."""
    runs = [score.runs or (score.value,) for score in scores]
    return np.mean(runs, axis=0)


def _set_difference(
    name: str,
    other: str,
    means: dict[str, float],
    draws: dict[str, np.ndarray],
) -> Difference | None:
    """Return the difference of two scores of sets, with the interval of its draws around it.

    Drawing images with replacement biases FID upwards. The bias is taken from the draws' mean: the interval is the
    basic one, which turns the draws around the value.
    """
    if name == other or other not in means:
        return None
    mean = means[name] - means[other]
    drawn = draws[name] - draws[other]
    if not np.isfinite(drawn).all():
        return Difference(mean, NO_INTERVAL, math.nan)
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    below, above = np.quantile(drawn - drawn.mean(), ends)
    interval = Interval(float(mean - above), float(mean - below))
    return Difference(mean, interval, math.nan)
