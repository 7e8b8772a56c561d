"""`scripts/evaluate.py`: builds the suite, restores it with each method, scores the files, writes tables and pages."""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from diffrestorer import __version__
from diffrestorer.config.composition import git_commit, save
from diffrestorer.config.schema import EvaluateConfig
from diffrestorer.evaluation.files import read_batch, write_text
from diffrestorer.evaluation.methods import Method, collect_outputs, parse_methods
from diffrestorer.evaluation.report import Report, write_contact_sheet, write_page
from diffrestorer.evaluation.suites import Suite, build_suite
from diffrestorer.evaluation.tables import (
    Score,
    build_tables,
    markdown,
    nan_counts,
    rich_table,
    summary_sentences,
    write_scores,
)
from diffrestorer.metrics import Metric, Scorer, select_metrics


def evaluate(config: EvaluateConfig, console: Console | None = None) -> list[Score]:
    """Compares methods on a suite.

    Writes under `config.output_dir`: `suite/`, `restored/METHOD/`, `scores.csv`, `table.md`, `run.json`, `config.yaml`,
    `index.html` and `contact_sheet.png`. Run again, it restores only what is missing or was made otherwise.

    Args:
        console: where tables and progress go; None: the terminal.

    Returns:
        The rows of scores.csv.

    Raises:
        ValueError: the suite, a method, a metric or a number is not valid; a model or an output can't be used.
    """
    console = console or Console()
    if config.steps < 1 or config.batch_size < 1 or config.seed < 0:
        raise ValueError("steps and batch_size are at least 1, seed at least 0")
    methods = parse_methods(config)
    metrics = select_metrics(config.metrics, config.size)
    device = _device(config.device)
    scorer = Scorer(metrics, device)
    suite = build_suite(config)
    output_dir = Path(config.output_dir)
    save(config, output_dir / "config.yaml")
    collect_outputs(methods, suite, output_dir)
    restoring = {}
    if any(method.kind in ("model", "baseline") for method in methods):
        from diffrestorer.evaluation.restore import restore_suite  # brings the networks, which take seconds

        restoring = restore_suite(methods, suite, config, device, console)
    scores = score_suite(methods, suite, scorer, config, console)
    write_scores(output_dir / "scores.csv", scores, metrics)
    _write_run(output_dir / "run.json", config, device, restoring, nan_counts(scores, metrics))
    _report(suite, methods, metrics, scores, config, console)
    return scores


def score_suite(
    methods: Sequence[Method], suite: Suite, scorer: Scorer, config: EvaluateConfig, console: Console
) -> list[Score]:
    """Scores every saved output: rows ordered by degradation, image, method."""
    output_dir = Path(config.output_dir)
    scores = []
    columns = (TextColumn("score: {task.description}"), BarColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for method in methods:
            task = progress.add_task(method.title, total=len(suite.items))
            for start in range(0, len(suite.items), config.batch_size):
                batch = suite.items[start : start + config.batch_size]
                outputs = read_batch([method.output(item, output_dir) for item in batch])
                values = scorer(outputs, read_batch([item.gt for item in batch]))
                for index, item in enumerate(batch):
                    row = {name: column[index] for name, column in values.items()}
                    scores.append(Score(suite.name, item.degradation, item.image, method.name, row))
                progress.advance(task, len(batch))
    order = {(item.degradation, item.image): index for index, item in enumerate(suite.items)}
    return sorted(scores, key=lambda score: order[score.degradation, score.image])


def _report(
    suite: Suite,
    methods: Sequence[Method],
    metrics: Sequence[Metric],
    scores: Sequence[Score],
    config: EvaluateConfig,
    console: Console,
) -> None:
    output_dir = Path(config.output_dir)
    tables = build_tables(scores, metrics, methods)
    sentences = summary_sentences(tables, nan_counts(scores, metrics))
    caption = (
        f"Suite {suite.name}: {len(suite.images)} photos of {config.size} x {config.size} pixels under "
        f"{len(suite.degradations)} degradations; means over the photos. Seed {config.seed}, {config.steps} steps."
    )
    write_text(output_dir / "table.md", markdown(tables, sentences, caption))
    report = Report(output_dir, suite, methods, scores, tables, sentences, caption)
    write_contact_sheet(report)
    write_page(report)
    for table in tables:
        console.print(rich_table(table))
    for sentence in sentences:
        console.print(sentence, highlight=False)
    console.print(f"Pictures: {output_dir / 'index.html'}", highlight=False, soft_wrap=True)


def _write_run(
    path: Path, config: EvaluateConfig, device: torch.device, restoring: dict[str, dict[str, Any]], nans: dict[str, int]
) -> None:
    """What is needed to repeat the run, and how fast it was."""
    run = {
        "diffrestorer": __version__,
        **{name: version(name) for name in ("torch", "diffusers", "pyiqa", "numpy")},
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "suite": config.suite,
        "seed": config.seed,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "methods": restoring,
        "undefined_scores": nans,
    }
    write_text(path, json.dumps(run, indent=1) + "\n")


def _device(name: str) -> torch.device:
    """Where to compute: `auto` is a GPU if there is one.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name}: {str(error).splitlines()[0]}") from None
