"""The standing of each method on a task or a group of tasks: mean, median, worst image, and paired comparisons.

Runs of one method (`NAME@RUN` beside `NAME`) are pooled: an image's score is its mean over the runs, and intervals and
tests count images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from diffrestorer.evaluation.scoring.metrics import Metric
from diffrestorer.evaluation.scoring.scores import Score, base_name
from diffrestorer.evaluation.scoring.uncertainty import (
    LEVEL,
    Interval,
    holm,
    mean_interval,
    rank_balance,
    wilcoxon_p,
)

INPUT = "degraded"
"""The method that is the input itself."""

HARM = 0.5
"""An image is harmed when its PSNR falls by more than this below the input's, in dB."""


@dataclass(frozen=True)
class Difference:
    """A method's mean minus another's over the same images.

    Attributes:
        interval: 95 %, by paired bootstrap.
        p: of Wilcoxon's signed-rank test, corrected by Holm over the methods of the row. NaN without a test.
        ranks: the test's direction, by `rank_balance`: above 0 where the method has the larger scores.
    """

    mean: float
    interval: Interval
    p: float
    ranks: float = math.nan

    @property
    def opposed(self) -> bool:
        """Return whether the mean and the ranks of the test point to different sides."""
        return self.mean * self.ranks < 0

    def worse(self, metric: Metric) -> bool:
        """Return whether the test finds the method significantly worse: its ranks are, whatever its mean is."""
        loss = self.ranks if metric.lower_is_better else -self.ranks
        return self.p < 1 - LEVEL and loss > 0


@dataclass(frozen=True)
class Standing:
    """One method in a row of a table.

    Attributes:
        n: number of images.
        median, worst: of the images' scores. worst_image: `TASK/IMAGE`.
        harmed: share of images whose PSNR fell by more than `HARM`; NaN without PSNR or the input.
        runs: number of runs that are pooled. run_spread: standard deviation of their means; NaN for a single run.
        to_input, to_best: differences; None for the input itself, and for the best method itself.
        leads: not significantly worse than the best method.
    """

    n: int
    mean: float
    median: float
    worst: float
    worst_image: str
    harmed: float
    runs: int
    run_spread: float
    to_input: Difference | None
    to_best: Difference | None
    leads: bool


def image_scores(scores: Sequence[Score]) -> pd.DataFrame:
    """Return the scores as a table, with a column per metric.

    The others are degradation, image, photo (`Score.photo`, or the image where it is unknown), run (the name in
    scores.csv) and method.
    """
    rows = []
    for score in scores:
        row = {
            "degradation": score.degradation,
            "image": score.image,
            "photo": score.photo or score.image,
            "run": score.method,
            "method": base_name(score.method),
        }
        rows.append(row | score.values)
    return pd.DataFrame(rows)


def compare_methods(
    table: pd.DataFrame,
    metric: Metric,
    tasks: Sequence[str],
) -> dict[str, Standing]:
    """Compare the methods on some tasks.

    Args:
        table: of `image_scores`.
        metric: the metric to compare in.
        tasks: each counts once.

    Returns:
        Method name -> standing; none where the metric takes none of the images.
    """
    if metric.name not in table:
        return {}

    # A row per image, a column per method.
    chosen = table[table["degradation"].isin(tasks)]
    values = _by_image(chosen, metric.name)
    if values.empty or values.isna().to_numpy().all():
        return {}
    psnr = pd.DataFrame(index=values.index)
    if "psnr" in chosen:
        psnr = _by_image(chosen, "psnr")

    # Every method against the input, and against the best of them.
    means = {name: _mean_of_tasks(values[name]) for name in values}
    best = best_method(metric, means)
    photos = chosen.groupby(["degradation", "image"], sort=False)["photo"].first()
    to_input = _differences(values, INPUT, photos)
    to_best = _differences(values, best, photos)

    found = {}
    for name, column in values.items():
        # Worse with certainty only where the test finds it so; a lone method leads nobody.
        difference = to_best.get(name)
        worse = difference is not None and difference.worse(metric)
        leads = best != "" and len(means) > 1 and not worse

        worst = _worst(column, metric)
        runs = _run_means(chosen[chosen["method"] == name], metric.name)
        spread = math.nan
        if len(runs) > 1:
            spread = float(np.std(runs, ddof=1))
        found[name] = Standing(
            n=len(column),
            mean=means[name],
            median=float(column.median(skipna=False)),
            worst=float(column[worst]),
            worst_image="/".join(worst),
            harmed=_harmed(psnr, name),
            runs=len(runs),
            run_spread=spread,
            to_input=to_input.get(name),
            to_best=difference,
            leads=leads,
        )
    return found


def _by_image(chosen: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the scores by (degradation, image) and method, each the mean over the method's runs."""
    means = chosen.groupby(["degradation", "image", "method"], sort=False)[metric].mean(skipna=False)
    table = means.unstack("method", sort=False)
    return table[list(dict.fromkeys(chosen["method"]))]


def _worst(column: pd.Series, metric: Metric) -> tuple[str, str]:
    """Return task and image of the worst score; an undefined one is the worst."""
    if column.isna().any():
        return column.index[column.isna()][0]
    return column.idxmax() if metric.lower_is_better else column.idxmin()


def _mean_of_tasks(column: pd.Series) -> float:
    return float(column.groupby(level="degradation").mean(skipna=False).mean(skipna=False))


def best_method(metric: Metric, means: dict[str, float]) -> str:
    """Return the method with the best mean; empty where a NaN hides it."""
    best = metric.best(list(means.values()))
    return next((name for name, mean in means.items() if mean == best), "")


def _differences(values: pd.DataFrame, other: str, photos: pd.Series) -> dict[str, Difference]:
    """Compare every method but `other` with it; empty where it has no scores."""
    if other not in values:
        return {}
    names = [name for name in values if name != other]
    strata = {name: _strata(values[name] - values[other], photos) for name in names}

    # The tests of a row are corrected for their number.
    p_values = []
    for name in names:
        differences = np.concatenate(strata[name])
        p_values.append(wilcoxon_p(differences))

    found = {}
    for name, p in zip(names, holm(p_values), strict=True):
        parts = [part.mean() for part in strata[name]]
        mean = float(sum(parts) / len(parts))
        ranks = rank_balance(np.concatenate(strata[name]))
        found[name] = Difference(mean, mean_interval(strata[name]), p, ranks)
    return found


def _strata(differences: pd.Series, photos: pd.Series) -> list[np.ndarray]:
    """Return the differences that are drawn independently, by task.

    Where every task has the same photos, as on the open ones, a photo's tasks belong together: their mean is drawn.

    Args:
        differences: by (degradation, image).
        photos: what each image is of, by the same.
    """
    # A photo that a task has several times meets its first copy of the other tasks, then its second.
    photos = photos[differences.index]
    copies = photos.groupby([photos.index.get_level_values("degradation"), photos]).cumcount()
    tasks = [sorted(part) for _, part in photos.groupby(level="degradation", sort=False)]
    if all(task == tasks[0] for task in tasks):
        means = differences.groupby([photos, copies], sort=False).mean(skipna=False)
        return [means.to_numpy()]
    return [part.to_numpy() for _, part in differences.groupby(level="degradation", sort=False)]


def _harmed(psnr: pd.DataFrame, name: str) -> float:
    if INPUT not in psnr or name not in psnr or psnr[name].isna().any():
        return math.nan
    return float((psnr[name] < psnr[INPUT] - HARM).mean())


def _run_means(rows: pd.DataFrame, metric: str) -> list[float]:
    """Return the mean of each run."""
    means = rows.groupby(["run", "degradation"], sort=False)[metric].mean(skipna=False)
    return means.groupby("run", sort=False).mean().tolist()
