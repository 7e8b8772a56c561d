"""Standings in words and numbers: hints on the page, and the tables standings.md, standings.tex and standings.csv."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from diffrestorer.data.storage import write_text
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.report.latex import escape_latex
from diffrestorer.evaluation.report.table_text import markdown_table
from diffrestorer.evaluation.report.tables import MISSING, TWO_DECIMALS, Standings, Table, format_score
from diffrestorer.evaluation.scoring.scores import write_csv
from diffrestorer.evaluation.scoring.standings import Difference, Standing

KEY = (
    "Bold: not significantly worse than the best of its row (Wilcoxon's signed-rank test over the images, Holm's "
    "correction over the methods, 5 %; worse by its ranks, not by the mean). With fewer than 6 images that differ no "
    "difference can be significant. Ranks opposed: the test points against the mean, which a few images decide. "
    "In brackets: 95 % interval of the mean difference, by 10,000 bootstrap draws of the images. Harmed: share of "
    "images whose PSNR fell by more than 0.5 dB below the input's. FID: interval by 100 draws; "
    "bold where it holds no difference to the best, and never below 2,048 images."
)
"""The sentences that every table with standings carries."""


def hint(metric: str, standing: Standing) -> str:
    """Return a standing in a few lines, as the page shows it over a cell."""
    lines = [f"{standing.n} images"]
    if standing.worst_image:
        worst = f"worst {format_score(metric, standing.worst)} ({standing.worst_image})"
        lines = [f"{standing.n} images, median {format_score(metric, standing.median)}, {worst}"]
    if not math.isnan(standing.harmed):
        lines.append(f"harmed {standing.harmed:.0%} of them")
    if standing.runs > 1:
        lines.append(f"{standing.runs} runs, deviation of their means {standing.run_spread:.3f}")
    for name, difference in (("input", standing.to_input), ("best", standing.to_best)):
        if difference is not None:
            lines.append(f"to the {name} {_with_p(metric, difference)}")
    return "\n".join(lines)


def difference_text(metric: str, difference: Difference) -> str:
    """Return `+1.20 [+0.90, +1.50]`."""
    ends = (difference.mean, difference.interval.low, difference.interval.high)
    mean, low, high = (_signed(metric, value) for value in ends)
    return f"{mean} [{low}, {high}]"


def _signed(metric: str, value: float) -> str:
    if math.isnan(value):
        return MISSING
    return f"{value:+.2f}" if metric in TWO_DECIMALS else f"{value:+.4f}"


def _with_p(metric: str, difference: Difference) -> str:
    """Return a difference and, where it was tested, its p-value and whether the test points to the other side."""
    text = difference_text(metric, difference)
    if math.isnan(difference.p):
        return text
    text += ", p < 0.001" if difference.p < 0.001 else f", p = {difference.p:.3f}"
    return f"{text}, ranks opposed" if difference.opposed else text


def write_standings(output_dir: Path, tables: Sequence[Table], standings: Standings) -> None:
    """Write standings.md and standings.tex of the shown metrics, and standings.csv of all."""
    write_csv(output_dir / "standings.csv", standings_frame(standings))
    lines = ["# Standings", "", KEY, ""]
    latex = ["% needs \\usepackage{booktabs,longtable}", f"% {KEY}"]
    for table in tables:
        frame = _texts(table, bold="**{}**")
        if frame.empty:
            continue
        lines += [f"## {table.title}", "", markdown_table(frame, texts=2), ""]
        escaped = _texts(table, bold="\\textbf{{{}}}").map(escape_latex)
        style = escaped.style.hide(axis="index")
        caption = escape_latex(table.title)
        columns = "ll" + "r" * 6
        latex.append(
            style.to_latex(hrules=True, environment="longtable", column_format=columns, caption=caption)
        )
    write_text(output_dir / "standings.md", "\n".join(lines))
    write_text(output_dir / "standings.tex", "\n".join(latex))


def _texts(table: Table, bold: str) -> pd.DataFrame:
    """Return a row per degradation and method of a table, as texts."""
    rows = []
    for row in table.rows:
        for method in table.methods:
            standing = row.cells[method.name].standing
            if standing is not None:
                rows.append(_text_row(row.label, method, table.metric.name, standing, bold))
    return pd.DataFrame(rows)


def _text_row(
    label: str,
    method: Method,
    metric: str,
    standing: Standing,
    bold: str,
) -> dict[str, str]:
    median, worst = MISSING, MISSING
    if standing.worst_image:
        median = format_score(metric, standing.median)
        worst = f"{format_score(metric, standing.worst)} ({standing.worst_image})"
    mean = format_score(metric, standing.mean)
    if standing.runs > 1:
        mean += f" ± {standing.run_spread:.3f}"
    texts = {
        "degradation": label,
        "method": method.title,
        "mean": bold.format(mean) if standing.leads else mean,
        "median": median,
        "worst": worst,
        "harmed": MISSING if math.isnan(standing.harmed) else f"{standing.harmed:.0%}",
    }
    for name, difference in (("input", standing.to_input), ("best", standing.to_best)):
        texts[f"to the {name}"] = MISSING
        if difference is not None:
            texts[f"to the {name}"] = _with_p(metric, difference)
    return texts


def standings_frame(standings: Standings) -> pd.DataFrame:
    """Return every standing as numbers: a row per degradation or group, metric and method."""
    rows = []
    for (label, metric), methods in standings.items():
        for method, standing in methods.items():
            rows.append(
                {"degradation": label, "metric": metric, "method": method, **standing_numbers(standing)}
            )
    return pd.DataFrame(rows)


def standing_numbers(standing: Standing) -> Mapping[str, object]:
    """Return a standing's fields as columns of a CSV file."""
    numbers: dict[str, object] = {
        "n": standing.n,
        "mean": standing.mean,
        "median": standing.median,
        "worst": standing.worst,
        "worst_image": standing.worst_image,
        "harmed": standing.harmed,
        "runs": standing.runs,
        "run_spread": standing.run_spread,
    }
    for name, difference in (("to_input", standing.to_input), ("to_best", standing.to_best)):
        numbers |= difference_numbers(name, difference)
    return {**numbers, "leads": standing.leads}


def difference_numbers(
    name: str,
    difference: Difference | None,
) -> dict[str, float | None]:
    """Return a difference as five columns: NAME, NAME_low, NAME_high, NAME_p, NAME_ranks."""
    if difference is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_p", f"{name}_ranks"))
    return {
        name: difference.mean,
        f"{name}_low": difference.interval.low,
        f"{name}_high": difference.interval.high,
        f"{name}_p": difference.p,
        f"{name}_ranks": difference.ranks,
    }
