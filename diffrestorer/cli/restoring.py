"""`diffrestorer restore`: photos of one size in a batch, few in memory, disk and networks at work at the same time."""

import argparse
import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from diffrestorer.cli.detecting import warn_without_clean
from diffrestorer.cli.job import EXIT_FAILURES, EXIT_USAGE, Job, Run, StopError
from diffrestorer.cli.planning import plan
from diffrestorer.cli.processes import Processes
from diffrestorer.cli.writing import Writer
from diffrestorer.data.images import ImageError, Photo
from diffrestorer.inference.choices import NOT_CLEAR, ONE_STEP
from diffrestorer.inference.photos import (
    Options,
    check_options,
    detect,
    is_clear,
    printable,
    read,
    reason,
    restore,
)


def main(run: Run) -> int:
    """Restore this process's share of the photos; return the exit status of all processes together."""
    processes = Processes(run.arguments.device)
    jobs = processes.from_first(lambda: plan(run))[processes.index :: processes.count]
    if jobs:
        _check_output(run)
        _restore_all(run, jobs, hidden=processes.index > 0)
    tally = processes.total(run.tally)
    if processes.index == 0:
        summary = f"restored {tally['restored']}, skipped {tally['skipped']} (already there), failed {tally['failed']}"
        if tally["clean"]:
            summary += f", left alone {tally['clean']} ({NOT_CLEAR})"
        if tally["unreadable"]:
            summary += f", cannot read {tally['unreadable']} (formats that are not supported)"
        run.say(summary)
    return EXIT_FAILURES if tally["failed"] else 0


def _check_output(run: Run) -> None:
    """Make the output folder and try to write there: better now than after the first photo."""
    folder = run.arguments.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise StopError(f"can't write to {printable(folder)} ({error.strerror})", EXIT_USAGE) from error


def _options(arguments: argparse.Namespace) -> Options:
    """Return the arguments that say how to restore."""
    names = ("steps", "seed", "decoder", "fidelity", "degradation", "tile", "threshold")
    return Options(**{name: getattr(arguments, name) for name in names})


def _possible(run: Run, pipe: Any, options: Options, hidden: bool) -> Options:
    """Return the options as the model takes them; say where its steps are not those that were asked for."""
    try:
        taken = check_options(pipe, options)
    except ValueError as error:
        raise StopError(str(error), EXIT_USAGE) from error
    if options.steps not in (None, taken.steps) and not hidden:
        run.say(f"diffrestorer: {ONE_STEP}: --steps {options.steps} changes nothing")
    return taken


def _restore_all(run: Run, jobs: Sequence[Job], hidden: bool) -> None:
    """Restore photos in batches of one size under a progress bar, unless it is `hidden`."""
    options, batch_size, pipe = _options(run.arguments), run.arguments.batch_size, run.load()
    if run.arguments.skip_clean and not hidden:
        warn_without_clean(run, pipe)
    options = _possible(run, pipe, options, hidden)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    quiet = hidden or not run.console.is_terminal
    with (
        Progress(*columns, console=run.console, redirect_stdout=False, disable=quiet) as progress,
        Writer(run) as writer,
        closing(_read_ahead(run, jobs, batch_size)) as photos,
    ):
        # Photos wait here, by size, for others to make a batch with.
        bar, done = progress.add_task("", total=len(jobs)), 0
        waiting: dict[tuple[int, ...], list[tuple[Job, Photo]]] = {}
        for job, found in photos:
            photo = _unless_clean(run, pipe, job, found)
            if photo is not None:
                waiting.setdefault(photo.pixels.shape, []).append((job, photo))

            # A batch is complete, no more photos come, or too many of other sizes wait: then the oldest group goes.
            full = [shape for shape, group in waiting.items() if len(group) == batch_size]
            many = sum(map(len, waiting.values())) > 4 * batch_size
            for shape in list(waiting) if job is jobs[-1] else full or list(waiting)[:many]:
                group = waiting.pop(shape)
                _restore_group(
                    writer,
                    pipe,
                    group,
                    options,
                    lambda n: progress.advance(bar, n / (options.steps or 1)),
                )
                done += len(group)
                progress.update(bar, completed=done)

            # Photos that are not restored count as done.
            if photo is None:
                done += 1
                progress.update(bar, completed=done)
            if writer.full:
                break
    if writer.full:
        folder, count = printable(run.arguments.output), run.tally["restored"]
        raise StopError(
            f"{folder} takes no more files: stopped; {count} restored so far stand", EXIT_FAILURES
        )


def _unless_clean(run: Run, pipe: Any, job: Job, photo: Photo | None) -> Photo | None:
    """Return the photo, or None for one that `--skip-clean` leaves alone, which is reported."""
    arguments = run.arguments
    if photo is None or not arguments.skip_clean:
        return photo
    try:
        degradations = detect(pipe, photo)
    except Exception as error:  # as in _restore_group
        run.report(job, "failed", reason=reason(error))
        return None
    if is_clear(degradations, arguments.threshold):
        return photo
    run.report(job, "clean", reason=NOT_CLEAR, degradations=degradations)
    return None


def _read_ahead(run: Run, jobs: Sequence[Job], ahead: int) -> Generator[tuple[Job, Photo | None]]:
    """Yield each job with its photo, or with None if there is nothing to restore; read the next photos meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        reading: deque[tuple[Job, Future[Photo | None]]] = deque()
        for job in [*jobs, *[None] * ahead]:
            if job is not None:
                reading.append((job, reader.submit(_read, run, job)))
            if reading and (job is None or len(reading) > ahead):
                yield _taken(run, *reading.popleft())


def _read(run: Run, job: Job) -> Photo | None:
    """Read a photo; return None if another run has written the output meanwhile."""
    if job.output is not None and os.path.lexists(job.output) and not run.arguments.overwrite:
        return None
    return read(job.input)


def _taken(run: Run, job: Job, future: "Future[Photo | None]") -> tuple[Job, Photo | None]:
    """Wait for a photo; report one that failed or is not needed."""
    try:
        photo = future.result()
    except ImageError as error:
        run.report(job, "failed", reason=str(error))
        return job, None
    if photo is None:
        run.report(job, "skipped", reason="already there")
    return job, photo


def _restore_group(
    writer: Writer,
    pipe: Any,
    group: Sequence[tuple[Job, Photo]],
    options: Options,
    on_step: Callable[[int], object],
) -> None:
    """Restore photos of one size: in one batch, or one by one if that fails."""
    try:
        results = restore(pipe, [photo for _, photo in group], options, on_step)
    except Exception as error:  # networks fail in many ways, for lack of memory above all
        why = reason(error)
    else:
        for (job, _), restored in zip(group, results, strict=True):
            writer.add(job, restored)
        return
    if len(group) == 1:
        return writer.run.report(group[0][0], "failed", reason=why)
    for pair in group:
        _restore_group(writer, pipe, [pair], options, on_step)
