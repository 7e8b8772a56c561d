"""The command line: `diffrestorer restore`, `detect`, `app`, `study`, `push`, `export`, and scripts such as `train`.

Results go to stdout, the rest to stderr. Exit status: 0 all done, 1 something failed (named on stderr) or nothing
to do, 2 wrong usage, 130 stopped. Whatever needs torch is imported when it is used, so `--help` answers at once.
"""

import io
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from diffrestorer.cli.commands import find_command, run_command

_MODULES = {
    "restore": "restoring",
    "detect": "detecting",
    "app": "serving",
    "study": "studying",
    "push": "pushing",
    "export": "exporting",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; `--help`, `--version` and wrong options end in `SystemExit`."""
    # The scripts have a command line of their own, Hydra's, and handle signals themselves.
    words = sys.argv[1:] if argv is None else list(argv)
    name, rest = find_command(words)
    if name is not None:
        sys.argv = [f"diffrestorer {name}", *rest]
        run_command(name)
        return 0

    return _run_on_photos(words)


def _run_on_photos(words: Sequence[str]) -> int:
    """Run a command that has options in the usual form; return its exit status."""
    # Imported here, because the scripts refuse a typo before they import NumPy.
    from diffrestorer.cli.job import EXIT_FAILURES, EXIT_STOPPED, Run, StopError, silence_stdout
    from diffrestorer.cli.parser import parse
    from diffrestorer.cli.threads import leave_busy_cores

    # Names may have letters that the terminal has not.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    # SIGTERM ends it like Ctrl-C, with nothing half done.
    run = Run(parse(words))
    leave_busy_cores()
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return int(import_module(f"diffrestorer.cli.{_MODULES[run.arguments.command]}").main(run))
    except StopError as error:
        if error.sentence:
            run.say(f"diffrestorer: {error.sentence}")
        return error.status
    except KeyboardInterrupt:
        run.say(
            f"stopped; {run.tally['restored']} restored so far stand"
            if "output" in run.arguments
            else "stopped"
        )
        return EXIT_STOPPED
    except BrokenPipeError:  # the reader of stdout has gone
        silence_stdout()
        return EXIT_FAILURES
    finally:
        signal.signal(signal.SIGTERM, previous)
