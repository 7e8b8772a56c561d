"""Scoring saved outputs: each file decoded once for all metrics, in batches of one size, and never scored twice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.progress import Progress

from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.restoring.outputs import as_batch, digest, image_size, joint_digest, read_pixels
from diffrestorer.evaluation.scoring.consistency import consistency
from diffrestorer.evaluation.scoring.fid import FID_DRAWS, FidScorer, fid_warning
from diffrestorer.evaluation.scoring.image_scorer import Scorer
from diffrestorer.evaluation.scoring.metrics import Metric
from diffrestorer.evaluation.scoring.score_store import ScoreStore
from diffrestorer.evaluation.scoring.scores import NO_REFERENCE, Score, SetScore
from diffrestorer.evaluation.suites import Item, Suite


@dataclass
class Scoring:
    """The work of scoring a suite, and what it needs.

    Attributes:
        of_input: the metrics that compare with the input.
        versions: metric name -> version, part of a kept score's key.
        fid: None where FID is not asked for or not available.
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
    fid: FidScorer | None = None
    fid_floor: int = 0

    def score_images(self, progress: Progress) -> list[Score]:
        """Return every output's scores, ordered by task, image and method.

        Each process scores its share of the batches and receives the others' scores.

        Raises:
            ValueError: an output is missing, unreadable or of another size than its reference, or too small for every
                metric; the message names it.
        """
        batches = list(batches_of_one_size(self.suite.items, self.batch_size))
        mine = batches[self.state.process_index :: self.state.num_processes]
        task = progress.add_task("score", total=sum(map(len, mine)) * len(self.methods))

        # All methods of a batch in turn: its references are read, and pass through a metric's network, once.
        scores: list[Score] = []
        for batch in mine:
            gt = [read_pixels(item.gt) for item in batch if item.gt is not None]
            for method in self.methods:
                scores += self._score_batch(batch, method, gt)
                progress.advance(task, len(batch))
            self.store.flush()

        # The order of the suite, whichever process scored what.
        scores = gather_object(scores)
        order = {(item.degradation, item.image): index for index, item in enumerate(self.suite.items)}
        rank = {method.name: index for index, method in enumerate(self.methods)}
        return sorted(scores, key=lambda s: (order[s.degradation, s.image], rank[s.method]))

    def _score_batch(self, batch: Sequence[Item], method: Method, gt: Sequence[np.ndarray]) -> list[Score]:
        """Score a batch whole or not at all, so that resuming does not change a digit."""
        images = [self._read(method, item) for item in batch]
        _check_sizes(method, batch, images, gt)
        metrics = self._applicable(method, batch[0], images[0], bool(gt))
        consistencies = self._consistencies(batch, images)

        # A score is known by the pixels it is about: the same output under another name is not scored again.
        outputs = [digest(image) for image in images]
        references = [digest(image) for image in gt] or [""] * len(batch)
        pairs = list(zip(outputs, references, strict=True))
        keys = {metric: [(*pair, self.versions[metric.name]) for pair in pairs] for metric in metrics}

        missing = [metric for metric in metrics if any(key not in self.store.known for key in keys[metric])]
        if missing:
            values = self.scorer(as_batch(images), as_batch(gt) if gt else None, missing)
            for metric in missing:
                for key, value in zip(keys[metric], values[metric.name], strict=True):
                    self.store.add(*key, value)

        scores = []
        for index, item in enumerate(batch):
            found = {metric.name: self.store.known[keys[metric][index]] for metric in metrics}
            found |= consistencies[index]
            scores.append(Score(item.suite, item.degradation, item.image, method.name, found))
        return scores

    def _consistencies(self, batch: Sequence[Item], images: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """Return the scores against the input, by metric, for items that this package degraded."""
        found: list[dict[str, float]] = []
        for item, image in zip(batch, images, strict=True):
            scores = {}
            if self.of_input and item.draw is not None:
                lq = read_pixels(item.lq)
                for metric in self.of_input:
                    key = (digest(image), f"{digest(lq)} {item.degradation} {item.draw}", self.versions[metric.name])
                    if key not in self.store.known:
                        self.store.add(*key, consistency(image, lq, item.degradation, item.draw))
                    scores[metric.name] = self.store.known[key]
            found.append(scores)
        return found

    def _applicable(self, method: Method, item: Item, image: np.ndarray, has_reference: bool) -> list[Metric]:
        """Return the metrics that take such an image, (h, w, 3)."""
        large_enough = [metric for metric in self.scorer.metrics if min(image.shape[:2]) >= metric.min_side]
        if self.scorer.metrics and not large_enough:
            raise ValueError(f"{method.name}: no metric accepts {item.file} ({_size(image)}): it is too small")
        return [metric for metric in large_enough if has_reference or not metric.needs_reference]

    def _read(self, method: Method, item: Item) -> np.ndarray:
        file = method.output(item, self.output_dir)
        if not file.is_file():
            raise ValueError(f"{method.name}: {file} is missing; restore first (leave out only=score)")
        return read_pixels(file)

    def score_sets(self, progress: Progress) -> dict[tuple[str, str, str], SetScore | str]:
        """Return (task, method, `fid`) -> FID with its bootstrap draws, or why there is none.

        Each process takes some tasks.
        """
        assert self.fid is not None
        tasks = self.suite.degradations
        mine = tasks[self.state.process_index :: self.state.num_processes]
        bar = progress.add_task("FID", total=len(mine) * len(self.methods))

        found: list[tuple[tuple[str, str, str], SetScore | str]] = []
        for task in mine:
            items = self.suite.of(task)
            references = _References([item.gt for item in items if item.gt is not None])
            refusal = NO_REFERENCE if items[0].gt is None else fid_warning(len(items), self.fid_floor)
            refused = items[0].gt is None or refusal.startswith("refused")
            for method in self.methods:
                value = refusal if refused else self._fid(items, method, references)
                found.append(((task, method.name, "fid"), value))
                progress.advance(bar)
        return dict(gather_object(found))

    def _fid(self, items: Sequence[Item], method: Method, references: "_References") -> SetScore:
        """Return a kept score, or compute and keep it: the value and each draw under a version of its own."""
        assert self.fid is not None
        outputs = [method.output(item, self.output_dir) for item in items]
        of = joint_digest(digest(read_pixels(file)) for file in outputs)
        version = self.versions["fid"]
        keys = [(of, references.digest, f"{version}{end}") for end in ("", *(f" draw {i}" for i in range(FID_DRAWS)))]
        if any(key not in self.store.known for key in keys):
            features, wanted = self.fid.features(map(read_pixels, outputs)), references.features(self.fid)
            values = [self.fid.distance(features, wanted), *self.fid.draws(features, wanted)]
            for key, value in zip(keys, values, strict=True):
                self.store.add(*key, float(value))
            self.store.flush()
        value, *draws = (self.store.known[key] for key in keys)
        return SetScore(len(items), value, np.array(draws))


class _References:
    """The clean images of a task: digest and features are computed once for all methods."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self._features: np.ndarray | None = None

    @cached_property
    def digest(self) -> str:
        return joint_digest(digest(read_pixels(file)) for file in self.files)

    def features(self, fid: FidScorer) -> np.ndarray:
        if self._features is None:
            self._features = fid.features(read_pixels(file) for file in self.files)
        return self._features


def batches_of_one_size(items: Sequence[Item], batch_size: int) -> Iterator[list[Item]]:
    """Yield batches of one task and one size, the same however many are done already or processes share them."""
    groups: dict[tuple[str, tuple[int, int]], list[Item]] = {}
    for item in items:
        groups.setdefault((item.degradation, image_size(item.lq)), []).append(item)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _check_sizes(method: Method, batch: Sequence[Item], images: Sequence[np.ndarray], gt: Sequence[np.ndarray]) -> None:
    for item, image, reference in zip(batch, images, gt or images, strict=True):
        if image.shape != reference.shape:
            raise ValueError(
                f"{method.name}: {item.file} is {_size(image)} and its reference {_size(reference)}; restore it "
                "at the reference's size"
            )


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
