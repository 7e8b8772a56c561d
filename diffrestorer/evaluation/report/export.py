"""A comparison with the paper as Markdown, LaTeX and CSV."""

import math
from pathlib import Path

from diffrestorer.data.storage import write_text
from diffrestorer.evaluation.report.comparison import Cell, Comparison, Line
from diffrestorer.evaluation.report.paper import DECIMALS
from diffrestorer.evaluation.scoring.metrics import METRICS
from diffrestorer.evaluation.scoring.scores import csv_text

ROMAN = {1: "I", 2: "II", 3: "III", 4: "IV", 5: "V"}


def write_comparison(comparison: Comparison, output_dir: Path) -> None:
    """Writes tableN.md, tableN.tex and tableN.csv."""
    stem = output_dir / f"table{comparison.paper.number}"
    write_text(stem.with_suffix(".md"), as_markdown(comparison))
    write_text(stem.with_suffix(".tex"), as_latex(comparison))
    write_text(stem.with_suffix(".csv"), as_csv(comparison))


def as_markdown(comparison: Comparison) -> str:
    """A table a block; a cell is `ours / paper / difference`, best in bold, second best in italics."""
    paper = comparison.paper
    lines = [f"# Table {ROMAN[paper.number]}: {paper.title}", "", _key("**bold**", "*italics*"), ""]
    lines += [f"- {note}" for note in comparison.notes]
    for task, block in comparison.blocks.items():
        head = [f"{name.upper()} {METRICS[name].arrow}" for name in paper.metrics]
        lines += ["", *([f"## {task}", ""] if task else [])]
        lines += ["| method | n | " + " | ".join(head) + " |", "|---|---:|" + "---:|" * len(head)]
        for line in block:
            cells = [" / ".join(_texts(name, cell, "**{}**", "*{}*")) for name, cell in line.cells.items()]
            lines.append(f"| {line.title} | {line.n or '–'} | " + " | ".join(cells) + " |")
        doubts = [f"{line.title}: {line.note}" for line in block if line.note and line.note != "no ground truth"]
        if doubts:
            lines += ["", f"Doubtful in the paper's scan: {'; '.join(doubts)}."]
    return "\n".join([*lines, ""])


def as_latex(comparison: Comparison) -> str:
    """One booktabs table: three columns a metric (ours, paper, difference), best in bold, second best underlined."""
    paper = comparison.paper
    span = len(paper.metrics)
    arrows = {True: r"$\downarrow$", False: r"$\uparrow$"}
    head = [
        rf"\multicolumn{{3}}{{c}}{{{name.upper()}{arrows[METRICS[name].lower_is_better]}}}" for name in paper.metrics
    ]
    rules = "".join(rf"\cmidrule(lr){{{3 * i + 3}-{3 * i + 5}}}" for i in range(span))
    lines = [
        "% needs \\usepackage{booktabs,graphicx}",
        *(f"% {note}" for note in comparison.notes),
        r"\begin{table*}",
        rf"\caption{{{_escape(paper.title)}. {_escape(_key('bold', 'underlined'))}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{lr{'rrr' * span}}}",
        r"\toprule",
        " & ".join(["", "", *head]) + r" \\",
        rules,
        " & ".join(["method", "$n$", *["ours & paper & diff."] * span]) + r" \\",
    ]
    for task, block in comparison.blocks.items():
        lines.append(r"\midrule")
        if task:
            lines.append(rf"\multicolumn{{{3 * span + 2}}}{{l}}{{\textit{{{_escape(task)}}}}} \\")
        for line in block:
            cells = [
                _escape(text) if not text.startswith("\\") else text
                for name, cell in line.cells.items()
                for text in _texts(name, cell, r"\textbf{{{}}}", r"\underline{{{}}}")
            ]
            lines.append(" & ".join([_escape(line.title), str(line.n or "--"), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table*}", ""]
    return "\n".join(lines)


def as_csv(comparison: Comparison) -> str:
    """A row a line; columns METRIC, METRIC_paper, METRIC_difference, METRIC_rank, and what the row depends on."""
    metrics = comparison.paper.metrics
    keys = list(dict.fromkeys(key for line in comparison.lines for key in line.made_with))
    ends = ("", "_paper", "_difference", "_rank", "_paper_rank")
    head = ["degradation", "method", "title", "n", *(f"{name}{end}" for name in metrics for end in ends), "note", *keys]
    return csv_text([head, *(_csv_row(line, metrics, keys) for line in comparison.lines)])


def _csv_row(line: Line, metrics: tuple[str, ...], keys: list[str]) -> list[str]:
    numbers = []
    for name in metrics:
        cell = line.cells[name]
        numbers += ["" if value is None else f"{value:.6f}" for value in (cell.ours, cell.paper, cell.difference)]
        numbers += [str(rank or "") for rank in (cell.ours_rank, cell.paper_rank)]
    made_with = [line.made_with.get(key, "") for key in keys]
    return [line.task, line.method, line.title, str(line.n), *numbers, line.note, *made_with]


def _texts(metric: str, cell: Cell, best: str, second: str) -> list[str]:
    """Ours, the paper's, the difference, as printed."""
    digits = DECIMALS[metric]
    styles = {0: "{}", 1: best, 2: second}
    ours = cell.mark if cell.ours is None else styles[cell.ours_rank].format(number(cell.ours, digits))
    paper = "–" if cell.paper is None else styles[cell.paper_rank].format(number(cell.paper, digits))
    return [ours, paper, "–" if cell.difference is None else f"{cell.difference:+.{digits}f}"]


def number(value: float, digits: int) -> str:
    """A value as the paper prints it, or `NaN`."""
    return "NaN" if math.isnan(value) else f"{value:.{digits}f}"


def _key(best: str, second: str) -> str:
    return (
        f"Ours / the paper's number / the difference; n images of ours. Best of a column in {best}, second best in "
        f"{second}, computed from the numbers shown, for ours and for the paper's."
    )


def _escape(text: str) -> str:
    replaced = text.replace("–", "--")
    for character in "_%&#":
        replaced = replaced.replace(character, f"\\{character}")
    return replaced
