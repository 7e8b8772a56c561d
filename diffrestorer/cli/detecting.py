"""`diffrestorer detect`: the probabilities of each photo's degradations."""

import sys
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from diffrestorer.cli.job import EXIT_FAILURES, Job, Run
from diffrestorer.cli.planning import search
from diffrestorer.config.degradations import CLEAN
from diffrestorer.inference.choices import NOT_CLEAR
from diffrestorer.inference.photos import detect, is_clear, printable, read, reason


def main(run: Run) -> int:
    """Print the probabilities of the model's classes for each photo; return the exit status."""
    jobs = [Job(file) for file, _ in search(run)]
    if jobs:
        _detect_all(run, jobs)
    if run.tally["unreadable"]:
        run.say(f"cannot read {run.tally['unreadable']} (formats that are not supported)")
    return EXIT_FAILURES if run.tally["failed"] else 0


def warn_without_clean(run: Run, pipe: Any) -> None:
    """Say what a model that never saw clean photos cannot tell."""
    if CLEAN not in pipe.classes:
        run.say(
            "diffrestorer: this model was trained without clean photos and is often sure of a degradation where there "
            f"is none; --skip-clean needs one with the class {CLEAN} to be of use"
        )


def _detect_all(run: Run, jobs: list[Job]) -> None:
    """Print a line per photo: of a table for people, or of JSON."""
    pipe = run.load()
    width = max(len(printable(job.input)) for job in jobs)
    columns = {name: max(9, len(name)) for name in pipe.classes}
    widest = max(map(len, ("most probable", NOT_CLEAR, *columns)))
    if not run.arguments.json:
        names = (name.rjust(column) for name, column in columns.items())
        run.write(" ".join(("file".ljust(width), "most probable".ljust(widest), *names)))

    # Where results go to the terminal too, they are printed above the bar.
    columns_of_bar = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shared = sys.stdout.isatty()
    quiet = not run.console.is_terminal
    with Progress(
        *columns_of_bar, console=run.console, redirect_stdout=shared, transient=True, disable=quiet
    ) as progress:
        for job in progress.track(jobs):
            found = _detect(run, pipe, job)
            if found is None or run.arguments.json:
                continue
            row = (f"{found[name]:{column}.1%}" for name, column in columns.items())
            answer = _answer(found, run.arguments.threshold)
            run.write(" ".join((printable(job.input).ljust(width), answer.ljust(widest), *row)))


def _detect(run: Run, pipe: Any, job: Job) -> dict[str, float] | None:
    """Return and report what is found in a photo; one that cannot be read is named, and the rest go on."""
    try:
        found = detect(pipe, read(job.input))
    except Exception as error:  # an ImageError, or a network that fails in one of many ways
        run.report(job, "failed", reason=reason(error))
        return None
    clear = is_clear(found, run.arguments.threshold)
    probable = max(found, key=lambda name: found[name])
    run.report(job, "detected", degradation=probable, clear=clear, degradations=found)
    return found


def _answer(found: dict[str, float], threshold: float) -> str:
    """Return the most probable degradation, or that none is clear."""
    if not is_clear(found, threshold):
        return NOT_CLEAR
    return max((name for name in found if name != CLEAN), key=lambda name: found[name])
