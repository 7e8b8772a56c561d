"""Restoring a suite with models: each file once, and again only when what made it has changed."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diffrestorer.baselines.catalog import load_baseline
from diffrestorer.config.schema import EvaluateConfig
from diffrestorer.data.images import Photo, write_photo
from diffrestorer.evaluation.files import read_batch, sha256, write_text
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.suites import Item, Suite
from diffrestorer.pipeline import DiffRestorerPipeline


@dataclass
class Record:
    """Who made the files of a method, kept beside them as `made_by.json`.

    Attributes:
        settings: weights and seed; of our own models steps and decoder too.
        files: `DEGRADATION/IMAGE.png` -> digest of the degraded input, and the seconds that restoring took.
        kept: how many of them were there already.
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

    def write(self, item: Item, image: np.ndarray, lq_digest: str, seconds: float) -> None:
        """Writes an output, uint8 (h, w, 3); `save` makes it count."""
        path = self.path.parent / item.file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_photo(path, Photo(image))
        self.files[item.file] = {"lq": lq_digest, "seconds": round(seconds, 4)}

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
            "seconds_per_image": round(sum(seconds) / len(seconds), 4),
        }


def restore_suite(
    methods: Sequence[Method], suite: Suite, config: EvaluateConfig, device: torch.device, console: Console
) -> dict[str, dict[str, Any]]:
    """Restores what is missing of every model and baseline; methods of one source share the model's sampling.

    Returns:
        Method name -> for run.json: source, dtype, weights, steps, seed, decoder, counts, seconds an image.

    Raises:
        ValueError: a model can't be loaded.
    """
    models = [method for method in methods if method.kind == "model"]
    digests = {item.file: sha256(item.lq) for item in suite.items}
    summaries: dict[str, dict[str, Any]] = {}
    for source in dict.fromkeys(method.source for method in models):
        pipe = DiffRestorerPipeline.from_pretrained(source).to(device)
        pipe.set_progress_bar_config(disable=True)
        weights = weights_digest(pipe.components)
        records: dict[Method, Record] = {}
        for method in models:
            if method.source == source:
                settings = {"weights": weights, "steps": config.steps, "seed": config.seed, "decoder": method.decoder}
                records[method] = Record.open(_record_path(config, method), settings, digests)
        _restore_missing(pipe, suite, config, records, digests, console)
        dtype = str(pipe.dtype).removeprefix("torch.")
        summaries |= {m.name: {"source": source, "dtype": dtype, **r.summary()} for m, r in records.items()}
    for method in methods:
        if method.kind == "baseline":
            summaries[method.name] = _restore_with_baseline(method, suite, config, digests, device, console)
    return {method.name: summaries[method.name] for method in methods if method.name in summaries}


def _record_path(config: EvaluateConfig, method: Method) -> Path:
    return Path(config.output_dir) / "restored" / method.name / "made_by.json"


def _restore_with_baseline(
    method: Method,
    suite: Suite,
    config: EvaluateConfig,
    digests: dict[str, str],
    device: torch.device,
    console: Console,
) -> dict[str, Any]:
    source = Path(method.source)
    model = load_baseline(source, method.name if source.is_file() else None).to(device)
    settings = {"weights": weights_digest({"network": model}), "seed": config.seed}
    record = Record.open(_record_path(config, method), settings, digests)
    missing = [item for item in suite.items if item.file not in record.files]
    with _progress(console) as progress:
        task = progress.add_task(f"restore: {method.title}", total=len(missing))
        for start in range(0, len(missing), config.batch_size):
            batch = missing[start : start + config.batch_size]
            started = time.perf_counter()
            restored = model.restore(read_batch([item.lq for item in batch]).to(device), config.seed).float().cpu()
            seconds = (time.perf_counter() - started) / len(batch)
            for item, image in zip(batch, _to_uint8(restored), strict=True):
                record.write(item, image, digests[item.file], seconds)
            record.save()
            progress.advance(task, len(batch))
    return {"source": method.source, "dtype": str(model.dtype).removeprefix("torch."), **record.summary()}


def _to_uint8(images: Float[torch.Tensor, "b 3 h w"]) -> list[np.ndarray]:
    arrays = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [np.ascontiguousarray(array) for array in arrays]


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _restore_missing(
    pipe: DiffRestorerPipeline,
    suite: Suite,
    config: EvaluateConfig,
    records: dict[Method, Record],
    digests: dict[str, str],
    console: Console,
) -> None:
    """Each image draws its noise from a generator of its own, so that batches don't change a result."""
    missing = [item for item in suite.items if any(item.file not in record.files for record in records.values())]
    with _progress(console) as progress:
        task = progress.add_task(f"restore: {', '.join(method.title for method in records)}", total=len(missing))
        for start in range(0, len(missing), config.batch_size):
            batch = missing[start : start + config.batch_size]
            generators = [torch.Generator().manual_seed(config.seed) for _ in batch]
            started = time.perf_counter()
            sampled = pipe.sample(read_batch([item.lq for item in batch]), config.steps, generators)
            sampling = time.perf_counter() - started
            for method, record in records.items():
                if all(item.file in record.files for item in batch):
                    continue
                started = time.perf_counter()
                restored = pipe.decode(sampled, method.decoder).float().cpu()
                seconds = (sampling + time.perf_counter() - started) / len(batch)
                for item, image in zip(batch, _to_uint8(restored), strict=True):
                    if item.file not in record.files:
                        record.write(item, image, digests[item.file], seconds)
                record.save()
            progress.advance(task, len(batch))


def weights_digest(components: Mapping[str, Any]) -> str:
    """SHA-256 over configuration and weights of every component: what a model is, wherever it was loaded from."""
    digest = hashlib.sha256()
    for name, component in sorted(components.items()):
        config = {key: value for key, value in dict(component.config).items() if not key.startswith("_")}
        digest.update(f"{name}{json.dumps(config, sort_keys=True, default=str)}".encode())
        if isinstance(component, torch.nn.Module):
            for key, value in sorted(component.state_dict().items()):
                digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
