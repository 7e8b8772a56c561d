"""Scoring saved outputs: each file decoded once for all metrics, in batches of one size, and never scored twice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.progress import Progress

from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.restoring.outputs import as_batch, digest, image_size, read_pixels
from diffrestorer.evaluation.scoring.consistency import consistency
from diffrestorer.evaluation.scoring.image_scorer import Scorer
from diffrestorer.evaluation.scoring.metrics import Metric
from diffrestorer.evaluation.scoring.score_store import ScoreStore
from diffrestorer.evaluation.scoring.scores import Score
from diffrestorer.evaluation.suites import Item, Suite

Key = tuple[str, str, str]
"""Digests of output and reference, and the metric's version."""


@dataclass
class Scoring:
    """The work of scoring a suite, and what it needs.

    Attributes:
        of_input: the metrics that compare with the input.
        versions: metric name -> version, part of a kept score's key.
    """

    suite: Suite
    methods: Sequence[Method]
    output_dir: Path
    scorer: Scorer
    of_input: Sequence[Metric]
    versions: dict[str, str]
    store: ScoreStore
    batch_size: int
    state: PartialState

    def score_images(self, progress: Progress) -> list[Score]:
        """Return every output's scores, ordered by task, image and method.

        Each process scores its share of the batches and receives the others' scores.

        Raises:
            ValueError: an output is missing, unreadable or of another size than its reference, or too small for every
                metric; the message names it.
        """
        # This process's share of the batches.
        batches = list(batches_of_one_size(self.suite.items, self.batch_size))
        mine = batches[self.state.process_index :: self.state.num_processes]
        images = sum(len(batch) for batch in mine)
        task = progress.add_task("score", total=images * len(self.methods))

        # All methods of a batch in turn: its references are read, and pass through a metric's network, once.
        scores: list[Score] = []
        for batch in mine:
            clean = [item.gt for item in batch if item.gt is not None]
            gt = [read_pixels(file) for file in clean]
            for method in self.methods:
                scores += self._score_batch(batch, method, gt)
                progress.advance(task, len(batch))
            self.store.flush()

        # The order of the suite, whichever process scored what.
        scores = gather_object(scores)
        items = [(item.degradation, item.image) for item in self.suite.items]
        names = [method.name for method in self.methods]
        places = {item: place for place, item in enumerate(items)}
        ranks = {name: rank for rank, name in enumerate(names)}

        def position(score: Score) -> tuple[int, int]:
            return places[score.degradation, score.image], ranks[score.method]

        return sorted(scores, key=position)

    def _score_batch(
        self,
        batch: Sequence[Item],
        method: Method,
        gt: Sequence[np.ndarray],
    ) -> list[Score]:
        """Score a batch whole or not at all, so that resuming does not change a digit."""
        images = [self._read(method, item) for item in batch]
        _check_sizes(method, batch, images, gt)
        metrics = self._applicable(method, batch[0], images[0], bool(gt))
        consistencies = self._consistencies(batch, images)

        # A score is known by the pixels it is about: the same output under another name is not scored again.
        outputs = [digest(image) for image in images]
        references = [digest(image) for image in gt] or [""] * len(batch)
        keys: dict[Metric, list[Key]] = {}
        missing = []
        for metric in metrics:
            versions = [self.versions[metric.name]] * len(batch)
            keys[metric] = list(zip(outputs, references, versions, strict=True))
            if not all(key in self.store.known for key in keys[metric]):
                missing.append(metric)

        # What is missing is computed for the whole batch.
        if missing:
            values = self.scorer(as_batch(images), as_batch(gt) if gt else None, missing)
            for metric in missing:
                for key, value in zip(keys[metric], values[metric.name], strict=True):
                    self.store.add(*key, value)

        scores = []
        for index, item in enumerate(batch):
            found = dict(consistencies[index])
            for metric in metrics:
                found[metric.name] = self.store.known[keys[metric][index]]
            photo = references[index] or f"{item.degradation}/{item.image}"
            scores.append(Score(item.suite, item.degradation, item.image, method.name, found, photo))
        return scores

    def _consistencies(
        self,
        batch: Sequence[Item],
        images: Sequence[np.ndarray],
    ) -> list[dict[str, float]]:
        """Return the scores against the input, by metric, for items that this package degraded."""
        found: list[dict[str, float]] = []
        for item, image in zip(batch, images, strict=True):
            scores = {}
            if self.of_input and item.draw is not None:
                lq = read_pixels(item.lq)
                made_by = f"{digest(lq)} {item.degradation} {item.draw}"
                for metric in self.of_input:
                    key = (digest(image), made_by, self.versions[metric.name])
                    if key not in self.store.known:
                        self.store.add(*key, consistency(image, lq, item.degradation, item.draw))
                    scores[metric.name] = self.store.known[key]
            found.append(scores)
        return found

    def _applicable(
        self,
        method: Method,
        item: Item,
        image: np.ndarray,
        has_reference: bool,
    ) -> list[Metric]:
        """Return the metrics that take such an image, (h, w, 3)."""
        side = min(image.shape[:2])
        large_enough = [metric for metric in self.scorer.metrics if side >= metric.min_side]
        if self.scorer.metrics and not large_enough:
            raise ValueError(
                f"{method.name}: no metric accepts {item.file} ({_size(image)}): it is too small"
            )
        return [metric for metric in large_enough if has_reference or not metric.needs_reference]

    def _read(self, method: Method, item: Item) -> np.ndarray:
        file = method.output(item, self.output_dir)
        if not file.is_file():
            raise ValueError(f"{method.name}: {file} is missing; restore first (leave out only=score)")
        return read_pixels(file)


def batches_of_one_size(
    items: Sequence[Item],
    batch_size: int,
) -> Iterator[list[Item]]:
    """Yield batches of one task and one size, the same however many are done already or processes share them."""
    groups: dict[tuple[str, tuple[int, int]], list[Item]] = {}
    for item in items:
        key = (item.degradation, image_size(item.lq))
        groups.setdefault(key, []).append(item)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _check_sizes(
    method: Method,
    batch: Sequence[Item],
    images: Sequence[np.ndarray],
    gt: Sequence[np.ndarray],
) -> None:
    for item, image, reference in zip(batch, images, gt or images, strict=True):
        if image.shape != reference.shape:
            raise ValueError(
                f"{method.name}: {item.file} is {_size(image)} and its reference {_size(reference)}; restore it "
                "at the reference's size"
            )


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
