"""The paper's tables with our numbers beside its own: measured, printed, the difference, the ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.report.paper import DECIMALS, PaperTable
from diffrestorer.evaluation.report.tables import Standings
from diffrestorer.evaluation.scoring.metrics import METRICS
from diffrestorer.evaluation.scoring.scores import NO_REFERENCE, Summary
from diffrestorer.evaluation.scoring.standings import Standing
from diffrestorer.evaluation.suites import AVERAGED

AVERAGE = "average"
"""Label of the standings over the tasks that Tables II-V average over."""


@dataclass(frozen=True)
class Cell:
    """A number of a table.

    Attributes:
        ours: measured; None: not available. paper: printed; None: illegible, or not in the paper.
        ours_rank, paper_rank: 1 is the best of its column in its block, 2 the second best, 0 anything else.
        mark: text in place of `ours` where that is None.
        comparable: False where ours is over fewer tasks than the paper's.
        standing: intervals and tests of ours; None where the metric compares sets, or nothing was measured.
    """

    ours: float | None
    paper: float | None
    ours_rank: int = 0
    paper_rank: int = 0
    mark: str = "unavailable"
    comparable: bool = True
    standing: Standing | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's; None unless both are there and mean the same."""
        if self.ours is None or self.paper is None or not self.comparable:
            return None
        return self.ours - self.paper

    @property
    def leads(self) -> bool:
        """Return whether ours is not significantly worse than the best of its column."""
        return self.standing is not None and self.standing.leads


@dataclass(frozen=True)
class Line:
    """A row: a method, on a task of Table I or on the average of Tables II-V.

    Attributes:
        n: number of images of ours.
        cells: one per metric of the table.
        note: doubts about the paper's numbers.
        made_with: the settings that ours depend on.
    """

    task: str
    method: str
    title: str
    n: int
    cells: dict[str, Cell]
    note: str
    made_with: dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """A table: lines in blocks (one per task), and sentences that belong on it."""

    paper: PaperTable
    blocks: dict[str, list[Line]]
    notes: list[str]

    @property
    def lines(self) -> list[Line]:
        """The lines of all blocks."""
        return [line for block in self.blocks.values() for line in block]


def ranks(
    values: Sequence[float | None],
    lower_is_better: bool,
    decimals: int,
) -> list[int]:
    """Return 1 for the best value, 2 for the second best, 0 for the others; equal ones, as printed, share a rank.

    None takes no part. Where a value is NaN nobody is ranked, for it might be the best.
    """
    known = [round(value, decimals) for value in values if value is not None]
    if len(known) < 2 or any(math.isnan(value) for value in known):
        return [0] * len(values)
    order = sorted(set(known), reverse=not lower_is_better)
    places = {value: place for place, value in enumerate(order[:2], start=1)}
    return [0 if value is None else places.get(round(value, decimals), 0) for value in values]


def compare(
    paper: PaperTable,
    summaries: Sequence[Summary],
    methods: Sequence[Method],
    tasks: Sequence[str],
    notes: Sequence[str],
    standings: Standings,
) -> Comparison:
    """Lay a table of the paper beside our measurements.

    Args:
        methods: those asked for; others of the paper's rows show the paper's numbers alone.
        tasks: of Table I, those that the suite is about.
        notes: sentences about the images and the metrics; the reasons of missing numbers are added.
        standings: of every task, and of `AVERAGE`.
    """
    # Table I has a block per task; the others have one block of averages. Further runs stand in their method's row.
    one_task = paper.number == 1
    plain = [method.name for method in methods if method.name == method.base]
    others = [name for name in plain if name not in paper.methods]
    names = [*paper.methods, *(others if one_task else [])]
    found = {(s.degradation, s.method): s for s in summaries}
    averaged = [task for task in AVERAGED if any(s.degradation == task and s.n for s in summaries)]
    notes = [*notes, *([] if one_task else [_average_note(averaged)])]

    # Each row of the paper, whether we measured it or not.
    titles = {method.name: method.title for method in methods}
    reasons = {
        f"{method.title}: {method.reason}"
        for method in methods
        if method.reason and method.name in names
    }
    blocks = {}
    for task in tasks if one_task else ("",):
        lines = []
        for name in names:
            summary = found.get((task, name)) if one_task else _average(found, name, averaged)
            known = {}
            for metric in paper.metrics:
                row = standings.get((task or AVERAGE, metric), {})
                known[metric] = row.get(name)
            cells = _cells(
                summary, paper, name, task, one_task or len(averaged) == len(AVERAGED), known
            )
            if name not in titles:
                cells = {metric: replace(cell, mark="–") for metric, cell in cells.items()}
            n, made_with = (summary.n, summary.made_with) if summary else (0, {})
            title = paper.methods.get(name, titles.get(name, name))
            lines.append(Line(task, name, title, n, cells, paper.note(name, task or None), made_with))
            reasons |= _reasons(summary)
        blocks[task] = _ranked(lines, paper)
    return Comparison(paper, blocks, [*notes, *sorted(reasons)])


def _average_note(tasks: Sequence[str]) -> str:
    if len(tasks) == len(AVERAGED):
        return f"Means over the tasks {', '.join(tasks)}, each counting once."
    lacking = ", ".join(task for task in AVERAGED if task not in tasks)
    return (
        f"Means over the tasks {', '.join(tasks)} alone, each counting once: the paper's are over {lacking} too, so no "
        "difference is given."
    )


def _reasons(summary: Summary | None) -> set[str]:
    """Return sentences about the numbers that a line lacks or that are undefined."""
    if summary is None:
        return set()
    where = f"{summary.degradation or 'average'}, {summary.method}"
    undefined = {
        f"{where}: {name.upper()} is undefined (NaN) on {n} images" for name, n in summary.nans.items()
    }
    lacking = {
        f"{where}: no {name.upper()}, {why}"
        for name, why in summary.reasons.items()
        if why != NO_REFERENCE
    }
    return undefined | lacking


def _average(
    found: dict[tuple[str, str], Summary],
    method: str,
    tasks: Sequence[str],
) -> Summary | None:
    """Return a method's mean over tasks; a metric that lacks one of them has none."""
    parts = [found[task, method] for task in tasks if (task, method) in found]
    if not parts:
        return None

    # A metric's mean needs every task.
    names = {name for part in parts for name in (*part.values, *part.reasons)}
    values, reasons = {}, {}
    for name in names:
        lacking = [task for task in tasks if name not in found.get((task, method), parts[0]).values]
        if lacking:
            why = next((part.reasons[name] for part in parts if name in part.reasons), "not measured")
            reasons[name] = f"no mean, for it lacks {', '.join(lacking)} ({why})"
        else:
            values[name] = sum(part.values[name] for part in parts) / len(parts)
    undefined = {name for part in parts for name in part.nans}
    nans = {name: sum(part.nans.get(name, 0) for part in parts) for name in undefined}
    images = sum(part.n for part in parts)
    return Summary("ablation", "", method, images, values, nans, reasons, parts[-1].made_with)


def _cells(
    summary: Summary | None,
    paper: PaperTable,
    name: str,
    task: str,
    comparable: bool,
    standings: dict[str, Standing | None],
) -> dict[str, Cell]:
    printed = paper.values(name, task or None)
    cells = {}
    for metric in paper.metrics:
        ours = None if summary is None else summary.values.get(metric)
        no_reference = summary is not None and summary.reasons.get(metric) == NO_REFERENCE
        mark = "–" if no_reference else "unavailable"
        cells[metric] = Cell(
            ours, printed.get(metric), mark=mark, comparable=comparable, standing=standings[metric]
        )
    return cells


def _ranked(lines: list[Line], paper: PaperTable) -> list[Line]:
    # Column by column: ours among ours, the paper's among the paper's.
    cells: list[dict[str, Cell]] = [{} for _ in lines]
    for metric in paper.metrics:
        lower, decimals = METRICS[metric].lower_is_better, DECIMALS[metric]
        ours = ranks([line.cells[metric].ours for line in lines], lower, decimals)
        printed = ranks([line.cells[metric].paper for line in lines], lower, decimals)
        for index, line in enumerate(lines):
            old = line.cells[metric]
            cells[index][metric] = replace(old, ours_rank=ours[index], paper_rank=printed[index])
    return [replace(line, cells=new) for line, new in zip(lines, cells, strict=True)]
