"""The report: one HTML page that holds everything it shows and opens from a file.

Pictures with a slider between the degraded photo and each method, then sentences, sortable tables, the worst and
best cases, and every score.
"""

import base64
import io
import math
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from diffrestorer.data.storage import write_text
from diffrestorer.evaluation.report.export import ROMAN, cell_texts
from diffrestorer.evaluation.report.pictures import Report, card_text
from diffrestorer.evaluation.report.standing_text import KEY, hint
from diffrestorer.evaluation.report.tables import metric_title
from diffrestorer.evaluation.restoring.outputs import read_pixels
from diffrestorer.evaluation.scoring.metrics import METRICS
from diffrestorer.evaluation.suites import Item

TEMPLATES = Path(__file__).with_name("templates")

CARD_METRICS = ("psnr", "ssim", "lpips", "niqe")
"""A card shows the first two of these that its images have."""

NUM_CASES = 3
"""Worst and best outputs that are listed per method."""

IMAGE_SIDE = 384
"""Pictures on the page are no larger, and lossy; scores are those of the files."""


def templates() -> Environment:
    """Return the templates of the pages; what they print is escaped."""
    loader = FileSystemLoader(TEMPLATES)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def write_page(report: Report) -> None:
    """Write index.html."""
    # What may lie right of the line: our last method first, the clean image last.
    choices = {method.name: method.title for method in reversed(report.restoring)} | {"clean": "clean"}
    sections = []
    for name in report.suite.degradations:
        cards = [_card(report, item, choices) for item in report.shown(name)]
        sections.append({"name": name, "count": len(report.suite.of(name)), "cards": cards})
    template = templates().get_template("page.html")
    page = template.render(
        caption=report.caption,
        sentences=report.sentences,
        unavailable=report.unavailable,
        choices=choices,
        first_choice=next(iter(choices.values())),
        sections=sections,
        means=report.tables,
        worst_cases=_cases(report, best=False),
        best_cases=_cases(report, best=True),
        comparisons=report.comparisons,
        scores=_scores(report),
        image_side=IMAGE_SIDE,
        roman=ROMAN,
        metrics=METRICS,
        cell_texts=cell_texts,
        metric_title=metric_title,
        hint=hint,
        key=KEY,
    )
    write_text(report.output_dir / "index.html", page)


def _cases(report: Report, best: bool) -> list[dict[str, str]]:
    """Return each method's worst or best outputs; those with a card carry its anchor."""
    carded = {item.file for name in report.suite.degradations for item in report.shown(name)}
    sign = 1 if best else -1
    cases = []
    for method in report.restoring:
        ranked = sorted(report.suite.items, key=lambda item: sign * report.badness(item, method))
        for item in ranked[:NUM_CASES]:
            name = report.leading_metric(item, method)
            if name is None:
                continue
            values = report.values(item)
            before = values.get("degraded", {}).get(name)
            cases.append({
                "place": f"{item.degradation}, {item.image}",
                "anchor": _anchor(item) if item.file in carded else "",
                "method": method.title,
                "metric": metric_title(name),
                "before": "" if before is None else card_text(name, before),
                "after": card_text(name, values[method.name][name]),
            })  # fmt: skip
    return cases


def _card(
    report: Report,
    item: Item,
    choices: dict[str, str],
) -> dict[str, Any]:
    """Return one image's card: pictures, in the order of the choices, and scores."""
    # The pictures, without those that this image lacks.
    files = {method.name: method.output(item, report.output_dir) for method in report.restoring}
    if item.gt is not None:
        files["clean"] = item.gt
    images = []
    for name, title in choices.items():
        if name in files:
            images.append({"method": name, "title": title, "address": _embedded(files[name])})

    # The two leading metrics that this image has.
    values = report.values(item)
    names = [name for name in CARD_METRICS if name in values[report.methods[0].name]][:2]
    rows = []
    for method in report.methods:
        texts = [card_text(name, values[method.name][name]) for name in names]
        rows.append({"method": method.name, "title": method.title, "texts": texts})

    return {
        "anchor": _anchor(item),
        "alt": f"{item.image}, {item.degradation}",
        "image": item.image,
        "degraded": _embedded(item.lq),
        "images": images,
        "heads": [metric_title(name) for name in names],
        "rows": rows,
    }


def _scores(report: Report) -> dict[str, list[Any]]:
    """Return columns and rows of scores.csv for the page's script; NaN is the text `NaN`, a missing score null."""
    names = list(dict.fromkeys(name for score in report.scores for name in score.values))
    rows = []
    for score in report.scores:
        values = [_number(score.values.get(name)) for name in names]
        rows.append([score.degradation, score.image, score.method, *values])
    return {"columns": ["degradation", "image", "method", *names], "rows": rows}


def _number(value: float | None) -> float | str | None:
    if value is None:
        return None
    return "NaN" if math.isnan(value) else round(value, 4)


def _anchor(item: Item) -> str:
    return re.sub(r"\W+", "-", f"{item.degradation}-{item.image}")


def _embedded(file: Path) -> str:
    """Return the data address of an image, shrunk and lossy."""
    image = Image.fromarray(read_pixels(file))
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
