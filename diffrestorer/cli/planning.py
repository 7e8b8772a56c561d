"""From INPUTs to jobs: which photos there are, and where each result goes."""

import os
from collections import Counter
from pathlib import Path

from diffrestorer.cli.job import EXIT_FAILURES, EXIT_USAGE, Job, Run, StopError
from diffrestorer.data.images import find_images
from diffrestorer.inference.photos import printable


def search(run: Run, without: Path | None = None) -> list[tuple[Path, Path]]:
    """The photos of the INPUTs, each with its path below the folder it was found in; nothing inside `without`."""
    found: dict[tuple[str, Path], Path] = {}  # a photo reached twice under one name counts once
    for argument in run.arguments.inputs:
        if not os.path.isdir(argument):
            found.setdefault((os.path.realpath(argument), Path(argument.name)), argument)
            continue
        files = find_images(argument, lambda folder, error: run.report(Job(folder), "failed", reason=str(error)))
        # What an earlier run wrote is no input. (An INPUT that lies inside OUT is searched all the same.)
        skip = without if without is not None and without.is_relative_to(os.path.realpath(argument)) else None
        for file in files:
            if skip is None or not Path(os.path.realpath(file.parent)).is_relative_to(skip):
                found.setdefault((os.path.realpath(file), file.relative_to(argument)), file)
    if not found and not run.tally:
        raise StopError("there are no images in INPUT: nothing to do", EXIT_FAILURES)
    return [(file, name) for (_, name), file in found.items()]


def plan(run: Run) -> list[Job]:
    """What to restore and where to. Reports what is there as skipped, what can't have a place of its own as failed."""
    folder, suffix = run.arguments.output, f".{run.arguments.format}"
    real = Path(os.path.realpath(folder))
    for argument in run.arguments.inputs:
        if os.path.isdir(argument) and Path(os.path.realpath(argument)) == real:
            raise StopError(f"{printable(argument)} is INPUT and OUT; choose another folder for OUT", EXIT_USAGE)
    found = search(run, real)
    names = Counter(name.with_suffix(suffix) for _, name in found)
    owners = {os.path.realpath(file): "an input" for file, _ in found}
    jobs = []
    for file, name in found:
        alone = names[name.with_suffix(suffix)] == 1
        output = folder / (name.with_suffix(suffix) if alone else name.with_name(name.name + suffix))
        job, place = Job(file, output), os.path.realpath(output)
        if place in owners:
            run.report(job, "failed", reason=f"its output {printable(output)} would replace {owners[place]}")
        elif os.path.lexists(output) and not run.arguments.overwrite:
            run.report(job, "skipped", reason="already there")
        else:
            jobs.append(job)
        owners.setdefault(place, f"that of {printable(file)}")
    return jobs
