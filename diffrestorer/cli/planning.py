"""From INPUTs to jobs: which photos there are, and where each result goes."""

import os
from collections import Counter
from pathlib import Path

from diffrestorer.cli.job import EXIT_FAILURES, EXIT_USAGE, Job, Run, StopError
from diffrestorer.cli.parser import AUTO
from diffrestorer.data.images import find_images
from diffrestorer.data.storage import fit_name
from diffrestorer.inference.photos import printable

_SAME_FORMAT = {
    **dict.fromkeys((".jpg", ".jpeg", ".jfif", ".heic", ".heif", ".hif"), "jpg"),
    **dict.fromkeys((".tif", ".tiff"), "tif"),
    ".webp": "webp",
}
"""Formats of the results of --format auto, by the input's suffix in lower case; png for any other."""


def output_format(asked: str, file: Path) -> str:
    """Return the format of a photo's result: the one asked for, or with `auto` one that its owner expects.

    A JPEG stays a JPEG, a TIFF a TIFF and a WebP a WebP; HEIC, which many programs cannot read, becomes JPEG. All other
    formats become PNG, which loses nothing.
    """
    if asked != AUTO:
        return asked
    return _SAME_FORMAT.get(file.suffix.lower(), "png")


def search(run: Run, without: Path | None = None) -> list[tuple[Path, Path]]:
    """Return the photos of the INPUTs, each with its path below the folder it was found in.

    Args:
        run: whose INPUTs are searched; folders that cannot be listed, and photos of formats that cannot be read, are
            reported to it.
        without: a folder whose files are left out: what an earlier run wrote is no input.

    Raises:
        StopError: there is nothing to do.
    """
    found: dict[tuple[str, Path], Path] = {}  # a photo reached twice under one name counts once
    for argument in run.arguments.inputs:
        if not os.path.isdir(argument):
            found.setdefault((os.path.realpath(argument), Path(argument.name)), argument)
            continue
        files = find_images(
            argument,
            on_error=lambda folder, error: run.report(Job(folder), "failed", reason=str(error)),
            on_foreign=lambda file, why: _report_foreign(run, file, why, without),
        )

        # An INPUT that lies inside OUT is searched all the same.
        skip = (
            without
            if without is not None and without.is_relative_to(os.path.realpath(argument))
            else None
        )
        for file in files:
            if skip is None or not Path(os.path.realpath(file.parent)).is_relative_to(skip):
                found.setdefault((os.path.realpath(file), file.relative_to(argument)), file)
    if not found and not run.tally:
        raise StopError("there are no images in INPUT: nothing to do", EXIT_FAILURES)
    return [(file, name) for (_, name), file in found.items()]


def _report_foreign(run: Run, file: Path, why: str, without: Path | None) -> None:
    """Count a photo of a format that cannot be read; the first one of each reason is named."""
    if without is not None and Path(os.path.realpath(file)).is_relative_to(without):
        return
    if why not in run.foreign:
        run.say(f"diffrestorer: {printable(file)}: {why}")
    run.foreign.add(why)
    run.report(Job(file), "unreadable", reason=why)


def plan(run: Run) -> list[Job]:
    """Return what to restore and where to.

    Results that are there already are reported as skipped, photos whose result has no place of its own as failed.

    Raises:
        StopError: there is nothing to do, or INPUT and OUT are the same folder.
    """
    folder, asked = run.arguments.output, run.arguments.format
    real = Path(os.path.realpath(folder))
    for argument in run.arguments.inputs:
        if os.path.isdir(argument) and Path(os.path.realpath(argument)) == real:
            raise StopError(
                f"{printable(argument)} is INPUT and OUT; choose another folder for OUT", EXIT_USAGE
            )
    found = search(run, real)

    # Two inputs with one output name keep their suffix.
    suffixes = {name: f".{output_format(asked, file)}" for file, name in found}
    names = Counter(name.with_suffix(suffixes[name]) for _, name in found)
    owners = {os.path.realpath(file): "an input" for file, _ in found}
    jobs = []
    for file, name in found:
        suffix = suffixes[name]
        alone = names[name.with_suffix(suffix)] == 1
        stem = name.with_suffix("").name if alone else name.name
        output = folder / name.with_name(fit_name(stem, suffix))

        # Nothing is written over an input, another's result, or (unless asked) an older result.
        job, place = Job(file, output), os.path.realpath(output)
        if place in owners:
            run.report(
                job, "failed", reason=f"its output {printable(output)} would replace {owners[place]}"
            )
        elif os.path.lexists(output) and not run.arguments.overwrite:
            run.report(job, "skipped", reason="already there")
        else:
            jobs.append(job)
        owners.setdefault(place, f"that of {printable(file)}")
    return jobs
