"""The report's tables as HTML: a column sorts when its head is clicked."""

from html import escape

from diffrestorer.evaluation.report.comparison import Cell, Comparison, Line
from diffrestorer.evaluation.report.export import ROMAN, number
from diffrestorer.evaluation.report.paper import DECIMALS
from diffrestorer.evaluation.report.tables import Table, metric_title
from diffrestorer.evaluation.scoring.metrics import METRICS


def means_table(table: Table) -> str:
    """The means of one metric: a row a degradation, then the groups, which stay below when the table is sorted."""
    lines = [f'<div><table class="sortable"><caption>{escape(table.title)}</caption><thead><tr><th>degradation</th>']
    lines += [f'<th scope="col">{escape(method.title)}</th>' for method in table.methods]
    lines.append("</tr></thead><tbody>")
    for index, row in enumerate((*table.rows, *table.group_rows)):
        if index == len(table.rows):
            lines.append('</tbody><tbody class="groups">')
        lines.append(f'<tr><th scope="row">{escape(row.label)}</th>')
        for method in table.methods:
            text, best = table.cell(row, method)
            lines.append(f'<td class="best">{text}</td>' if best else f"<td>{text}</td>")
        lines.append("</tr>")
    return "".join([*lines, "</tbody></table></div>"])


def comparison_table(comparison: Comparison) -> str:
    """A table of the paper, folded: for each metric ours, the paper's number and the difference."""
    paper = comparison.paper
    by_task = len(comparison.blocks) > 1 or "" not in comparison.blocks
    heads = [*(["task"] if by_task else []), "method", "n"]
    for name in paper.metrics:
        heads += [f"{metric_title(name)} {METRICS[name].arrow}", "paper", "difference"]
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    rows = "".join(_comparison_row(line, by_task) for line in comparison.lines)
    title = f"Table {ROMAN[paper.number]} of the paper beside ours: {paper.title}"
    return (
        f"<details><summary>{escape(title)}</summary>"
        f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></details>'
    )


def _comparison_row(line: Line, by_task: bool) -> str:
    cells = "".join(_comparison_cells(name, cell) for name, cell in line.cells.items())
    task = f'<th scope="row">{escape(line.task)}</th>' if by_task else ""
    return f"<tr>{task}<td>{escape(line.title)}</td><td>{line.n or '–'}</td>{cells}</tr>"


def _comparison_cells(metric: str, cell: Cell) -> str:
    digits = DECIMALS[metric]
    ours = cell.mark if cell.ours is None else number(cell.ours, digits)
    paper = "–" if cell.paper is None else number(cell.paper, digits)
    difference = "–" if cell.difference is None else f"{cell.difference:+.{digits}f}"
    classes = {0: "", 1: ' class="best"', 2: ' class="second"'}
    return f"<td{classes[cell.ours_rank]}>{ours}</td><td{classes[cell.paper_rank]}>{paper}</td><td>{difference}</td>"
