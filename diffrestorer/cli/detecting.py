"""`diffrestorer detect`: what is wrong with each photo."""

from typing import Any

from diffrestorer.cli.planning import search
from diffrestorer.cli.run import EXIT_FAILURES, Job, Run
from diffrestorer.degradations import DEGRADATIONS
from diffrestorer.photos import detect, printable, read, reason


def main(run: Run) -> int:
    """Tells the degradation probabilities of each photo; returns the exit status."""
    jobs = [Job(file) for file, _ in search(run)]
    width = max((len(printable(job.input)) for job in jobs), default=0)
    pipe: Any = run.load() if jobs else None
    if jobs and not run.arguments.json:
        print("file".ljust(width), "most probable", *(name.rjust(9) for name in DEGRADATIONS))
    for job in jobs:
        try:
            found = detect(pipe, read(job.input))
        except Exception as error:  # an ImageError, or a network that fails in one of many ways
            run.report(job, "failed", reason=reason(error))
            continue
        probable = max(found, key=lambda name: found[name])
        run.report(job, "detected", degradation=probable, degradations=found)
        if not run.arguments.json:
            row = (f"{found[name]:9.1%}" for name in DEGRADATIONS)
            print(printable(job.input).ljust(width), probable.ljust(13), *row, flush=True)
    return EXIT_FAILURES if run.tally["failed"] else 0
