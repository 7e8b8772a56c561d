"""`scripts/evaluate.py`: builds the suite, restores it with each method, scores the files, writes tables and pages."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diffrestorer import __version__
from diffrestorer.config.composition import git_commit, save
from diffrestorer.config.evaluating import EvaluateConfig
from diffrestorer.config.options import check_limits
from diffrestorer.data.storage import write_text
from diffrestorer.evaluation.methods import Method, collect_outputs, parse_methods
from diffrestorer.evaluation.paper_suites import build_suite
from diffrestorer.evaluation.report.comparison import compare
from diffrestorer.evaluation.report.export import write_comparison
from diffrestorer.evaluation.report.paper import PAPER_TABLES
from diffrestorer.evaluation.report.report_page import Report, write_page
from diffrestorer.evaluation.report.sheet import write_contact_sheet
from diffrestorer.evaluation.report.tables import build_tables, markdown, rich_table, summary_sentences
from diffrestorer.evaluation.restoring.outputs import made_by
from diffrestorer.evaluation.restoring.precision import check_precision, gpu_products
from diffrestorer.evaluation.scoring.fid import FidScorer, fid_warning
from diffrestorer.evaluation.scoring.metrics import (
    DEFAULT_METRICS,
    METRICS,
    PAPER_METRICS,
    Metric,
    Scorer,
    WeightsError,
    metric_version,
    select_metrics,
)
from diffrestorer.evaluation.scoring.scorer import ScoreStore, Scoring
from diffrestorer.evaluation.scoring.scores import Score, Summary, nan_counts, summarise, write_scores, write_summaries
from diffrestorer.evaluation.suites import SUITES, Suite


@dataclass(frozen=True)
class Evaluation:
    """What one run found.

    Attributes:
        metrics: those that worked. unavailable: metric name -> why it did not.
        methods: those that ran, and those that could not, with the reason.
        restoring: method name -> what its outputs depend on, how many were made now and kept, seconds an image.
    """

    config: EvaluateConfig
    suite: Suite
    methods: list[Method]
    metrics: list[Metric]
    unavailable: dict[str, str]
    scores: list[Score]
    summaries: list[Summary]
    restoring: dict[str, dict[str, Any]]


def evaluate(config: EvaluateConfig, console: Console | None = None) -> list[Score]:
    """Compares methods on a suite.

    Writes under `config.output_dir`: `suite/` (open photos only), `restored/METHOD/`, `scores.csv`, `summary.csv`,
    `table.md`, `tableN.{md,tex,csv}` of the paper's tables that the suite covers, `run.json`, `config.yaml`,
    `index.html` and `contact_sheet.png`. Run again, it restores and scores only what is missing or was made otherwise.
    Under `accelerate launch` or `torchrun` the processes share the work.

    Args:
        console: where tables and progress go; None: the terminal.

    Returns:
        The rows of scores.csv; none with `only=restore`.

    Raises:
        ValueError: the suite, a method, a metric or a number is not valid; a model or an output can't be used.
    """
    check_limits(EvaluateConfig, asdict(config))
    methods = parse_methods(config)
    metrics = select_metrics(config.metrics or suite_metrics(config.suite))
    state = PartialState(cpu=config.device == "cpu")
    device = _device(config.device, state)
    check_precision(config.dtype, device)
    console = console or Console(quiet=not state.is_main_process)
    with state.main_process_first():
        suite = build_suite(config)
    output_dir = Path(config.output_dir)
    if state.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        save(config, output_dir / "config.yaml")
        collect_outputs(methods, suite, output_dir)
    state.wait_for_everyone()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        restoring: dict[str, dict[str, Any]] = {}
        if config.only != "score" and any(method.kind in ("model", "baseline") for method in methods):
            from diffrestorer.evaluation.restoring.restore_suite import (
                restore_suite,  # brings the networks, which take seconds
            )

            methods, restoring = restore_suite(methods, suite, config, device, state, progress)
            state.wait_for_everyone()
        if config.only == "restore":
            return []
        with gpu_products("float32"):
            found = _score(config, suite, methods, metrics, restoring, device, state, progress)
    if state.is_main_process:
        _write(found, console, state, device)
    return found.scores


def suite_metrics(suite: str) -> tuple[str, ...]:
    """The metrics of a suite: those of the demo need no download, the others add the paper's six."""
    return DEFAULT_METRICS if suite == "demo" else (*DEFAULT_METRICS, *PAPER_METRICS)


def _score(
    config: EvaluateConfig,
    suite: Suite,
    methods: list[Method],
    metrics: Sequence[Metric],
    restoring: dict[str, dict[str, Any]],
    device: torch.device,
    state: PartialState,
    progress: Progress,
) -> Evaluation:
    weights = None if config.metric_weights is None else Path(config.metric_weights)
    scorer = Scorer([metric for metric in metrics if not metric.of_sets], device, weights)
    unavailable = dict(scorer.unavailable)
    fid = None
    if METRICS["fid"] in metrics:
        try:
            fid = FidScorer(device, weights)
        except WeightsError as error:
            unavailable["fid"] = str(error)
    working = [metric for metric in metrics if metric.name not in unavailable]
    versions = {metric.name: metric_version(metric, weights) for metric in working}
    output_dir = Path(config.output_dir)
    store = ScoreStore(output_dir / "scores", state.process_index)
    running = [method for method in methods if not method.reason]
    scoring = Scoring(
        suite, running, output_dir, scorer, versions, store, config.batch_size, state, fid, config.fid_floor
    )
    scores = scoring.score_images(progress)
    set_values = {} if fid is None else scoring.score_sets(progress)
    store.close()
    made_with = {method.name: _made_with(method, restoring, versions, config, suite, device) for method in running}
    summaries = summarise(scores, working, set_values, made_with)
    return Evaluation(config, suite, methods, working, unavailable, scores, summaries, restoring)


def _made_with(
    method: Method,
    restoring: dict[str, dict[str, Any]],
    versions: dict[str, str],
    config: EvaluateConfig,
    suite: Suite,
    device: torch.device,
) -> dict[str, str]:
    """What every row of a method depends on; a field that does not apply is empty."""
    settings = restoring.get(method.name) or _kept_settings(method, suite, Path(config.output_dir))
    return {
        "metrics": "; ".join(f"{name}={text}" for name, text in versions.items()),
        **{key: str(settings.get(key, "")) for key in ("weights", "decoder", "sampler", "steps", "seed", "dtype")},
        "suite_seed": str(config.seed) if config.data.root is None else "",
        "device": _device_name(device),
        "git_commit": git_commit() or "",
    }


def _kept_settings(method: Method, suite: Suite, output_dir: Path) -> dict[str, Any]:
    """What made the outputs of a run that only scores: the first one says so."""
    return {} if method.kind == "degraded" else made_by(method.output(suite.items[0], output_dir)) or {}


def _write(found: Evaluation, console: Console, state: PartialState, device: torch.device) -> None:
    """Every file but the images."""
    config, suite, output_dir = found.config, found.suite, Path(found.config.output_dir)
    write_scores(output_dir / "scores.csv", found.scores, found.metrics, found.unavailable)
    write_summaries(output_dir / "summary.csv", found.summaries, found.metrics, found.unavailable)
    _write_run(output_dir / "run.json", found, state, device)
    running = [method for method in found.methods if not method.reason]
    tables = build_tables(found.summaries, found.metrics, running)
    notes = _notes(found)
    unavailable = _unavailable(found)
    sentences = [*notes, *summary_sentences(tables, nan_counts(found.summaries))]
    lacking = [f"{name} is unavailable: {reason}" for name, reason in unavailable.items()]
    caption = _caption(config, suite)
    write_text(output_dir / "table.md", markdown(tables, [*sentences, *lacking], caption))
    comparisons = []
    for paper in PAPER_TABLES:
        if (paper.number == 1) == (suite.name != "ablation") and suite.name != "demo":
            comparison = compare(paper, found.summaries, found.methods, SUITES[suite.name], [*notes, *lacking])
            write_comparison(comparison, output_dir)
            comparisons.append(comparison)
    report = Report(
        output_dir, suite, running, found.scores, tables, sentences, caption, config.cards, unavailable, comparisons
    )
    write_contact_sheet(report)
    write_page(report)
    for table in tables:
        console.print(rich_table(table))
    for sentence in [*sentences, *lacking]:
        console.print(sentence, highlight=False)
    where = ", ".join(
        [*(str(output_dir / f"table{found.paper.number}.md") for found in comparisons), str(output_dir / "index.html")]
    )
    console.print(f"Pictures and tables: {where}", highlight=False, soft_wrap=True)


def _notes(found: Evaluation) -> list[str]:
    """What must stand on every table: other images than the paper's, few images for FID."""
    notes = [found.suite.note] if found.suite.note else []
    if METRICS["fid"] in found.metrics:
        sizes = {task: len(found.suite.of(task)) for task in found.suite.degradations}
        warnings = {task: fid_warning(n, found.config.fid_floor) for task, n in sizes.items()}
        notes += [f"{task}: {warning}" for task, warning in warnings.items() if warning]
    return notes


def _unavailable(found: Evaluation) -> dict[str, str]:
    """Metrics and tasks that are not there, and why."""
    return {name.upper(): reason for name, reason in found.unavailable.items()} | found.suite.missing


def _caption(config: EvaluateConfig, suite: Suite) -> str:
    images = (
        f"{len(suite.items)} pairs"
        if config.data.root
        else f"{len(suite.images)} photos of {config.size} x {config.size} pixels"
    )
    steps = "each model's own number of" if config.steps is None else config.steps
    return (
        f"Suite {suite.name}: {images} under {len(suite.degradations)} degradations; means over the photos. "
        f"Seed {config.seed}, {steps} steps."
    )


def _write_run(path: Path, found: Evaluation, state: PartialState, device: torch.device) -> None:
    """What is needed to repeat the run, and how fast it was."""
    config = found.config
    run = {
        "diffrestorer": __version__,
        **{name: version(name) for name in ("torch", "diffusers", "pyiqa", "numpy")},
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "processes": state.num_processes,
        "suite": config.suite,
        "images": {task: len(found.suite.of(task)) for task in found.suite.degradations},
        "not_prepared": found.suite.missing,
        "seed": config.seed,
        "steps": config.steps,
        "dtype": config.dtype,
        "batch_size": config.batch_size,
        "methods": found.restoring,
        "unavailable_methods": {method.name: method.reason for method in found.methods if method.reason},
        "unavailable_metrics": found.unavailable,
        "undefined_scores": nan_counts(found.summaries),
    }
    write_text(path, json.dumps(run, indent=1) + "\n")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _device(name: str, state: PartialState) -> torch.device:
    """Where to compute: `auto` is this process's GPU if there is one.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device(state.device)
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name}: {str(error).splitlines()[0]}") from None
