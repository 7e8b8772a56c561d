"""A comparison with the paper as Markdown, LaTeX and CSV."""

import math
from pathlib import Path

import pandas as pd

from diffrestorer.data.storage import write_text
from diffrestorer.evaluation.report.comparison import Cell, Comparison, Line
from diffrestorer.evaluation.report.latex import escape_latex
from diffrestorer.evaluation.report.paper import DECIMALS
from diffrestorer.evaluation.report.standing_text import difference_numbers
from diffrestorer.evaluation.report.table_text import markdown_table
from diffrestorer.evaluation.scoring.metrics import METRICS
from diffrestorer.evaluation.scoring.scores import csv_text

ROMAN = {1: "I", 2: "II", 3: "III", 4: "IV", 5: "V"}


def write_comparison(comparison: Comparison, output_dir: Path) -> None:
    """Write tableN.md, tableN.tex and tableN.csv."""
    stem = output_dir / f"table{comparison.paper.number}"
    write_text(stem.with_suffix(".md"), as_markdown(comparison))
    write_text(stem.with_suffix(".tex"), as_latex(comparison))
    write_text(stem.with_suffix(".csv"), as_csv(comparison))


def as_markdown(comparison: Comparison) -> str:
    """Return a table per block; a cell is `ours / paper / difference`, best in bold, second best in italics."""
    # Notes first, then a table per block.
    paper = comparison.paper
    lines = [f"# Table {ROMAN[paper.number]}: {paper.title}", "", _key("**bold**", "*italics*"), ""]
    lines += [f"- {note}" for note in comparison.notes]
    for task, block in comparison.blocks.items():
        lines += ["", *([f"## {task}", ""] if task else [])]
        rows = []
        for line in block:
            row = {"method": line.title, "n": str(line.n or "–")}
            for name, cell in line.cells.items():
                row[f"{name.upper()} {METRICS[name].arrow}"] = " / ".join(
                    cell_texts(name, cell, "**{}**", "*{}*")
                )
            rows.append(row)
        lines.append(markdown_table(pd.DataFrame(rows), texts=1))
        doubts = [
            f"{line.title}: {line.note}"
            for line in block
            if line.note and line.note != "no ground truth"
        ]
        if doubts:
            lines += ["", f"Doubtful in the paper's scan: {'; '.join(doubts)}."]
    return "\n".join([*lines, ""])


def as_latex(comparison: Comparison) -> str:
    """Return one booktabs table: three columns per metric, best in bold, second best underlined."""
    paper = comparison.paper
    arrows = {True: r"$\downarrow$", False: r"$\uparrow$"}
    heads = {name: f"{name.upper()}{arrows[METRICS[name].lower_is_better]}" for name in paper.metrics}

    # Two rows of heads: the metric, then ours, the paper's and the difference.
    columns = [("", "method"), ("", "$n$")]
    for name in paper.metrics:
        columns += [(heads[name], part) for part in ("ours", "paper", "diff.")]
    rows = []
    for task, block in comparison.blocks.items():
        for line in block:
            rows.append((task, _latex_row(line)))
    frame = pd.DataFrame([row for _, row in rows], columns=pd.MultiIndex.from_tuples(columns))
    text = frame.style.hide(axis="index").to_latex(
        hrules=True, multicol_align="c", column_format="lr" + "rrr" * len(paper.metrics)
    )

    # Scaled to the width of both columns.
    caption = f"{escape_latex(paper.title)}. {escape_latex(_key('bold', 'underlined'))}"
    return "\n".join(
        [
            "% needs \\usepackage{booktabs,graphicx}",
            *(f"% {note}" for note in comparison.notes),
            r"\begin{table*}",
            rf"\caption{{{caption}}}",
            r"\resizebox{\textwidth}{!}{%",
            _with_tasks(text, [task for task, _ in rows], len(columns)).rstrip() + "}",
            r"\end{table*}",
            "",
        ]
    )


def _latex_row(line: Line) -> list[str]:
    cells = [escape_latex(line.title), str(line.n or "--")]
    for name, cell in line.cells.items():
        for text in cell_texts(name, cell, r"\textbf{{{}}}", r"\underline{{{}}}"):
            cells.append(text if text.startswith("\\") else escape_latex(text))
    return cells


def _with_tasks(text: str, tasks: list[str], span: int) -> str:
    """Insert a head before the first row of each task; `tasks` names the task of every row."""
    head, rule, body = text.partition("\\midrule\n")
    rows = body.splitlines(keepends=True)
    lines = []
    for index, row in enumerate(rows):
        task = tasks[index] if index < len(tasks) else None
        if task and (index == 0 or tasks[index - 1] != task):
            lines += [rule] * (index > 0)
            lines.append(rf"\multicolumn{{{span}}}{{l}}{{\textit{{{escape_latex(task)}}}}} \\" + "\n")
        lines.append(row)
    return head + rule + "".join(lines)


def as_csv(comparison: Comparison) -> str:
    """Return a row per line: METRIC, METRIC_paper, METRIC_difference, METRIC_rank, and what the row depends on."""
    # The numbers of each metric, then what the row depends on.
    rows = []
    for line in comparison.lines:
        row: dict[str, object] = {
            "degradation": line.task,
            "method": line.method,
            "title": line.title,
            "n": line.n,
        }
        for name in comparison.paper.metrics:
            cell = line.cells[name]
            row[name] = _number_text(cell.ours)
            row[f"{name}_paper"] = _number_text(cell.paper)
            row[f"{name}_difference"] = _number_text(cell.difference)
            row[f"{name}_rank"] = cell.ours_rank or ""
            row[f"{name}_paper_rank"] = cell.paper_rank or ""
            row |= _standing_columns(name, cell)
        rows.append({**row, "note": line.note, **line.made_with})
    return csv_text(pd.DataFrame(rows))


def _standing_columns(metric: str, cell: Cell) -> dict[str, str]:
    """Return whether ours leads, and its differences to the input and to the best with intervals and tests."""
    columns = {f"{metric}_leads": "" if cell.standing is None else str(int(cell.standing.leads))}
    for name in ("to_input", "to_best"):
        difference = None if cell.standing is None else getattr(cell.standing, name)
        for key, value in difference_numbers(f"{metric}_{name}", difference).items():
            columns[key] = _number_text(value)
    return columns


def _number_text(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def cell_texts(
    metric: str,
    cell: Cell,
    best: str = "{}",
    second: str = "{}",
) -> list[str]:
    """Return ours, the paper's and the difference as printed; `best` and `second` format these two ranks."""
    digits = DECIMALS[metric]
    ours = paper = difference = "–"
    if cell.ours is None:
        ours = cell.mark
    else:
        ours = (best if cell.leads else "{}").format(_printed(cell.ours, digits))
    if cell.paper is not None:
        style = {0: "{}", 1: best, 2: second}[cell.paper_rank]
        paper = style.format(_printed(cell.paper, digits))
    if cell.difference is not None:
        difference = f"{cell.difference:+.{digits}f}"
    return [ours, paper, difference]


def _printed(value: float, digits: int) -> str:
    return "NaN" if math.isnan(value) else f"{value:.{digits}f}"


def _key(best: str, second: str) -> str:
    return (
        f"Ours / the paper's number / the difference; n images of ours. Ours in {best}: not significantly worse than "
        "the best of its column (Wilcoxon's signed-rank test over the images, Holm's correction over the methods, 5 %, "
        "worse by its ranks; "
        f"FID by its interval, from 2,048 images on). The paper's: best in {best}, second best in {second}, from the "
        "numbers shown. Intervals of ours are in the CSV file."
    )
