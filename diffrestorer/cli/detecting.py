"""`diffrestorer detect`: the probabilities of each photo's degradations."""

from typing import Any

from diffrestorer.cli.job import EXIT_FAILURES, Job, Run
from diffrestorer.cli.planning import search
from diffrestorer.inference.photos import detect, printable, read, reason


def main(run: Run) -> int:
    """Print the probabilities of the model's classes for each photo; return the exit status."""
    jobs = [Job(file) for file, _ in search(run)]
    width = max((len(printable(job.input)) for job in jobs), default=0)
    pipe: Any = run.load() if jobs else None
    columns = {name: max(9, len(name)) for name in pipe.classes} if jobs else {}
    widest = max(map(len, ("most probable", *columns)))

    # A table for people, or a JSON line per photo.
    if jobs and not run.arguments.json:
        names = (name.rjust(column) for name, column in columns.items())
        run.write(" ".join(("file".ljust(width), "most probable".ljust(widest), *names)))

    # A photo that cannot be read is named, and the rest go on.
    for job in jobs:
        try:
            found = detect(pipe, read(job.input))
        except Exception as error:  # an ImageError, or a network that fails in one of many ways
            run.report(job, "failed", reason=reason(error))
            continue
        probable = max(found, key=lambda name: found[name])
        run.report(job, "detected", degradation=probable, degradations=found)
        if not run.arguments.json:
            row = (f"{found[name]:{column}.1%}" for name, column in columns.items())
            run.write(" ".join((printable(job.input).ljust(width), probable.ljust(widest), *row)))
    if run.tally["unreadable"]:
        run.say(f"cannot read {run.tally['unreadable']} (formats that are not supported)")
    return EXIT_FAILURES if run.tally["failed"] else 0
