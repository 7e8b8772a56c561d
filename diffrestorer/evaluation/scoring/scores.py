"""Scores: a row an image (`Score`), a row a task and method (`Summary`), and their CSV files."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffrestorer.data.storage import write_text
from diffrestorer.evaluation.scoring.metrics import Metric


@dataclass(frozen=True)
class Score:
    """One row of scores.csv: a method's output for one image.

    Attributes:
        values: metric name -> value, NaN where the metric gives none; metrics that take no such image are left out.
    """

    suite: str
    degradation: str
    image: str
    method: str
    values: dict[str, float]


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


NO_REFERENCE = "no clean image to compare with"
"""The reason that tables show as a dash: the paper has no number there either."""


def summarise(
    scores: Sequence[Score],
    metrics: Sequence[Metric],
    set_values: Mapping[tuple[str, str, str], float | str],
    made_with: Mapping[str, dict[str, str]],
) -> list[Summary]:
    """A summary a task and method, in the order of the scores.

    Args:
        metrics: those that worked, and those of sets.
        set_values: (task, method, metric) -> score of the set, or why there is none.
        made_with: method name -> what its rows depend on.
    """
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.suite, score.degradation, score.method), []).append(score)
    summaries = []
    for (suite, degradation, method), rows in groups.items():
        values: dict[str, float] = {}
        reasons: dict[str, str] = {}
        for metric in metrics:
            value = _mean(rows, metric) if not metric.of_sets else set_values[degradation, method, metric.name]
            if isinstance(value, str):
                reasons[metric.name] = value
            else:
                values[metric.name] = value
        nans = {m.name: sum(math.isnan(row.values.get(m.name, 0.0)) for row in rows) for m in metrics}
        nans = {name: count for name, count in nans.items() if count}
        summaries.append(
            Summary(suite, degradation, method, len(rows), values, nans, reasons, made_with.get(method, {}))
        )
    return summaries


def _mean(rows: Sequence[Score], metric: Metric) -> float | str:
    values = [row.values[metric.name] for row in rows if metric.name in row.values]
    if len(values) == len(rows):
        return sum(values) / len(values)
    if metric.needs_reference and not values:
        return NO_REFERENCE
    return f"not defined on {len(rows) - len(values)} of {len(rows)} images (smaller than {metric.min_side} pixels)"


def nan_counts(summaries: Sequence[Summary]) -> dict[str, int]:
    """Metric name -> how many scores are NaN, for those that have any."""
    counts: dict[str, int] = {}
    for summary in summaries:
        for name, count in summary.nans.items():
            counts[name] = counts.get(name, 0) + count
    return counts


def write_scores(
    path: Path, scores: Sequence[Score], metrics: Sequence[Metric], unavailable: Mapping[str, str]
) -> None:
    """Writes scores.csv: suite,degradation,image,method, a column a metric.

    A cell has six decimals, or `nan`, or `unavailable`, or nothing where the metric takes no such image.
    """
    names = [*(metric.name for metric in metrics if not metric.of_sets), *(n for n in unavailable if n != "fid")]
    rows = [
        [s.suite, s.degradation, s.image, s.method, *(_text(s.values.get(name), name in unavailable) for name in names)]
        for s in scores
    ]
    write_text(path, csv_text([["suite", "degradation", "image", "method", *names], *rows]))


def write_summaries(
    path: Path, summaries: Sequence[Summary], metrics: Sequence[Metric], unavailable: Mapping[str, str]
) -> None:
    """Writes summary.csv: the rows of the tables with everything that they depend on."""
    names = [*(metric.name for metric in metrics), *unavailable]
    keys = list(dict.fromkeys(key for summary in summaries for key in summary.made_with))
    head = ["suite", "degradation", "method", "n", *names, "undefined", "unavailable", *keys]
    rows = [
        [
            *(s.suite, s.degradation, s.method, str(s.n)),
            *(_text(s.values.get(name), name in unavailable) for name in names),
            "; ".join(f"{name}: {count}" for name, count in s.nans.items()),
            "; ".join(f"{name}: {reason}" for name, reason in {**s.reasons, **unavailable}.items()),
            *(s.made_with.get(key, "") for key in keys),
        ]
        for s in summaries
    ]
    write_text(path, csv_text([head, *rows]))


def csv_text(rows: Sequence[Sequence[str]]) -> str:
    """Rows as CSV with Unix line ends."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _text(value: float | None, unavailable: bool) -> str:
    if value is None:
        return "unavailable" if unavailable else ""
    return f"{value:.6f}"
