"""Tables of means for the terminal and as Markdown."""

from collections.abc import Sequence

import pandas as pd
from rich.table import Table as RichTable

from diffrestorer.evaluation.report.latex import escape_latex
from diffrestorer.evaluation.report.tables import Table


def rich_table(table: Table) -> RichTable:
    """Format a table for the terminal; the best of a row is bold and green."""
    shown = RichTable(title=table.title, title_justify="left", title_style="bold")
    frame = table.frame(best="[bold green]{}[/]")
    for column in frame.columns:
        shown.add_column(column, justify="left" if column == "degradation" else "right")

    # A line between the degradations and the groups.
    texts = frame.itertuples(index=False)
    for row, cells in zip(table.rows, texts, strict=True):
        if row.group and not shown.rows[-1].end_section:
            shown.add_section()
        shown.add_row(*cells)
    return shown


def markdown(
    tables: Sequence[Table],
    sentences: Sequence[str],
    caption: str,
) -> str:
    """Return the page table.md: caption, sentences, a table per metric with the best of each row in bold."""
    lines = [caption, "", *(f"- {sentence}" for sentence in sentences), ""]
    for table in tables:
        lines += [f"## {table.title}", "", markdown_table(table.frame(best="**{}**"), texts=1), ""]
    return "\n".join(lines)


def latex(tables: Sequence[Table], key: str) -> str:
    """Return the file table.tex: a booktabs table per metric, the best of each row in bold."""
    lines = ["% needs \\usepackage{booktabs}", f"% {key}"]
    for table in tables:
        frame = table.frame(best="\\textbf{{{}}}").map(escape_latex).rename(columns=escape_latex)
        style = frame.style.hide(axis="index")
        columns = "l" + "r" * len(table.methods)
        lines.append(
            style.to_latex(hrules=True, column_format=columns, caption=escape_latex(table.title))
        )
    return "\n".join(lines)


def markdown_table(frame: pd.DataFrame, texts: int) -> str:
    """Return a table of texts as Markdown, its first `texts` columns to the left and the others to the right."""
    sides = ["left"] * texts + ["right"] * (len(frame.columns) - texts)
    return frame.to_markdown(index=False, disable_numparse=True, colalign=sides)
