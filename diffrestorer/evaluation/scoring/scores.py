"""Scores per image (`Score`), scores per task and method (`Summary`), and their CSV files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from diffrestorer.data.storage import write_text
from diffrestorer.evaluation.scoring.metrics import METRICS, Metric

NO_REFERENCE = "no clean image to compare with"
"""The reason that tables show as a dash: the paper has no number there either."""

NOT_OURS = "the inputs were not degraded by this run"
"""The reason that `consistency` has no value: it degrades again as the input was degraded."""

SCORE_KEYS = ["suite", "degradation", "image", "method"]
"""The first columns of scores.csv, before the metrics."""


@dataclass(frozen=True)
class Score:
    """One row of scores.csv: a method's output for one image.

    Attributes:
        values: metric name -> value, NaN where the metric gives none; metrics that take no such image are left out.
        photo: what the image is of: a digest of the clean image, or `DEGRADATION/IMAGE` where there is none. Scores
            that do not tell are empty, and known by `image`. It is not written to scores.csv.
    """

    suite: str
    degradation: str
    image: str
    method: str
    values: dict[str, float]
    photo: str = ""


@dataclass(frozen=True)
class SetScore:
    """A score of a set of images.

    Attributes:
        n: number of images.
        value: of the whole set.
        draws: of sets drawn with replacement, the same draws for every method and run of a task.
        runs: the value of each run that is pooled in this one; empty for a single run.
    """

    n: int
    value: float
    draws: np.ndarray
    runs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Summary:
    """One row of summary.csv: a method on a task.

    Attributes:
        n: number of images.
        values: metric name -> mean over the n images (NaN where a NaN enters), or the score of the set (FID).
        nans: metric name -> how many of the n scores are NaN, where any is.
        reasons: metric name -> why it has no value here.
        made_with: what the row depends on: metric versions, weights, commit, dtype, device, seed, sampler, steps.
    """

    suite: str
    degradation: str
    method: str
    n: int
    values: dict[str, float]
    nans: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    made_with: dict[str, str] = field(default_factory=dict)


def summarise(
    scores: Sequence[Score],
    metrics: Sequence[Metric],
    set_values: Mapping[tuple[str, str, str], SetScore | str],
    made_with: Mapping[str, dict[str, str]],
) -> list[Summary]:
    """Return a summary per task and method, in the order of the scores; runs of a method are pooled.

    Args:
        scores: one per image and method.
        metrics: those that worked, and those of sets.
        set_values: (task, method, metric) -> score of the set, or why there is none.
        made_with: method name -> what its rows depend on.
    """
    # The scores of each row of the tables.
    pooled = pool_sets(set_values)
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.suite, score.degradation, base_name(score.method)), []).append(score)

    # A value per metric, or the reason why there is none.
    summaries = []
    for (suite, degradation, method), rows in groups.items():
        values: dict[str, float] = {}
        reasons: dict[str, str] = {}
        for metric in metrics:
            if metric.of_sets:
                of_set = pooled[degradation, method, metric.name]
                value = of_set.value if isinstance(of_set, SetScore) else of_set
            else:
                value = _mean(rows, metric)
            if isinstance(value, str):
                reasons[metric.name] = value
            else:
                values[metric.name] = value
        nans = _count_nans(rows, metrics)
        depends_on = made_with.get(method, {})
        images = len({row.image for row in rows})
        summaries.append(Summary(suite, degradation, method, images, values, nans, reasons, depends_on))
    return summaries


def base_name(method: str) -> str:
    """Return the method that a run belongs to: `NAME@RUN` -> `NAME`."""
    return method.partition("@")[0]


def pool_sets(
    set_values: Mapping[tuple[str, str, str], SetScore | str],
) -> dict[tuple[str, str, str], SetScore | str]:
    """Pool the scores of sets of each method's runs: (task, base name, metric) -> their mean, or why a run has none."""
    groups: dict[tuple[str, str, str], list[SetScore | str]] = {}
    for (task, method, metric), value in set_values.items():
        groups.setdefault((task, base_name(method), metric), []).append(value)
    return {key: _mean_of_runs(values) for key, values in groups.items()}


def _mean_of_runs(values: Sequence[SetScore | str]) -> SetScore | str:
    """Return the mean of the runs' values, and of each of their draws, or why a run has none."""
    known = []
    for value in values:
        if isinstance(value, str):
            return value
        known.append(value)
    if len(known) == 1:
        return known[0]
    runs = tuple(score.value for score in known)
    draws = np.mean([score.draws for score in known], axis=0)
    return SetScore(known[0].n, sum(runs) / len(runs), draws, runs)


def _mean(rows: Sequence[Score], metric: Metric) -> float | str:
    values = [row.values[metric.name] for row in rows if metric.name in row.values]
    if len(values) == len(rows):
        return sum(values) / len(values)
    if metric.of_input and not values:
        return NOT_OURS
    if metric.needs_reference and not values:
        return NO_REFERENCE
    return f"not defined on {len(rows) - len(values)} of {len(rows)} images (smaller than {metric.min_side} pixels)"


def _count_nans(
    rows: Sequence[Score],
    metrics: Sequence[Metric],
) -> dict[str, int]:
    counts = {}
    for metric in metrics:
        count = sum(math.isnan(row.values.get(metric.name, 0.0)) for row in rows)
        if count:
            counts[metric.name] = count
    return counts


def nan_counts(summaries: Sequence[Summary]) -> dict[str, int]:
    """Return metric name -> how many scores are NaN, for those that have any."""
    counts: dict[str, int] = {}
    for summary in summaries:
        for name, count in summary.nans.items():
            counts[name] = counts.get(name, 0) + count
    return counts


def write_scores(
    path: Path,
    scores: Sequence[Score],
    metrics: Sequence[Metric],
    unavailable: Mapping[str, str],
) -> None:
    """Write scores.csv: suite, degradation, image, method, then a column per metric.

    A cell has six decimals, or `nan`, or `unavailable`, or nothing where the metric takes no such image.
    """
    names = [metric.name for metric in metrics if not metric.of_sets]
    names += [name for name in unavailable if not METRICS[name].of_sets]
    rows = []
    for score in scores:
        row = {
            "suite": score.suite, "degradation": score.degradation, "image": score.image, "method": score.method
        }  # fmt: skip
        rows.append(row | _texts(score.values, names, unavailable))
    write_csv(path, pd.DataFrame(rows, columns=[*SCORE_KEYS, *names]))


def write_summaries(
    path: Path,
    summaries: Sequence[Summary],
    metrics: Sequence[Metric],
    unavailable: Mapping[str, str],
) -> None:
    """Write summary.csv: the rows of the tables with everything that they depend on."""
    names = [*(metric.name for metric in metrics), *unavailable]
    rows = []
    for summary in summaries:
        row = {
            "suite": summary.suite, "degradation": summary.degradation, "method": summary.method, "n": summary.n
        }  # fmt: skip
        reasons = {**summary.reasons, **unavailable}
        row |= _texts(summary.values, names, unavailable)
        row["undefined"] = "; ".join(f"{name}: {count}" for name, count in summary.nans.items())
        row["unavailable"] = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        rows.append(row | summary.made_with)
    write_csv(path, pd.DataFrame(rows))


def read_scores(path: Path) -> pd.DataFrame:
    """Read scores.csv: text columns, and a column of numbers per metric, NaN where it has no value.

    Raises:
        ValueError: it is damaged; the message names it.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except ValueError as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged ({why}): run diffrestorer evaluate again") from None

    # Rows that are all longer than the head would make an index of their first cells.
    shifted = not isinstance(table.index, pd.RangeIndex)
    if shifted or list(table.columns[: len(SCORE_KEYS)]) != SCORE_KEYS:
        why = f"its columns are not {','.join(SCORE_KEYS)} and metrics"
        raise ValueError(f"{path} is damaged ({why}): run diffrestorer evaluate again")
    for column in table.columns[len(SCORE_KEYS) :]:
        table[column] = pd.to_numeric(table[column], errors="coerce")
    return table


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index, with Unix line ends, whole or not at all."""
    write_text(path, csv_text(table))


def csv_text(table: pd.DataFrame) -> str:
    """Return a table as CSV without its index, with Unix line ends and empty cells for what is missing."""
    return table.to_csv(index=False, lineterminator="\n")


def _texts(
    values: Mapping[str, float],
    names: Sequence[str],
    unavailable: Mapping[str, str],
) -> dict[str, str]:
    """Return the cells of some metrics as CSV files show them."""
    cells = {}
    for name in names:
        missing = "unavailable" if name in unavailable else ""
        cells[name] = f"{values[name]:.6f}" if name in values else missing
    return cells
