"""Restoring a suite with a model: each file once, and again only when what made it has changed."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diffrestorer.config import EvaluateConfig
from diffrestorer.data.images import Photo, write_photo
from diffrestorer.evaluation.files import read_pixels, sha256, write_text
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.suites import Item, Suite
from diffrestorer.pipeline import DiffRestorerPipeline


@dataclass
class Record:
    """Who made the files of a method, kept beside them as `made_by.json`.

    Attributes:
        settings: weights, steps, seed and decoder.
        files: `DEGRADATION/IMAGE.png` -> digest of the degraded input, and the seconds that restoring took.
    """

    path: Path
    settings: dict[str, Any]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: int = 0

    @classmethod
    def open(cls, path: Path, settings: dict[str, Any], digests: dict[str, str]) -> "Record":
        """The record at `path`, less the files that are gone or were made otherwise or from another input."""
        record = cls(path, settings)
        if path.is_file():
            saved = json.loads(path.read_text())
            if saved["settings"] == settings:
                record.files = {
                    name: entry
                    for name, entry in saved["files"].items()
                    if entry["lq"] == digests.get(name) and (path.parent / name).is_file()
                }
        record.kept = len(record.files)
        return record

    def save(self) -> None:
        """Writes the record whole."""
        write_text(self.path, json.dumps({"settings": self.settings, "files": self.files}, indent=1) + "\n")

    def summary(self) -> dict[str, Any]:
        """For run.json: the settings, how many files were made now and before, and the mean time of one."""
        seconds = [entry["seconds"] for entry in self.files.values()]
        return {
            **self.settings,
            "restored": len(self.files) - self.kept,
            "kept": self.kept,
            "seconds_per_image": sum(seconds) / len(seconds),
        }


def restore_suite(
    methods: Sequence[Method], suite: Suite, config: EvaluateConfig, device: torch.device, console: Console
) -> dict[str, dict[str, Any]]:
    """Restores what is missing of every method of kind `model`; methods of one source share the model.

    Returns:
        Method name -> for run.json: weights, steps, seed, decoder, dtype, counts, seconds an image.
    """
    models = [method for method in methods if method.kind == "model"]
    digests = {item.file: sha256(item.lq) for item in suite.items}
    summaries = {}
    for source in dict.fromkeys(method.source for method in models):
        pipe = DiffRestorerPipeline.from_pretrained(source).to(device)
        pipe.set_progress_bar_config(disable=True)
        weights = weights_digest(pipe)
        for method in models:
            if method.source == source:
                folder = Path(config.output_dir) / "restored" / method.name
                settings = {
                    "weights": weights, "steps": config.steps, "seed": config.seed, "decoder": method.decoder
                }  # fmt: skip
                record = Record.open(folder / "made_by.json", settings, digests)
                _restore_missing(pipe, method, suite, config, record, digests, console)
                summaries[method.name] = {"source": source, "dtype": str(pipe.dtype), **record.summary()}
    return summaries


def _restore_missing(
    pipe: DiffRestorerPipeline,
    method: Method,
    suite: Suite,
    config: EvaluateConfig,
    record: Record,
    digests: dict[str, str],
    console: Console,
) -> None:
    output_dir = Path(config.output_dir)
    missing = [item for item in suite.items if item.file not in record.files]
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"restore: {method.title}", total=len(suite.items), completed=record.kept)
        for start in range(0, len(missing), config.batch_size):
            batch = missing[start : start + config.batch_size]
            started = time.perf_counter()
            images = _restore(pipe, [read_pixels(item.lq) for item in batch], method.decoder, config)
            seconds = (time.perf_counter() - started) / len(batch)
            for item, image in zip(batch, images, strict=True):
                path = method.output(item, output_dir)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_photo(path, Photo(image))
                record.files[item.file] = {"lq": digests[item.file], "seconds": round(seconds, 4)}
            record.save()
            progress.advance(task, len(batch))


def _restore(
    pipe: DiffRestorerPipeline, lq: list[np.ndarray], decoder: str, config: EvaluateConfig
) -> list[np.ndarray]:
    """Restores uint8 images (h, w, 3) of one size; each draws its noise from a generator of its own."""
    generators = [torch.Generator().manual_seed(config.seed) for _ in lq]
    result = pipe(lq, num_inference_steps=config.steps, generator=generators, decoder=decoder, output_type="np")
    return [np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8) for image in result.images]


def weights_digest(pipe: DiffRestorerPipeline) -> str:
    """SHA-256 over the configuration and the weights of every component: what a model is, wherever it was loaded from."""
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        config = {key: value for key, value in dict(component.config).items() if not key.startswith("_")}
        digest.update(f"{name}{json.dumps(config, sort_keys=True, default=str)}".encode())
        if isinstance(component, torch.nn.Module):
            for key, value in sorted(component.state_dict().items()):
                digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
