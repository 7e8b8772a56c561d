"""Figures 7-9 and 11-14: methods side by side on a typical image of each task, with a magnified region.

Nothing is chosen by hand: the image is the one with the median score, the region the one where the methods and the
clean image differ most.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.paper_suites import build_suite, read_settings
from diffrestorer.evaluation.report.paper import PAPER_TABLES
from diffrestorer.evaluation.restoring.outputs import read_pixels
from diffrestorer.evaluation.scoring.metrics import METRICS, PAPER_METRICS
from diffrestorer.evaluation.scoring.scores import base_name, read_scores
from diffrestorer.evaluation.suites import AVERAGED, TASKS, Item

REGION_SHARE = 0.3
"""Side of the magnified region, of the image's shorter side."""

LEADING_METRICS = ("psnr", *(name for name in PAPER_METRICS if name != "fid"))

GRIDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "7": ("Single degradations", TASKS["single"], ()),
    "8": ("Real degradations", TASKS["real"], ()),
    "9": ("Mixed degradations", TASKS["mixed"], ()),
    "11": ("Visual prompts", AVERAGED, tuple(PAPER_TABLES[1].methods)),
    "12": ("Control module", AVERAGED, tuple(PAPER_TABLES[2].methods)),
    "13": ("Losses", AVERAGED, tuple(PAPER_TABLES[3].methods)),
    "14": ("VAE decoders", AVERAGED, tuple(PAPER_TABLES[4].methods)),
}
"""Figure -> title, its tasks, and its methods (empty: all of the evaluation)."""


@dataclass(frozen=True)
class Finished:
    """A finished evaluation: its folder, its items by (task, image), and metric -> score by (task, image, method)."""

    folder: Path
    items: dict[tuple[str, str], Item]
    scores: dict[tuple[str, str, str], dict[str, float]]

    @property
    def methods(self) -> list[str]:
        """The methods' names, in the order of scores.csv; of several runs the first is shown."""
        names = dict.fromkeys(method for _, _, method in self.scores)
        return [name for name in names if name == base_name(name)]


def read_evaluation(folder: Path) -> Finished:
    """Read what scripts/evaluate.py left in its `output_dir`.

    Raises:
        ValueError: there is no finished evaluation.
    """
    if not (folder / "scores.csv").is_file():
        raise ValueError(
            f"evaluation={folder} holds no scores.csv: make it with `diffrestorer evaluate output_dir={folder}`"
        )
    config = read_settings(folder)
    scores: dict[tuple[str, str, str], dict[str, float]] = {}
    table = read_scores(folder / "scores.csv")
    names = [name for name in METRICS if name in table]
    for row in table.to_dict("records"):
        values = {name: row[name] for name in names if not math.isnan(row[name])}
        key = (row["degradation"], row["image"], row["method"])
        scores[key] = values
    suite = build_suite(config)
    items = {(item.degradation, item.image): item for item in suite.items}
    return Finished(folder, items, scores)


def draw_grid(number: str, evaluation: Path) -> Figure:
    """Draw figure 7, 8, 9, 11, 12, 13 or 14.

    Args:
        number: a key of `GRIDS`.
        evaluation: output folder of scripts/evaluate.py.

    Raises:
        ValueError: the evaluation covers none of the figure's tasks or methods.
    """
    title, tasks, wanted = GRIDS[number]
    finished = read_evaluation(evaluation)

    # The figure's methods and tasks that the evaluation has.
    methods = [name for name in wanted or finished.methods if name in finished.methods]
    methods = [name for name in methods if name != "degraded"]
    there = {task for task, _ in finished.items}
    covered = [task for task in tasks if task in there]
    if not covered or not methods:
        needed = (
            "ablation" if wanted else next(suite for suite, names in TASKS.items() if names == tasks)
        )
        raise ValueError(
            f"figure={number} shows {', '.join(wanted or tasks)}, of which evaluation={evaluation} has "
            f"none: run `diffrestorer evaluate --suite {needed}` first"
        )

    # Two rows of axes per task: the whole image, and the region magnified.
    titles = ["degraded"]
    titles += [Method(name, "model").title for name in methods]
    titles += ["clean"]
    figure = Figure(figsize=(1.8 * len(titles), 2.75 * len(covered) + 0.5), layout="constrained")
    figure.suptitle(f"Figure {number}: {title}")
    heights = [2, 1] * len(covered)
    axes = figure.subplots(len(heights), len(titles), squeeze=False, height_ratios=heights)

    for row, task in enumerate(covered):
        item = typical(finished, task, methods)
        images = _images(finished, item, methods)
        shown = [image for image in images[1:] if image is not None]
        region = differing_region(shown)
        for column, image in enumerate(images):
            _draw_image(axes[2 * row][column], axes[2 * row + 1][column], image, region)
            if row == 0 and image is not None:
                axes[0][column].set_title(titles[column], fontsize=9)
        axes[2 * row][0].set_ylabel(f"{task}\n{item.image}", fontsize=8)
    return figure


def _draw_image(
    whole: Axes,
    detail: Axes,
    image: np.ndarray | None,
    region: tuple[int, int, int],
) -> None:
    """Draw an image with its region marked, and the region below; None leaves both places empty."""
    for axis in (whole, detail):
        axis.set_xticks([])
        axis.set_yticks([])
        if image is None:
            axis.set_axis_off()
    if image is None:
        return
    top, left, side = region
    whole.imshow(image)
    whole.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="red", linewidth=1.2))
    detail.imshow(image[top : top + side, left : left + side], interpolation="nearest")


def _images(
    finished: Finished,
    item: Item,
    methods: Sequence[str],
) -> list[np.ndarray | None]:
    folder = finished.folder / "restored"
    restored = [read_pixels(folder / name / item.file) for name in methods]
    return [read_pixels(item.lq), *restored, None if item.gt is None else read_pixels(item.gt)]


def typical(finished: Finished, task: str, methods: Sequence[str]) -> Item:
    """Return the item of a task whose leading score, averaged over the methods, is the (lower) median."""
    items = [item for (name, _), item in finished.items.items() if name == task]
    scores = {}
    for item in items:
        scores[item.image] = [finished.scores[task, item.image, name] for name in methods]

    # The first leading metric that every output has.
    outputs = [score for row in scores.values() for score in row]
    known = [name for name in LEADING_METRICS if all(name in score for score in outputs)]
    if not known:
        return items[0]

    def total(item: Item) -> float:
        return sum(score[known[0]] for score in scores[item.image])

    ordered = sorted(items, key=total)
    return ordered[(len(ordered) - 1) // 2]


def differing_region(
    images: Sequence[np.ndarray],
) -> tuple[int, int, int]:
    """Return top, left and side of the square where images (h, w, 3) differ most, by the largest mean variance."""
    # Variance over the images, mean over the channels.
    stacked = np.stack(images).astype(np.float32)
    variance = stacked.var(axis=0).mean(axis=-1)

    # Its mean over every square that lies within the image.
    height, width = variance.shape
    side = max(8, round(min(height, width) * REGION_SHARE))
    means = cv2.boxFilter(variance, -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_REFLECT)
    valid = means[: height - side + 1, : width - side + 1]
    top, left = np.unravel_index(int(valid.argmax()), valid.shape)
    return int(top), int(left), side
