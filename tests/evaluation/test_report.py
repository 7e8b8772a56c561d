"""The report: one file that needs nothing else, and works in a real browser."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from evaluation_runs import quiet, settings
from PIL import Image

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.report.pictures import Report
from diffrestorer.evaluation.run import evaluate
from diffrestorer.evaluation.scoring.scores import Score
from diffrestorer.evaluation.suites import Item, Suite

NAMES = [*DEGRADATIONS, *MIXTURES]


class Sources(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.links: list[str] = []
        self.others: list[str] = []
        self.sliders = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.sliders += values.get("type") == "range"
        for name in ("src", "href"):
            if name in values:
                {"img": self.images, "a": self.links}.get(tag, self.others).append(values[name] or "")


def test_the_page_holds_every_image_and_needs_no_other_file(finished: Path) -> None:
    page = (finished / "index.html").read_text()
    sources = Sources()
    sources.feed(page)
    assert len(sources.images) == len(NAMES) * 4
    assert all(source.startswith("data:image/webp;base64,") for source in sources.images)
    assert sources.others == []
    assert sources.sliders == len(NAMES)
    assert all(link.startswith("#") or (finished / link).is_file() for link in sources.links)
    assert not re.search(r"https?:|@[A-Z]+@", page)


def test_large_suites_show_the_worst(tmp_path: Path) -> None:
    items = tuple(Item("single", "haze", f"{i}", tmp_path, tmp_path) for i in range(10))
    methods = [Method("degraded", "degraded"), Method("mine", "model")]
    scores = [Score("single", "haze", f"{i}", "degraded", {"psnr": 20.0}) for i in range(10)]
    scores += [
        Score("single", "haze", f"{i}", "mine", {"psnr": 15.0 if i in (6, 8) else 25.0})
        for i in range(10)
    ]
    report = Report(tmp_path, Suite("single", items), methods, scores, [], [], "", 4)
    assert [item.image for item in report.shown("haze")] == ["0", "1", "6", "8"]


@pytest.fixture(scope="module")
def page(model: Path, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """The page of a run on two photos, in the browser."""
    folder = tmp_path_factory.mktemp("page")
    evaluate(
        settings(folder, ["degraded", "diff_restorer"], model=str(model), images=2, suite="mixed"),
        quiet(),
    )
    moved = tmp_path_factory.mktemp("elsewhere") / "page.html"  # alone: it holds all it shows
    (folder / "index.html").rename(moved)
    browser.open(moved)
    return browser


def test_images_show(page: Browser) -> None:
    assert page.run("document.images.length") == 4 * 2 * 3
    assert page.run("[...document.images].every((i) => i.complete && i.naturalWidth === 64)")


def test_a_column_sorts_up_and_down(page: Browser) -> None:
    table = "document.querySelector('.tables table')"
    read = f"[...{table}.tBodies[0].rows].map((row) => row.cells[1].textContent)"
    values = sorted(page.run(read), key=float)
    for expected in (values, values[::-1]):
        page.run(f"{table}.tHead.rows[0].cells[1].click()")
        assert page.run(read) == expected
    assert page.run(f"{table}.tHead.rows[0].cells[1].getAttribute('aria-sort')") == "descending"
    labels = page.run(f"[...{table}.tBodies[1].rows].map((row) => row.cells[0].textContent)")
    assert labels == ["mean of mixtures"], "means stay below"


def test_a_number_shows_its_interval_when_pointed_at_or_tapped(page: Browser) -> None:
    cell = ".tables td[data-hint]:nth-child(3)"
    page.click(cell)
    assert page.run("!document.getElementById('hint').hidden")
    text = page.run("document.getElementById('hint').textContent")
    assert re.match(
        r"2 images, median [\d.]+, worst [\d.]+ \(.*\)\nharmed \d+% of them\nto the input [+-]", text
    ), text
    assert re.search(r"\[[+-][\d.]+, [+-][\d.]+\], p = ", text)
    page.click("h1")
    assert page.run("document.getElementById('hint').hidden")


def test_the_page_fits_a_phone(page: Browser) -> None:
    """390 pixels wide: nothing sticks out but what scrolls by itself, and pictures come before tables."""
    page.call(
        "Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True
    )
    try:
        assert page.run("document.documentElement.scrollWidth") == 390
        top = page.run("document.querySelector('figure').getBoundingClientRect().top + scrollY")
        assert top < 844, "the first picture is on the first screen"
        assert top < page.run("document.querySelector('.tables').getBoundingClientRect().top + scrollY")
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


def test_all_scores_sort_and_filter(page: Browser) -> None:
    rows = "[...document.querySelectorAll('#scores tbody tr')].map((row) => [...row.cells].map((c) => c.textContent))"
    page.run("document.getElementById('scores').open = true")
    assert len(page.run(rows)) == 4 * 2 * 2
    page.run(
        "const method = document.querySelector('#scores select[data-column=\"2\"]'); method.value = 'degraded';"
        "method.dispatchEvent(new Event('change'))"
    )
    shown = page.run(rows)
    assert {row[2] for row in shown} == {"degraded"}
    page.run("document.querySelectorAll('#scores thead th')[3].click()")
    assert [row[3] for row in page.run(rows)] == sorted((row[3] for row in shown), key=float)


def test_dragging_the_slider_shows_more_of_the_degraded_photo(page: Browser) -> None:
    """Seen in the pixels: left of the line is the degraded photo, right of it the restored one."""
    page.run("document.querySelector('.compare').scrollIntoView({block: 'center'})")
    box = page.run(
        "const b = document.querySelector('.compare').getBoundingClientRect(); [b.x, b.y, b.width, b.height]"
    )
    x, y, width, height = box
    scroll = page.run("window.scrollY")
    pictures = {}
    for share in (0.1, 0.9):
        page.drag((x + width * 0.5, y + height * 0.5), (x + width * share, y + height * 0.5))
        assert page.run("Number(document.querySelector('.compare input').value)") == pytest.approx(
            100 * share, abs=3
        )
        shot = page.screenshot(x=x, y=y + scroll, width=width, height=height)
        pictures[share] = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), np.float32)
    middle = np.s_[: int(height * 0.4), int(width * 0.3) : int(width * 0.7)]
    assert np.abs(pictures[0.1][middle] - pictures[0.9][middle]).mean() > 5, (
        "another picture in the middle"
    )
    edge = np.s_[: int(height * 0.4), : int(width * 0.05)]
    assert np.abs(pictures[0.1][edge] - pictures[0.9][edge]).mean() < 1, (
        "the left edge is the degraded photo twice"
    )


def test_the_papers_table_sorts_by_its_numbers(page: Browser) -> None:
    """Table I, the paper's FID of the 32 rows of four mixtures: illegible cells (a dash) stay at the end."""
    table = "[...document.querySelectorAll('details')].find((d) => d.textContent.startsWith('Table I')).children[1]"
    page.run(f"{table}.parentElement.open = true")
    page.run(f"{table}.tHead.rows[0].cells[4].click()")
    values = page.run(f"[...{table}.tBodies[0].rows].map((row) => row.cells[4].textContent)")
    numbers = [float(value) for value in values if value != "–"]
    assert len(numbers) == 28
    assert numbers == sorted(numbers)
    assert values[28:] == ["–"] * (4 + 4), "four illegible, four of the degraded input"


def test_a_method_is_chosen(page: Browser) -> None:
    page.run("document.querySelector('#methods input[value=clean]').click()")
    assert page.run(
        "[...document.querySelectorAll('img.after:not([hidden])')].every((i) => i.dataset.method === 'clean')"
    )
    assert page.run("document.querySelector('b.right').textContent") == "clean"


def test_scores_are_data(finished: Path) -> None:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>',
        (finished / "index.html").read_text(),
    )
    assert found is not None
    data = json.loads(found[1])
    assert data["columns"] == ["degradation", "image", "method", "psnr", "ssim"]
    assert len(data["rows"]) == 3 * len(NAMES)
