"""Pictures of an evaluation: a page with a slider on every image, and one sheet of thumbnails.

The page needs no network and works from a file: it names the images by paths relative to itself.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffrestorer.data.images import Photo, write_photo
from diffrestorer.evaluation.files import read_pixels, write_text
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.suites import Item, Suite
from diffrestorer.evaluation.tables import Score, Table, metric_title

TEMPLATE = Path(__file__).with_name("report.html")
CARD_METRICS = ("psnr", "ssim")
SHEET_PHOTOS = 2
SHEET_TILE = 192
SHEET_LABEL_WIDTH = 140
SHEET_HEADER = 36
SHEET_GAP = 4


@dataclass(frozen=True)
class Report:
    """What pages and sheets show.

    Attributes:
        output_dir: holds the outputs, and receives index.html and contact_sheet.png.
        sentences: what the tables say. caption: one sentence on what was compared.
    """

    output_dir: Path
    suite: Suite
    methods: Sequence[Method]
    scores: Sequence[Score]
    tables: Sequence[Table]
    sentences: Sequence[str]
    caption: str

    @property
    def restoring(self) -> list[Method]:
        """The methods that change the image: all but the degraded input."""
        return [method for method in self.methods if method.kind != "degraded"]

    def values(self, item: Item) -> dict[str, dict[str, float]]:
        """Method name -> metric name -> score of its output for one item."""
        key = (item.degradation, item.image)
        return {score.method: score.values for score in self.scores if (score.degradation, score.image) == key}


def write_page(report: Report) -> None:
    """Writes index.html: sentences and tables on top, then a card an image.

    A card lays the degraded photo under the output of a method, or the clean photo, and a line that moves between them.
    """
    choices = {method.name: method.title for method in reversed(report.restoring)} | {"clean": "clean"}
    parts = {
        "CAPTION": escape(report.caption),
        "SENTENCES": _tag("ul", "".join(_tag("li", escape(sentence)) for sentence in report.sentences)),
        "TABLES": "\n".join(_table(table) for table in report.tables),
        "CHOICES": "".join(
            f'<label><input type="radio" name="method" value="{escape(name)}"{" checked" * (index == 0)}>'
            f"<span>{escape(title)}</span></label>"
            for index, (name, title) in enumerate(choices.items())
        ),
        "OPTIONS": "".join(_tag("option", escape(name)) for name in report.suite.degradations),
        "SECTIONS": "\n".join(_section(report, name, choices) for name in report.suite.degradations),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    page = re.sub(r"@([A-Z]+)@", lambda match: parts[match[1]], template)
    write_text(report.output_dir / "index.html", page)


def _tag(name: str, content: str) -> str:
    return f"<{name}>{content}</{name}>"


def _table(table: Table) -> str:
    lines = [f"<div><table><caption>{escape(table.title)}</caption><thead><tr><th>degradation</th>"]
    lines += [f'<th scope="col">{escape(method.title)}</th>' for method in table.methods]
    lines.append("</tr></thead><tbody>")
    for index, row in enumerate((*table.rows, *table.group_rows)):
        first = ' class="first"' if index == len(table.rows) else ""
        lines.append(f'<tr{first}><th scope="row">{escape(row.label)}</th>')
        for method in table.methods:
            text, best = table.cell(row, method)
            lines.append(f'<td class="best">{text}</td>' if best else f"<td>{text}</td>")
        lines.append("</tr>")
    return "".join([*lines, "</tbody></table></div>"])


def _section(report: Report, degradation: str, choices: dict[str, str]) -> str:
    cards = [_card(report, item, choices) for item in report.suite.items if item.degradation == degradation]
    name = escape(degradation)
    return (
        f'<section data-degradation="{name}"><h2>{name}</h2><div class="cards">\n'
        + "\n".join(cards)
        + "</div></section>"
    )


def _card(report: Report, item: Item, choices: dict[str, str]) -> str:
    """One image. Without scripts it shows the first choice, half of it."""
    files = {method.name: method.output(item, report.output_dir) for method in report.restoring} | {"clean": item.gt}
    alt = escape(f"{item.image}, {item.degradation}")
    images = [f'<img src="{_link(item.lq, report)}" alt="{alt}: degraded" loading="lazy">']
    for index, (name, title) in enumerate(choices.items()):
        images.append(
            f'<img class="after" data-method="{escape(name)}" src="{_link(files[name], report)}" '
            f'alt="{alt}: {escape(title)}" loading="lazy"{" hidden" * (index > 0)}>'
        )
    slider = f'<input type="range" min="0" max="100" value="50" aria-label="{alt}: share of the degraded photo shown">'
    right = escape(next(iter(choices.values())))
    return (
        f'<figure><div class="compare">{"".join(images)}<i></i><b class="left">degraded</b><b class="right">{right}</b>'
        f"{slider}</div><figcaption>{_card_scores(report, item)}</figcaption></figure>"
    )


def _card_scores(report: Report, item: Item) -> str:
    values = report.values(item)
    names = [name for name in CARD_METRICS if name in values[report.methods[0].name]]
    head = "".join(f'<th scope="col">{metric_title(name)}</th>' for name in names)
    rows = [f'<tr><th scope="row">{escape(item.image)}</th>{head}</tr>']
    for method in report.methods:
        cells = "".join(f"<td>{_score_text(name, values[method.name][name])}</td>" for name in names)
        rows.append(f'<tr data-method="{escape(method.name)}"><th scope="row">{escape(method.title)}</th>{cells}</tr>')
    return f"<table>{''.join(rows)}</table>"


def _score_text(metric: str, value: float) -> str:
    return f"{value:.2f} dB" if metric == "psnr" else f"{value:.3f}"


def _link(file: Path, report: Report) -> str:
    return escape(quote(Path(os.path.relpath(file, report.output_dir)).as_posix()))


def write_contact_sheet(report: Report) -> None:
    """Writes contact_sheet.png: a row a degradation; for each of the first photos degraded, each method, clean."""
    photos = report.suite.images[:SHEET_PHOTOS]
    columns = ["degraded", *(method.title for method in report.restoring), "clean"]
    step = SHEET_TILE + SHEET_GAP
    width = SHEET_LABEL_WIDTH + len(photos) * (len(columns) * step + 3 * SHEET_GAP)
    height = SHEET_HEADER + len(report.suite.degradations) * step
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=18)
    for row, degradation in enumerate(report.suite.degradations):
        middle = SHEET_HEADER + row * step + SHEET_TILE // 2
        draw.text((12, middle), "\n+ ".join(degradation.split("+")), "black", font, anchor="lm")
    for block, photo in enumerate(photos):
        left = SHEET_LABEL_WIDTH + block * (len(columns) * step + 3 * SHEET_GAP)
        for column, title in enumerate(columns):
            centre = left + column * step + SHEET_TILE // 2
            draw.text((centre, SHEET_HEADER // 2), _fit(title, font), "black", font, anchor="mm")
        for item in report.suite.items:
            if item.image == photo:
                top = SHEET_HEADER + report.suite.degradations.index(item.degradation) * step
                _draw_row(sheet, report, item, left, top)
    write_photo(report.output_dir / "contact_sheet.png", Photo(np.asarray(sheet)))


def _draw_row(sheet: Image.Image, report: Report, item: Item, left: int, top: int) -> None:
    """The tiles of one item, each but the last with its PSNR."""
    values = report.values(item)
    tiles: list[tuple[Path, dict[str, float]]] = [(item.lq, values.get("degraded", {}))]
    tiles += [(method.output(item, report.output_dir), values[method.name]) for method in report.restoring]
    tiles.append((item.gt, {}))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for column, (file, scores) in enumerate(tiles):
        tile = Image.fromarray(read_pixels(file)).resize((SHEET_TILE, SHEET_TILE), Image.Resampling.LANCZOS)
        x = left + column * (SHEET_TILE + SHEET_GAP)
        sheet.paste(tile, (x, top))
        if "psnr" in scores:
            corner = (x + 5, top + SHEET_TILE - 5)
            text = _score_text("psnr", scores["psnr"])
            left_edge, upper, right_edge, lower = draw.textbbox(corner, text, font, anchor="lb")
            draw.rectangle((left_edge - 3, upper - 3, right_edge + 3, lower + 3), "black")
            draw.text(corner, text, "white", font, anchor="lb")


def _fit(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A title cut to the width of a tile."""
    if font.getlength(title) <= SHEET_TILE:
        return title
    while title and font.getlength(title + "...") > SHEET_TILE:
        title = title[:-1]
    return title + "..."
