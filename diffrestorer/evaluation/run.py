"""`scripts/evaluate.py`: builds the suite, restores it with each method, scores the files, writes tables and pages."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from diffrestorer.config.composition import save
from diffrestorer.config.evaluating import EvaluateConfig
from diffrestorer.config.options import check_limits
from diffrestorer.evaluation.methods import Method, choose_methods, collect_outputs, parse_methods
from diffrestorer.evaluation.paper_suites import build_suite, stands_on_open_photos
from diffrestorer.evaluation.provenance import join_runs, made_with, write_run
from diffrestorer.evaluation.report.write_report import Findings, write_report
from diffrestorer.evaluation.restoring.precision import check_precision, gpu_products
from diffrestorer.evaluation.scoring.fid import FidScorer
from diffrestorer.evaluation.scoring.image_scorer import Scorer
from diffrestorer.evaluation.scoring.metrics import Metric, select_metrics, suite_metrics
from diffrestorer.evaluation.scoring.pyiqa_networks import WeightsError, metric_version
from diffrestorer.evaluation.scoring.score_store import ScoreStore
from diffrestorer.evaluation.scoring.scores import Score, SetScore, summarise
from diffrestorer.evaluation.scoring.set_scoring import SetScoring
from diffrestorer.evaluation.scoring.suite_scoring import Scoring
from diffrestorer.evaluation.suites import Suite
from diffrestorer.training.launcher import PATIENCE, join_processes


@dataclass(frozen=True)
class Process:
    """This process: the device that it computes on, its place among the others, its progress bars."""

    device: torch.device
    state: PartialState
    progress: Progress


def evaluate(config: EvaluateConfig, console: Console | None = None) -> list[Score]:
    """Compare methods on a suite.

    Writes under `config.output_dir`: `suite/` (open photos only), `restored/METHOD/`, `scores.csv`, `summary.csv`,
    `table.{md,tex}`, `standings.{md,tex,csv}`, `tableN.{md,tex,csv}` of the paper's tables that the suite covers,
    `run.json`, `config.yaml`, `index.html` and `contact_sheet.png`. Run again, it restores and scores only what is
    missing or was made otherwise.
    Under `accelerate launch` or `torchrun` the processes share the work.

    Args:
        config: the settings, see configs/evaluate.yaml.
        console: where tables and progress go; None for the terminal.

    Returns:
        The rows of scores.csv; none with `only=restore`.

    Raises:
        ValueError: the suite, a method, a metric or a number is not valid; a model or an output can't be used.
    """
    # Everything that can be refused is refused before anything is written.
    check_limits(EvaluateConfig, asdict(config))
    entries = choose_methods(config.method, config.suite, config.model, config.ablation)
    methods = parse_methods(entries, config.suite, config.model, config.trained, config.seeds)
    metrics = select_metrics(config.metrics or suite_metrics(config.suite))
    state = join_processes(config.device, PATIENCE)
    device = _device(config.device, state)
    check_precision(config.dtype, device)

    # The first process makes the files that all of them read.
    console = console or Console(quiet=not state.is_main_process)
    with state.main_process_first():
        suite = build_suite(config)
    _check_draws(suite, metrics)
    output_dir = Path(config.output_dir)
    if state.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        save(config, output_dir / "config.yaml")
        collect_outputs(methods, suite, output_dir)
    state.wait_for_everyone()

    # Restore, then score what was restored.
    restoring: dict[str, dict[str, Any]] = {}
    with _progress(console) as progress:
        process = Process(device, state, progress)
        if config.only != "score" and any(method.kind in ("model", "baseline") for method in methods):
            methods, restoring = _restore(config, suite, methods, process)
        if config.only == "restore":
            return []
        with gpu_products("float32"):
            found = _score(config, suite, methods, metrics, restoring, process)

    if state.is_main_process:
        write_run(output_dir / "run.json", config, found, restoring, state, device)
        write_report(
            found, output_dir, _caption(suite, config), config.fid_floor, config.cards, console
        )
    return found.scores


def _restore(
    config: EvaluateConfig, suite: Suite, methods: list[Method], process: Process
) -> tuple[list[Method], dict[str, dict[str, Any]]]:
    # The networks take seconds to import, and scoring alone needs none of them.
    from diffrestorer.evaluation.restoring.restore_suite import restore_suite
    from diffrestorer.evaluation.restoring.runners import Sampling

    sampling = Sampling(config.seed, config.dtype, config.steps, config.consistency_decoder)
    known, restoring = restore_suite(
        methods, suite, Path(config.output_dir), sampling, config.batch_size, process.device, process.state,
        process.progress,
    )  # fmt: skip
    process.state.wait_for_everyone()
    return known, restoring


def _score(
    config: EvaluateConfig,
    suite: Suite,
    methods: list[Method],
    metrics: Sequence[Metric],
    restoring: dict[str, dict[str, Any]],
    process: Process,
) -> Findings:
    # The metrics whose weights can be had.
    weights = None if config.metric_weights is None else Path(config.metric_weights)
    of_input = [metric for metric in metrics if metric.of_input]
    of_images = [metric for metric in metrics if not metric.of_sets and not metric.of_input]
    scorer = Scorer(of_images, process.device, weights)
    unavailable = dict(scorer.unavailable)
    of_sets = []
    for metric in metrics:
        if metric.of_sets:
            try:
                of_sets.append(FidScorer(process.device, weights, metric))
            except WeightsError as error:
                unavailable[metric.name] = str(error)
    working = [metric for metric in metrics if metric.name not in unavailable]
    versions = {metric.name: metric_version(metric, weights) for metric in working}

    # Images one by one, then sets of them.
    output_dir = Path(config.output_dir)
    running = [method for method in methods if not method.reason]
    store = ScoreStore(output_dir / "scores", process.state.process_index)
    scoring = Scoring(
        suite, running, output_dir, scorer, of_input, versions, store, config.batch_size, process.state
    )  # fmt: skip
    scores = scoring.score_images(process.progress)
    set_values: dict[tuple[str, str, str], SetScore | str] = {}
    for fid in of_sets:
        version = versions[fid.metric.name]
        sets = SetScoring(
            suite, running, output_dir, fid, config.fid_floor, version, store, process.state
        )
        set_values |= sets.score(process.progress)
    store.close()

    # Each row with what it depends on.
    depends_on: dict[str, Any] = {}
    for method in running:
        found = made_with(method, restoring, versions, suite, output_dir, process.device)
        depends_on[method.base] = join_runs(depends_on.get(method.base), found)
    summaries = summarise(scores, working, set_values, depends_on)
    return Findings(suite, methods, working, unavailable, scores, set_values, summaries)


def _check_draws(suite: Suite, metrics: Sequence[Metric]) -> None:
    """Check that metrics of the input have an input that can be made again.

    Raises:
        ValueError: none can.
    """
    of_input = [metric.name for metric in metrics if metric.of_input]
    if of_input and not any(item.draw for item in suite.items):
        raise ValueError(
            f"{of_input[0]} degrades outputs again as their inputs were, and none of these inputs was degraded by this "
            f"package: leave {of_input[0]} out of metrics, or prepare clean photos (diffrestorer prepare set=photos)"
        )


def _caption(suite: Suite, config: EvaluateConfig) -> str:
    """Return the sentences above the tables: which images, and how they were restored."""
    images = f"{len(suite.items)} pairs"
    degraded = ""
    if stands_on_open_photos(config):
        images = f"{len(suite.images)} photos of {config.size} x {config.size} pixels"
        degraded = f" of the synthesis {config.synthesis}"
    steps = "each model's own number of" if config.steps is None else config.steps
    return (
        f"Suite {suite.name}: {images} under {len(suite.degradations)} degradations{degraded}; means over the photos. "
        f"{_seeds(config)}, {steps} steps."
    )


def _seeds(config: EvaluateConfig) -> str:
    if config.seeds == 1:
        return f"Seed {config.seed}"
    last = config.seed + config.seeds - 1
    return f"Seeds {config.seed} to {last} of what starts from noise"


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


def _device(name: str, state: PartialState) -> torch.device:
    """Return the device to compute on; `auto` is this process's GPU if there is one.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device(state.device)
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name}: {str(error).splitlines()[0]}") from None
