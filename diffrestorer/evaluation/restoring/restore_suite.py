"""Restoring a suite with models: each file once, and again only when what made it has changed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.progress import Progress

from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.restoring.consistency_decoder import UnavailableError
from diffrestorer.evaluation.restoring.outputs import (
    as_batch,
    as_pixels,
    digest,
    made_whole_by,
    read_pixels,
    write_output,
)
from diffrestorer.evaluation.restoring.precision import gpu_products
from diffrestorer.evaluation.restoring.runners import Runner, Sampling, open_runner
from diffrestorer.evaluation.scoring.suite_scoring import batches_of_one_size
from diffrestorer.evaluation.suites import Item, Suite


def restore_suite(
    methods: Sequence[Method],
    suite: Suite,
    output_dir: Path,
    sampling: Sampling,
    batch_size: int,
    device: torch.device,
    state: PartialState,
    progress: Progress,
) -> tuple[list[Method], dict[str, dict[str, Any]]]:
    """Restore what is missing of every model and baseline; methods of one source share the model's sampling.

    Each process takes its share of the batches. Batches are the same whatever is there already, and however many
    processes there are: a run that was stopped ends with the same files.

    Returns:
        The methods, those that can't run with the reason; and method name -> for run.json: source, what its outputs
        depend on, how many files were made now and before, seconds per image.

    Raises:
        ValueError: a model can't be loaded, or its output is not finite; the message names method and image.
    """
    batches = list(batches_of_one_size(suite.items, batch_size))
    mine = batches[state.process_index :: state.num_processes]
    images = sum(len(batch) for batch in mine)
    reasons: dict[str, str] = {}
    summaries: dict[str, dict[str, Any]] = {}

    # One model at a time: methods of one source go together.
    ours = [method for method in methods if method.kind in ("model", "baseline")]
    ours = [method for method in ours if not method.reason]
    for source in dict.fromkeys(map(_source, ours)):
        group = [method for method in ours if _source(method) == source]
        seed = sampling.seed + group[0].seed_offset
        runner, group = _open(group, replace(sampling, seed=seed), device, reasons)
        if runner is None:
            continue

        titles = ", ".join(method.title for method in group)
        bar = progress.add_task(f"restore: {titles}", total=images)
        work = _Work(runner, group, output_dir)
        with gpu_products(sampling.dtype):
            for batch in mine:
                work.restore(batch)
                progress.advance(bar, len(batch))

        # The counts of all processes together.
        for method in group:
            counts = gather_object([work.counts[method.name]])
            made = {"source": method.source, **runner.settings(method)}
            summaries[method.name] = made | _total(counts)

    # In the order of the methods, whichever source came first.
    known = []
    ordered = {}
    for method in methods:
        known.append(replace(method, reason=reasons.get(method.name, method.reason)))
        if method.name in summaries:
            ordered[method.name] = summaries[method.name]
    return known, ordered


def _total(counts: Sequence[Sequence[int | float]]) -> dict[str, int | float]:
    """Return the counts of all processes together, and the seconds per image."""
    restored, kept, seconds = (sum(column) for column in zip(*counts, strict=True))
    per_image = round(seconds / max(1, restored + kept), 4)
    return {"restored": restored, "kept": kept, "seconds_per_image": per_image}


def _source(method: Method) -> tuple[str, str, int]:
    """Return what methods that share a sampling have in common."""
    return method.kind, method.source, method.seed_offset


def _open(
    methods: list[Method],
    sampling: Sampling,
    device: torch.device,
    reasons: dict[str, str],
) -> tuple[Runner | None, list[Method]]:
    """Open the runner, with the methods that it can serve; the Consistency Decoder may be what is lacking."""
    try:
        return open_runner(methods, sampling, device), methods
    except UnavailableError as error:
        rest = [method for method in methods if method.decoder != "consistency"]
        reasons.update({method.name: str(error) for method in methods if method not in rest})
        return (open_runner(rest, sampling, device), rest) if rest else (None, [])


class _Work:
    """One process's share of a runner's work; `counts`: method name -> made now, kept, seconds of both."""

    def __init__(
        self,
        runner: Runner,
        methods: Sequence[Method],
        output_dir: Path,
    ) -> None:
        self.runner = runner
        self.methods = methods
        self.output_dir = output_dir
        self.settings = {method.name: runner.settings(method) for method in methods}
        self.counts: dict[str, list[int | float]] = {method.name: [0, 0, 0.0] for method in methods}

    def restore(self, batch: Sequence[Item]) -> None:
        """Restore a batch where one of its outputs is missing; files that are there are left as they are.

        Raises:
            ValueError: a method gave numbers that are not finite. The rest of the batch is written before.
        """
        lq = [read_pixels(item.lq) for item in batch]
        inputs = [digest(image) for image in lq]

        # What is there and was made with these settings is kept.
        missing: dict[str, list[int]] = {}
        for method in self.methods:
            for index, item in enumerate(batch):
                seconds = self._kept(method, item, inputs[index])
                if seconds is None:
                    missing.setdefault(method.name, []).append(index)
                else:
                    self._count(method, 1, seconds)
        wanted = [method for method in self.methods if method.name in missing]
        if not wanted:
            return

        # The batch is restored whole, so that an image always has the same neighbours.
        names = [item.file for item in batch]
        restored = self.runner.restore(as_batch(lq), names, wanted)
        invalid = []
        for method in wanted:
            images = restored[method.name].images
            seconds = restored[method.name].seconds
            for index in missing[method.name]:
                pixels = as_pixels(images[index])
                if pixels is None:
                    invalid.append(f"{method.name} turned {names[index]}")
                    continue
                made = dict(self.settings[method.name])
                made |= {"lq": inputs[index], "seconds": round(seconds, 4)}
                file = method.output(batch[index], self.output_dir)
                write_output(file, pixels, made)
                self._count(method, 0, seconds)
        if invalid:
            raise ValueError(
                f"{invalid[0]} into numbers that are not finite (NaN or infinity), and nothing was written for it: "
                f"{self._remedy()}"
            )

    def _remedy(self) -> str:
        """Return the advice for a method whose output is not finite."""
        if any(settings.get("dtype") == "float16" for settings in self.settings.values()):
            return "float16 ends at 65,504, so take dtype=bfloat16 or dtype=float32"
        return "give other weights, or leave the method out"

    def _kept(
        self,
        method: Method,
        item: Item,
        lq: str,
    ) -> float | None:
        """Return the seconds that an output took if it is there whole, made with these settings from this input."""
        made = made_whole_by(method.output(item, self.output_dir))
        if made is None:
            return None
        seconds = made.pop("seconds", None)
        if seconds is None or made != {**self.settings[method.name], "lq": lq}:
            return None
        return float(seconds)

    def _count(self, method: Method, which: int, seconds: float) -> None:
        self.counts[method.name][which] += 1
        self.counts[method.name][2] += seconds
