"""Scoring sets of saved outputs with FID, each set's features computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.progress import Progress

from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.restoring.outputs import digest, joint_digest, read_pixels
from diffrestorer.evaluation.scoring.fid import FID_DRAWS, FidScorer, fid_warning
from diffrestorer.evaluation.scoring.score_store import ScoreStore
from diffrestorer.evaluation.scoring.scores import NO_REFERENCE, SetScore
from diffrestorer.evaluation.suites import Item, Suite


@dataclass
class SetScoring:
    """The work of scoring a suite's tasks as sets, and what it needs.

    Attributes:
        floor: number of images below which FID is refused.
        version: of the metric, part of a kept score's key.
    """

    suite: Suite
    methods: Sequence[Method]
    output_dir: Path
    fid: FidScorer
    floor: int
    version: str
    store: ScoreStore
    state: PartialState

    def score(
        self,
        progress: Progress,
    ) -> dict[tuple[str, str, str], SetScore | str]:
        """Return (task, method, metric) -> FID with its bootstrap draws, or why there is none.

        Each process takes some tasks.
        """
        tasks = self.suite.degradations
        mine = tasks[self.state.process_index :: self.state.num_processes]
        bar = progress.add_task(self.fid.metric.name, total=len(mine) * len(self.methods))

        found: list[tuple[tuple[str, str, str], SetScore | str]] = []
        for task in mine:
            items = self.suite.of(task)
            clean = [item.gt for item in items if item.gt is not None]
            references = _References(clean)
            refusal = fid_warning(len(items), self.floor) if clean else NO_REFERENCE
            refused = not clean or refusal.startswith("refused")
            for method in self.methods:
                key = (task, method.name, self.fid.metric.name)
                found.append((key, refusal if refused else self._fid(items, method, references)))
                progress.advance(bar)
        return dict(gather_object(found))

    def _fid(
        self,
        items: Sequence[Item],
        method: Method,
        references: "_References",
    ) -> SetScore:
        """Return a kept score, or compute and keep it: the value and each draw under a version of its own."""
        outputs = [method.output(item, self.output_dir) for item in items]
        output = joint_digest(digest(read_pixels(file)) for file in outputs)

        # The value's version is the metric's, each draw has one of its own.
        version = self.version
        versions = [version]
        versions += [f"{version} draw {draw}" for draw in range(FID_DRAWS)]
        keys = [(output, references.digest, version) for version in versions]

        if not all(key in self.store.known for key in keys):
            features = self.fid.features(map(read_pixels, outputs))
            wanted = references.features(self.fid)
            values = [self.fid.distance(features, wanted)]
            values += list(self.fid.draws(features, wanted))
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
