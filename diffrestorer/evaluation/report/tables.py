"""Means as tables (terminal, Markdown, HTML read the same ones) and as sentences drawn from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.scoring.metrics import PAPER_METRICS, Metric
from diffrestorer.evaluation.scoring.scores import Summary
from diffrestorer.evaluation.suites import REAL

SHOWN_METRICS: tuple[str, ...] = ("psnr", "ssim", "nlpd", *PAPER_METRICS)
"""Metrics that tables and pages show, where they were computed; scores.csv has all."""

GROUPS: dict[str, tuple[str, ...]] = {
    "single degradations": DEGRADATIONS,
    "real degradations": tuple(REAL),
    "mixtures": tuple(MIXTURES),
}
"""Rows that are also averaged, and counted in the sentences."""


@dataclass(frozen=True)
class Row:
    """A line of a table: method name -> mean over the images of a degradation, or over a group of degradations.

    None: the metric has no value there.
    """

    label: str
    means: dict[str, float | None]


@dataclass(frozen=True)
class Table:
    """The means of one metric: a row a degradation, then a row a group; a column a method."""

    metric: Metric
    methods: tuple[Method, ...]
    rows: tuple[Row, ...]
    group_rows: tuple[Row, ...]

    def cell(self, row: Row, method: Method) -> tuple[str, bool]:
        """A mean as text, and whether it is the row's best (ties, as printed, share that; a lone method is not)."""
        known = [mean for mean in row.means.values() if mean is not None]
        mean = row.means[method.name]
        if mean is None:
            return "–", False
        best = self.metric.best(known)
        text = self.format(mean)
        return text, len(known) > 1 and not math.isnan(best) and text == self.format(best)

    @property
    def title(self) -> str:
        """The metric, its unit and its direction."""
        unit = ", dB" if self.metric.name == "psnr" else ""
        return f"{metric_title(self.metric.name)}{unit} {self.metric.arrow}"

    def format(self, value: float) -> str:
        """A value as tables print it."""
        return f"{value:.2f}" if self.metric.name in ("psnr", "fid", "niqe", "musiq") else f"{value:.3f}"


def metric_title(name: str) -> str:
    """`ms_ssim` -> `MS-SSIM`."""
    return name.upper().replace("_", "-")


def shown_metrics(metrics: Sequence[Metric]) -> list[Metric]:
    """Those of `SHOWN_METRICS` that were computed; the first three where none was."""
    return [metric for metric in metrics if metric.name in SHOWN_METRICS] or list(metrics[:3])


def build_tables(summaries: Sequence[Summary], metrics: Sequence[Metric], methods: Sequence[Method]) -> list[Table]:
    """A table a shown metric. A mean that a NaN enters is NaN: it is counted in `nan_counts`, never left out."""
    degradations = list(dict.fromkeys(summary.degradation for summary in summaries))
    found = {(summary.degradation, summary.method): summary for summary in summaries}
    groups = {label: [name for name in names if name in degradations] for label, names in GROUPS.items()}
    tables = []
    for metric in shown_metrics(metrics):

        def row(label: str, names: Sequence[str], metric: Metric = metric) -> Row:
            return Row(label, {m.name: _mean([found[name, m.name] for name in names], metric) for m in methods})

        rows = tuple(row(name, [name]) for name in degradations)
        group_rows = tuple(row(f"mean of {label}", names) for label, names in groups.items() if names)
        tables.append(Table(metric, tuple(methods), rows, group_rows))
    return tables


def _mean(summaries: Sequence[Summary], metric: Metric) -> float | None:
    """Each degradation counts once."""
    values = [summary.values[metric.name] for summary in summaries if metric.name in summary.values]
    return sum(values) / len(values) if len(values) == len(summaries) else None


def summary_sentences(tables: Sequence[Table], nans: dict[str, int]) -> list[str]:
    """What the tables say: each method against the degraded input, the two decoders, and undefined scores if any."""
    if not tables:
        return []
    methods = {method.name: method for method in tables[0].methods}
    pairs = [(name, "degraded") for name in methods if name != "degraded" and "degraded" in methods]
    if {"diff_restorer", "diff_restorer_sd"} <= set(methods):
        pairs.append(("diff_restorer", "diff_restorer_sd"))
    sentences = []
    for name, other in pairs:
        groups = [_wins(tables, label, name, other) for label in GROUPS]
        sentences.append(f"{methods[name].title} beats {methods[other].title} {'; '.join(filter(None, groups))}.")
    for metric, count in nans.items():
        sentences.append(f"{metric_title(metric)} is undefined (NaN) for {count} outputs; means over them are NaN too.")
    return sentences


def _wins(tables: Sequence[Table], group: str, name: str, other: str) -> str:
    """`in PSNR on 7, in SSIM on 6 of 8 single degradations`; empty where the tables have no row of the group."""
    rows = [row.label for row in tables[0].rows if row.label in GROUPS[group]]
    counts = []
    for table in tables:
        means = [(row.means[name], row.means[other]) for row in table.rows if row.label in rows]
        known = [(one, two) for one, two in means if one is not None and two is not None]
        if known:
            wins = sum(one != two and table.metric.best([one, two]) == one for one, two in known)
            counts.append(f"in {metric_title(table.metric.name)} on {wins}")
    return f"{', '.join(counts)} of {len(rows)} {group}" if counts else ""


def rich_table(table: Table) -> RichTable:
    """For the terminal; the best of a row is bold and green."""
    shown = RichTable(title=table.title, title_justify="left", title_style="bold")
    shown.add_column("degradation")
    for method in table.methods:
        shown.add_column(method.title, justify="right")
    for rows in (table.rows, table.group_rows):
        for row in rows:
            cells = [table.cell(row, method) for method in table.methods]
            shown.add_row(row.label, *(f"[bold green]{text}[/]" if best else text for text, best in cells))
        shown.add_section()
    return shown


def markdown(tables: Sequence[Table], sentences: Sequence[str], caption: str) -> str:
    """The page table.md: caption, sentences, a table a metric with the best of each row in bold."""
    lines = [caption, "", *(f"- {sentence}" for sentence in sentences), ""]
    for table in tables:
        lines += [f"## {table.title}", "", "| degradation | " + " | ".join(m.title for m in table.methods) + " |"]
        lines.append("|---|" + "---:|" * len(table.methods))
        for row in (*table.rows, *table.group_rows):
            cells = [table.cell(row, method) for method in table.methods]
            lines.append(f"| {row.label} | " + " | ".join(f"**{t}**" if best else t for t, best in cells) + " |")
        lines.append("")
    return "\n".join(lines)
