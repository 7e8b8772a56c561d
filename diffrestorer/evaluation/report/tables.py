"""Tables of means: one per metric, a row per degradation and per group of degradations, a column per method."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.scoring.fid import ADVISED_IMAGES
from diffrestorer.evaluation.scoring.metrics import Metric
from diffrestorer.evaluation.scoring.scores import Score, SetScore, Summary, pool_sets
from diffrestorer.evaluation.scoring.set_standings import compare_sets
from diffrestorer.evaluation.scoring.standings import Standing, compare_methods, image_scores
from diffrestorer.evaluation.suites import REAL

HIDDEN_METRICS: tuple[str, ...] = ("ms_ssim", "fsim", "vsi", "gmsd")
"""Metrics that tables and pages leave out where others were computed; scores.csv has all."""

GROUPS: dict[str, tuple[str, ...]] = {
    "single degradations": DEGRADATIONS,
    "real degradations": tuple(REAL),
    "mixtures": tuple(MIXTURES),
}
"""Rows that are also averaged, and counted in the sentences."""

TWO_DECIMALS: tuple[str, ...] = ("psnr", "psnr_y", "fid", "fid_dinov2", "niqe", "musiq", "consistency")
"""Metrics that are printed with two decimals; others have three."""

MISSING = "–"
"""A cell without a value."""

Standings = Mapping[tuple[str, str], Mapping[str, Standing]]
"""(label of a row, metric) -> method -> standing."""


@dataclass(frozen=True)
class Cell:
    """A method's mean in a row.

    Attributes:
        mean: None where the metric has no value.
        text: the mean as tables print it.
        standing: its interval, tests and spread; None where the metric compares sets.
    """

    mean: float | None
    text: str
    standing: Standing | None = None

    @property
    def best(self) -> bool:
        """Return whether it is printed in bold: not significantly worse than the best of its row."""
        return self.standing is not None and self.standing.leads


@dataclass(frozen=True)
class Row:
    """A degradation, or a group of degradations, each of which counts once: method name -> cell."""

    label: str
    group: bool
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Table:
    """The means of one metric: the degradations, then the groups."""

    metric: Metric
    methods: tuple[Method, ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """The metric, its unit and its direction."""
        detail = f" ({self.metric.detail})" if self.metric.detail else ""
        return f"{metric_title(self.metric.name)}{detail} {self.metric.arrow}"

    def frame(self, best: str = "{}") -> pd.DataFrame:
        """Return the texts of the cells, the methods' titles as columns; `best` formats the best of a row."""
        rows = []
        for row in self.rows:
            texts = {"degradation": row.label}
            for method in self.methods:
                cell = row.cells[method.name]
                texts[method.title] = best.format(cell.text) if cell.best else cell.text
            rows.append(texts)
        return pd.DataFrame(rows)


def metric_title(name: str) -> str:
    """Return a metric's name for people: `ms_ssim` -> `MS-SSIM`."""
    return name.upper().replace("_", "-")


def shown_metrics(metrics: Sequence[Metric]) -> list[Metric]:
    """Return the metrics without `HIDDEN_METRICS`, or the first three where nothing else was computed."""
    return [metric for metric in metrics if metric.name not in HIDDEN_METRICS] or list(metrics[:3])


def table_rows(degradations: Sequence[str]) -> dict[str, list[str]]:
    """Return the label of each row -> its degradations: every one alone, then the groups that any belongs to."""
    rows = {name: [name] for name in degradations}
    for label, members in group_rows(degradations).items():
        rows[f"mean of {label}"] = members
    return rows


def group_rows(labels: Sequence[str]) -> dict[str, list[str]]:
    """Return the groups that have members among the labels of rows; classes of a user's own are one of them."""
    groups = {group: [name for name in names if name in labels] for group, names in GROUPS.items()}
    grouped = {name for members in groups.values() for name in members}
    groups["own classes"] = [
        name for name in labels if name not in grouped and not name.startswith("mean of ")
    ]
    return {group: members for group, members in groups.items() if members}


def find_standings(
    scores: Sequence[Score],
    set_scores: Mapping[tuple[str, str, str], SetScore | str],
    metrics: Sequence[Metric],
    rows: Mapping[str, Sequence[str]],
) -> Standings:
    """Compare the methods in every row and metric; a row in which a metric lacks images has nobody to compare."""
    # Metrics of sets have no images to pair: they bring draws of their own.
    table = image_scores(scores)
    pooled = pool_sets(set_scores)
    lacking = _lacking(scores, metrics)
    found: dict[tuple[str, str], Mapping[str, Standing]] = {}
    for label, tasks in rows.items():
        for metric in metrics:
            if metric.of_sets:
                sets = _sets(pooled, metric, tasks)
                found[label, metric.name] = compare_sets(sets, metric, ADVISED_IMAGES)
            elif lacking.isdisjoint((task, metric.name) for task in tasks):
                found[label, metric.name] = compare_methods(table, metric, tasks)
    return found


def _lacking(
    scores: Sequence[Score],
    metrics: Sequence[Metric],
) -> set[tuple[str, str]]:
    """Return (task, metric) of those that some image has no score in: it is too small, or lacks a reference."""
    found = set()
    for score in scores:
        for metric in metrics:
            if metric.name not in score.values:
                found.add((score.degradation, metric.name))
    return found


def _sets(
    pooled: Mapping[tuple[str, str, str], SetScore | str],
    metric: Metric,
    tasks: Sequence[str],
) -> dict[str, list[SetScore]]:
    """Return method -> its scores of some tasks, for methods that have all of them."""
    methods = dict.fromkeys(method for _, method, name in pooled if name == metric.name)
    found = {}
    for method in methods:
        scores = [pooled[task, method, metric.name] for task in tasks]
        known = [score for score in scores if isinstance(score, SetScore)]
        if len(known) == len(tasks):
            found[method] = known
    return found


def build_tables(
    summaries: Sequence[Summary],
    metrics: Sequence[Metric],
    methods: Sequence[Method],
    standings: Standings,
) -> list[Table]:
    """Build a table per shown metric. A mean that a NaN enters is NaN: `nan_counts` counts it, nothing is left out."""
    # The means as a table: (metric, degradation) by method.
    means: dict[tuple[str, str, str], float] = {}
    for summary in summaries:
        for name, value in summary.values.items():
            means[name, summary.degradation, summary.method] = value
    degradations = list(dict.fromkeys(summary.degradation for summary in summaries))

    tables = []
    for metric in shown_metrics(metrics):
        rows = []
        for label, members in table_rows(degradations).items():
            known = standings.get((label, metric.name), {})
            cells = {}
            for method in methods:
                mean = _mean(means, metric.name, members, method.name)
                text = MISSING if mean is None else format_score(metric.name, mean)
                cells[method.name] = Cell(mean, text, known.get(method.name))
            rows.append(Row(label, label not in degradations, cells))
        tables.append(Table(metric, tuple(methods), tuple(rows)))
    return tables


def _mean(
    means: dict[tuple[str, str, str], float],
    metric: str,
    degradations: Sequence[str],
    method: str,
) -> float | None:
    """Return the mean over degradations, each counting once; None where one of them has no value."""
    values = [means.get((metric, degradation, method)) for degradation in degradations]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def format_score(metric: str, value: float) -> str:
    """Format a score with as many decimals as tables print."""
    if math.isnan(value):
        return "NaN"
    return f"{value:.2f}" if metric in TWO_DECIMALS else f"{value:.3f}"
