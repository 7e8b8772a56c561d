"""Every file of an evaluation but its images: scores, tables, page and contact sheet."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from diffrestorer.data.storage import write_text
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.report.comparison import AVERAGE, Comparison, compare
from diffrestorer.evaluation.report.export import write_comparison
from diffrestorer.evaluation.report.paper import PAPER_TABLES
from diffrestorer.evaluation.report.pictures import Report
from diffrestorer.evaluation.report.report_page import write_page
from diffrestorer.evaluation.report.sentences import summary_sentences
from diffrestorer.evaluation.report.sheet import write_contact_sheet
from diffrestorer.evaluation.report.standing_text import KEY, write_standings
from diffrestorer.evaluation.report.table_text import latex, markdown, rich_table
from diffrestorer.evaluation.report.tables import Standings, build_tables, find_standings, table_rows
from diffrestorer.evaluation.scoring.fid import fid_warning
from diffrestorer.evaluation.scoring.metrics import Metric
from diffrestorer.evaluation.scoring.scores import (
    Score,
    SetScore,
    Summary,
    base_name,
    nan_counts,
    write_scores,
    write_summaries,
)
from diffrestorer.evaluation.suites import AVERAGED, PAIRS, SUITES, Suite


@dataclass(frozen=True)
class Findings:
    """The results of one run.

    Attributes:
        set_scores: (task, method, metric) -> score of the set, or why there is none.
        methods: those that ran, and those that could not, with the reason.
        metrics: those that worked. unavailable: metric name -> why it did not.
    """

    suite: Suite
    methods: list[Method]
    metrics: list[Metric]
    unavailable: dict[str, str]
    scores: list[Score]
    set_scores: dict[tuple[str, str, str], SetScore | str]
    summaries: list[Summary]


def write_report(
    found: Findings,
    output_dir: Path,
    caption: str,
    fid_floor: int,
    cards: int,
    console: Console,
) -> None:
    """Write scores, tables and pages below `output_dir`, and print the tables.

    Args:
        found: the results.
        output_dir: of the run.
        caption: of the tables: images, seed and steps.
        fid_floor: number of images below which FID is refused.
        cards: images of each task on the page.
        console: where the tables are printed.
    """
    write_scores(output_dir / "scores.csv", found.scores, found.metrics, found.unavailable)
    write_summaries(output_dir / "summary.csv", found.summaries, found.metrics, found.unavailable)

    # The means, how far they can be told apart, and what they say. Runs of a method are pooled in its row.
    running = [
        method
        for method in found.methods
        if not method.reason and method.name == base_name(method.name)
    ]
    standings = find_standings(
        found.scores, found.set_scores, found.metrics, _rows(found.suite.degradations)
    )
    tables = build_tables(found.summaries, found.metrics, running, standings)
    write_standings(output_dir, tables, standings)
    notes = _notes(found, fid_floor)
    unavailable = {name.upper(): reason for name, reason in found.unavailable.items()}
    unavailable |= found.suite.missing
    lacking = [f"{name} is unavailable: {reason}" for name, reason in unavailable.items()]
    sentences = [*notes, *summary_sentences(tables, nan_counts(found.summaries))]
    write_text(output_dir / "table.md", markdown(tables, [*sentences, *lacking, KEY], caption))
    write_text(output_dir / "table.tex", latex(tables, KEY))

    # The paper's tables beside them, then everything on a page.
    comparisons = _comparisons(found, standings, [*notes, *lacking])
    for comparison in comparisons:
        write_comparison(comparison, output_dir)
    report = Report(
        output_dir, found.suite, running, found.scores, tables, sentences, caption, cards, unavailable,
        comparisons,
    )  # fmt: skip
    write_contact_sheet(report)
    write_page(report)

    # The same for whoever looks on.
    for table in tables:
        console.print(rich_table(table))
    for sentence in [*sentences, *lacking]:
        console.print(sentence, highlight=False)
    files = [f"table{comparison.paper.number}.md" for comparison in comparisons]
    where = ", ".join(str(output_dir / name) for name in [*files, "index.html"])
    console.print(f"Pictures and tables: {where}", highlight=False, soft_wrap=True)


def _rows(degradations: list[str]) -> dict[str, list[str]]:
    """Return the rows of the tables, and the average of Tables II-V."""
    averaged = [task for task in AVERAGED if task in degradations]
    return table_rows(degradations) | ({AVERAGE: averaged} if averaged else {})


def _comparisons(
    found: Findings,
    standings: Standings,
    notes: list[str],
) -> list[Comparison]:
    """Return the paper's tables that a suite covers: Tables II-V stand on the suite `ablation`."""
    if found.suite.name in ("demo", PAIRS):
        return []
    ablation = found.suite.name == "ablation"
    wanted = [paper for paper in PAPER_TABLES if (paper.number > 1) == ablation]
    tasks = SUITES[found.suite.name]
    return [compare(paper, found.summaries, found.methods, tasks, notes, standings) for paper in wanted]


def _notes(found: Findings, fid_floor: int) -> list[str]:
    """Return what must stand on every table: other images than the paper's, few images for FID."""
    notes = [found.suite.note] if found.suite.note else []
    if any(metric.of_sets for metric in found.metrics):
        for task in found.suite.degradations:
            warning = fid_warning(len(found.suite.of(task)), fid_floor)
            notes += [f"{task}: {warning}"] if warning else []
    return notes
