"""The report: one HTML page that holds everything it shows and opens from a file.

Sentences, sortable tables, the worst cases, a slider between the degraded photo and each method, and every score.
"""

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from diffrestorer.data.storage import write_text
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.report.comparison import Comparison
from diffrestorer.evaluation.report.report_tables import comparison_table, means_table
from diffrestorer.evaluation.report.tables import Table, metric_title
from diffrestorer.evaluation.restoring.outputs import read_pixels
from diffrestorer.evaluation.scoring.metrics import METRICS
from diffrestorer.evaluation.scoring.scores import Score
from diffrestorer.evaluation.suites import Item, Suite

TEMPLATE = Path(__file__).with_name("report.html")
CARD_METRICS = ("psnr", "ssim", "lpips", "niqe")
"""A card shows the first two of these that its images have."""

LEADING_METRICS = ("psnr", "lpips", "dists", "niqe")
"""The first one that a method's images have decides which are its worst."""

WORST_CASES = 3
IMAGE_SIDE = 384
"""Pictures on the page are no larger, and lossy; scores are those of the files."""


@dataclass(frozen=True)
class Report:
    """What page and sheet show.

    Attributes:
        output_dir: holds the outputs, and receives index.html and contact_sheet.png.
        sentences: what the tables say. caption: one sentence on what was compared.
        unavailable: what is lacking -> why, and what to do about it.
        comparisons: the paper's tables that the suite covers.
        cards: how many images of each task get a card.
    """

    output_dir: Path
    suite: Suite
    methods: Sequence[Method]
    scores: Sequence[Score]
    tables: Sequence[Table]
    sentences: Sequence[str]
    caption: str
    cards: int
    unavailable: dict[str, str] = field(default_factory=dict)
    comparisons: Sequence[Comparison] = ()

    @cached_property
    def _values(self) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
        values: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
        for score in self.scores:
            values.setdefault((score.degradation, score.image), {})[score.method] = score.values
        return values

    @property
    def restoring(self) -> list[Method]:
        """The methods that change the image: all but the degraded input."""
        return [method for method in self.methods if method.kind != "degraded"]

    def values(self, item: Item) -> dict[str, dict[str, float]]:
        """Method name -> metric name -> score of its output for one item."""
        return self._values[item.degradation, item.image]

    def badness(self, item: Item, method: Method) -> float:
        """How bad an output is: by the leading metric, relative to the degraded input where that was scored."""
        values = self.values(item)
        own, before = values[method.name], values.get("degraded", {})
        for name in LEADING_METRICS:
            if name in own:
                sign = 1 if METRICS[name].lower_is_better else -1
                badness = sign * (own[name] - before.get(name, 0.0))
                return float("inf") if np.isnan(badness) else badness
        return 0.0

    def shown(self, degradation: str) -> list[Item]:
        """The items with a card: all, or else the worst ones and the first of the others, in the suite's order."""
        items = self.suite.of(degradation)
        if len(items) <= self.cards or not self.restoring:
            return items[: self.cards]
        worst = sorted(items, key=lambda item: -max(self.badness(item, method) for method in self.restoring))
        chosen = worst[: (self.cards + 1) // 2]
        chosen += [item for item in items if item not in chosen][: self.cards - len(chosen)]
        return [item for item in items if item in chosen]


def write_page(report: Report) -> None:
    """Writes index.html: sentences and tables on top, then a card an image, then all scores.

    A card lays the degraded photo under the output of a method, or the clean photo, and a line that moves between them.
    """
    choices = {method.name: method.title for method in reversed(report.restoring)} | {"clean": "clean"}
    parts = {
        "CAPTION": escape(report.caption),
        "SENTENCES": _tag("ul", "".join(_tag("li", escape(sentence)) for sentence in report.sentences)),
        "UNAVAILABLE": _unavailable(report),
        "TABLES": "\n".join(means_table(table) for table in report.tables),
        "COMPARISONS": "\n".join(comparison_table(comparison) for comparison in report.comparisons),
        "WORST": _worst_cases(report),
        "CHOICES": "".join(
            f'<label><input type="radio" name="method" value="{escape(name)}"{" checked" * (index == 0)}>'
            f"<span>{escape(title)}</span></label>"
            for index, (name, title) in enumerate(choices.items())
        ),
        "OPTIONS": "".join(_tag("option", escape(name)) for name in report.suite.degradations),
        "SECTIONS": "\n".join(_section(report, name, choices) for name in report.suite.degradations),
        "SCORES": _scores_json(report),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    page = re.sub(r"@([A-Z]+)@", lambda match: parts[match[1]], template)
    write_text(report.output_dir / "index.html", page)


def _tag(name: str, content: str) -> str:
    return f"<{name}>{content}</{name}>"


def _unavailable(report: Report) -> str:
    """Names in sight, reasons folded away."""
    if not report.unavailable:
        return ""
    reasons = "".join(_tag("li", escape(f"{name}: {why}")) for name, why in report.unavailable.items())
    names = escape(", ".join(report.unavailable))
    return f'<details id="unavailable"><summary>Unavailable here: {names}</summary><ul>{reasons}</ul></details>'


def _worst_cases(report: Report) -> str:
    """A line a method and bad output, with a link to its card."""
    carded = {item.file for name in report.suite.degradations for item in report.shown(name)}
    lines = []
    for method in report.restoring:
        items = sorted(report.suite.items, key=lambda item: -report.badness(item, method))[:WORST_CASES]
        for item in items:
            values = report.values(item)
            name = next((name for name in LEADING_METRICS if name in values[method.name]), None)
            if name is None:
                continue
            before = values.get("degraded", {}).get(name)
            was = "" if before is None else score_text(name, before)
            place = escape(f"{item.degradation}, {item.image}")
            link = f'<a href="#{_anchor(item)}">{place}</a>' if item.file in carded else place
            lines.append(
                f'<tr><th scope="row">{link}</th><td>{escape(method.title)}</td><td>{metric_title(name)}</td>'
                f"<td>{was}</td><td>{score_text(name, values[method.name][name])}</td></tr>"
            )
    head = "<th>image</th><th>method</th><th>metric</th><th>degraded</th><th>restored</th>"
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _section(report: Report, degradation: str, choices: dict[str, str]) -> str:
    items = report.shown(degradation)
    cards = "\n".join(_card(report, item, choices) for item in items)
    name, count = escape(degradation), len(report.suite.of(degradation))
    note = f' <span class="soft">{len(items)} of {count} images, the worst among them</span>' * (count > len(items))
    return f'<section data-degradation="{name}"><h2>{name}{note}</h2><div class="cards">\n{cards}</div></section>'


def _card(report: Report, item: Item, choices: dict[str, str]) -> str:
    """One image. Without scripts it shows the first choice, half of it."""
    files: dict[str, Path] = {method.name: method.output(item, report.output_dir) for method in report.restoring}
    if item.gt is not None:
        files["clean"] = item.gt
    alt = escape(f"{item.image}, {item.degradation}")
    images = [f'<img src="{_embedded(item.lq)}" alt="{alt}: degraded">']
    for index, (name, title) in enumerate(choices.items()):
        if name in files:
            images.append(
                f'<img class="after" data-method="{escape(name)}" src="{_embedded(files[name])}" '
                f'alt="{alt}: {escape(title)}"{" hidden" * (index > 0)}>'
            )
    slider = f'<input type="range" min="0" max="100" value="50" aria-label="{alt}: share of the degraded photo shown">'
    right = escape(next(iter(choices.values())))
    return (
        f'<figure id="{_anchor(item)}"><div class="compare">{"".join(images)}<i></i><b class="left">degraded</b>'
        f'<b class="right">{right}</b>{slider}</div><figcaption>{_card_scores(report, item)}</figcaption></figure>'
    )


def _card_scores(report: Report, item: Item) -> str:
    values = report.values(item)
    names = [name for name in CARD_METRICS if name in values[report.methods[0].name]][:2]
    head = "".join(f'<th scope="col">{metric_title(name)}</th>' for name in names)
    rows = [f'<tr><th scope="row">{escape(item.image)}</th>{head}</tr>']
    for method in report.methods:
        cells = "".join(f"<td>{score_text(name, values[method.name][name])}</td>" for name in names)
        rows.append(f'<tr data-method="{escape(method.name)}"><th scope="row">{escape(method.title)}</th>{cells}</tr>')
    return f"<table>{''.join(rows)}</table>"


def score_text(metric: str, value: float) -> str:
    """A score as cards and sheets print it."""
    return f"{value:.2f} dB" if metric == "psnr" else f"{value:.3f}"


def _scores_json(report: Report) -> str:
    """Columns and rows of scores.csv for the page's script; NaN is the text `NaN`, a missing score null."""
    names = list(dict.fromkeys(name for score in report.scores for name in score.values))
    rows = [
        [s.degradation, s.image, s.method, *(_number(s.values[name]) if name in s.values else None for name in names)]
        for s in report.scores
    ]
    data = json.dumps({"columns": ["degradation", "image", "method", *names], "rows": rows})
    return data.replace("<", "\\u003c")


def _number(value: float) -> float | str:
    return "NaN" if np.isnan(value) else round(value, 4)


def _anchor(item: Item) -> str:
    return escape(re.sub(r"\W+", "-", f"{item.degradation}-{item.image}"))


def _embedded(file: Path) -> str:
    """An image as the address that holds it."""
    image = Image.fromarray(read_pixels(file))
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
