"""The images that page and contact sheet show, and which outputs are the worst and the best."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.report.comparison import Comparison
from diffrestorer.evaluation.report.tables import Table
from diffrestorer.evaluation.scoring.metrics import METRICS
from diffrestorer.evaluation.scoring.scores import Score
from diffrestorer.evaluation.suites import Item, Suite

LEADING_METRICS = ("psnr", "lpips", "dists", "niqe")
"""The first one that a method's images have decides which are its worst and its best."""


@dataclass(frozen=True)
class Report:
    """The content of page and sheet.

    Attributes:
        output_dir: holds the outputs, and receives index.html and contact_sheet.png.
        sentences: conclusions from the tables. caption: one sentence on what was compared.
        cards: number of images of each task that get a card.
        unavailable: metric or task that is lacking -> the reason, and what to do about it.
        comparisons: the paper's tables that the suite covers.
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
    def _values(
        self,
    ) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
        values: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
        for score in self.scores:
            values.setdefault((score.degradation, score.image), {})[score.method] = score.values
        return values

    @property
    def restoring(self) -> list[Method]:
        """The methods that change the image: all but the degraded input."""
        return [method for method in self.methods if method.kind != "degraded"]

    def values(
        self,
        item: Item,
    ) -> dict[str, dict[str, float]]:
        """Return method name -> metric name -> score of its output for one item."""
        return self._values[item.degradation, item.image]

    def leading_metric(self, item: Item, method: Method) -> str | None:
        """Return the metric that decides how bad an output is; None where it has none of them."""
        own = self.values(item)[method.name]
        return next((name for name in LEADING_METRICS if name in own), None)

    def badness(self, item: Item, method: Method) -> float:
        """Return how bad an output is: by the leading metric, relative to the degraded input where that was scored."""
        name = self.leading_metric(item, method)
        if name is None:
            return 0.0
        values = self.values(item)
        before = values.get("degraded", {}).get(name, 0.0)
        sign = 1 if METRICS[name].lower_is_better else -1
        badness = sign * (values[method.name][name] - before)
        return float("inf") if np.isnan(badness) else badness

    def shown(self, degradation: str) -> list[Item]:
        """Return the items with a card: all, or else the worst, the best and the first others, in the suite's order."""
        items = self.suite.of(degradation)
        if len(items) <= self.cards or not self.restoring:
            return items[: self.cards]

        # Half of the cards are the worst under any method, one is the best under any, the others come in order.
        def worst_under_any(item: Item) -> float:
            return max(self.badness(item, method) for method in self.restoring)

        def best_under_any(item: Item) -> float:
            return min(self.badness(item, method) for method in self.restoring)

        worst = sorted(items, key=worst_under_any, reverse=True)
        chosen = worst[: (self.cards + 1) // 2]
        if len(chosen) < self.cards:
            chosen.append(min((item for item in items if item not in chosen), key=best_under_any))
        others = [item for item in items if item not in chosen]
        chosen += others[: self.cards - len(chosen)]
        return [item for item in items if item in chosen]


def card_text(metric: str, value: float) -> str:
    """Format a score as cards and sheets print it."""
    return f"{value:.2f} dB" if metric == "psnr" else f"{value:.3f}"
