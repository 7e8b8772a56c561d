"""The report: one file that needs nothing else, and works in a real browser."""

import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import app_runs
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

CUT_OFF = """
[...document.querySelectorAll('td, th')].filter((cell) => {
  const box = cell.getBoundingClientRect();
  for (let parent = cell.parentElement; parent && parent !== document.body; parent = parent.parentElement) {
    const style = getComputedStyle(parent), edge = parent.getBoundingClientRect();
    if (['auto', 'scroll'].includes(style.overflowX)) return false;
    if (style.overflowX === 'hidden' && box.right > edge.right + 1) return true;
  }
  return box.right > document.documentElement.clientWidth + 1;
}).map((cell) => cell.textContent)
"""
"""Cells beyond the edge of a box that hides them, or of the window, and that no box lets the reader scroll to."""

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


def test_large_suites_show_the_worst_and_the_best(tmp_path: Path) -> None:
    items = tuple(Item("single", "haze", f"{i}", tmp_path, tmp_path) for i in range(10))
    methods = [Method("degraded", "degraded"), Method("mine", "model")]
    scores = [Score("single", "haze", f"{i}", "degraded", {"psnr": 20.0}) for i in range(10)]
    scores += [
        Score("single", "haze", f"{i}", "mine", {"psnr": 15.0 if i in (6, 8) else 25.0})
        for i in range(10)
    ]
    report = Report(tmp_path, Suite("single", items), methods, scores, [], [], "", 4)
    assert [item.image for item in report.shown("haze")] == ["0", "1", "6", "8"]

    # The last one is the best of all.
    scores[-1] = Score("single", "haze", "9", "mine", {"psnr": 30.0})
    report = Report(tmp_path, Suite("single", items), methods, scores, [], [], "", 4)
    assert [item.image for item in report.shown("haze")] == ["0", "6", "8", "9"]


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


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desk", "phone"])
def window(request: pytest.FixtureRequest, page: Browser) -> Iterator[tuple[int, int]]:
    width, height = request.param
    phone = width < 600
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
    )  # fmt: skip
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.run("scrollTo(0, 0)")
    yield width, height
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = false; })")
    page.call("Emulation.clearDeviceMetricsOverride")


def test_pictures_come_first_and_no_column_is_cut_off(page: Browser, window: tuple[int, int]) -> None:
    """With every folded table open: nothing sticks out of the page, and what sticks out of a box can be scrolled to."""
    width, height = window
    inside = page.run("document.documentElement.clientWidth")  # without a scroll bar
    assert width - 20 < inside <= width
    assert page.run("document.documentElement.scrollWidth") == inside
    top = page.run("document.querySelector('figure').getBoundingClientRect().top + scrollY")
    assert top < height / 2, "the first picture begins in the upper half of the first screen"
    assert top < page.run("document.querySelector('.tables').getBoundingClientRect().top + scrollY")
    assert page.run("document.querySelectorAll('table').length") > 8
    assert page.run(CUT_OFF) == []

    # Photos and methods may have long names.
    head = "document.querySelector('figcaption tr:nth-child({}) th')"
    for row, name in (
        (1, "2019_07_14_IMG_20190714_183045_HDR_edited"),
        (2, "restorer_trained_on_our_own_pairs"),
    ):
        kept = page.run(f"{head.format(row)}.textContent")
        page.run(f"{head.format(row)}.textContent = '{name}'")
        assert page.run(CUT_OFF) == []
        page.run(f"{head.format(row)}.textContent = {json.dumps(kept)}")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(page: Browser, window: tuple[int, int], theme: str) -> None:
    """4.5:1, or 3:1 where it is large (WCAG 2.1, 1.4.3)."""
    feature = {"name": "prefers-color-scheme", "value": theme}
    page.call("Emulation.setEmulatedMedia", features=[feature])
    try:
        assert page.run("matchMedia('(prefers-color-scheme: dark)').matches") == (theme == "dark")
        assert page.run(app_runs.CONTRAST) == []
    finally:
        page.call("Emulation.setEmulatedMedia", features=[])


def test_worst_and_best_cases_lead_to_their_pictures(page: Browser) -> None:
    for case in ("worst", "best"):
        rows = f"[...document.querySelectorAll('#{case} tbody tr')]"
        assert page.run(f"{rows}.length") == 3 * 1
        assert page.run(
            f"{rows}.every((r) => document.querySelector(r.querySelector('a').getAttribute('href')))"
        )
    gain = (
        "[...document.querySelectorAll('#{} tbody tr')].map((r) => parseFloat(r.cells[4].textContent)"
        " - parseFloat(r.cells[3].textContent))"
    )
    worst, best = page.run(gain.format("worst")), page.run(gain.format("best"))
    assert worst == sorted(worst)
    assert best == sorted(best, reverse=True)
    assert max(worst) <= min(best)


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
