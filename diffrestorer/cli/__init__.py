"""The command line: `diffrestorer restore`, `detect`, `app` and `study`.

Results go to stdout, the rest to stderr. Exit status: 0 all done, 1 something failed (named on stderr) or nothing
to do, 2 wrong usage, 130 stopped. Whatever needs torch is imported when it is used: `--help` answers at once.
"""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from diffrestorer.cli.job import EXIT_FAILURES, EXIT_STOPPED, Run, StopError
from diffrestorer.cli.parser import parse

_COMMANDS = {"restore": "restoring", "detect": "detecting", "app": "serving", "study": "studying"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status; `--help`, `--version` and wrong options end in `SystemExit`."""
    run = Run(parse(argv))
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, with nothing half done
    try:
        return int(import_module(f"diffrestorer.cli.{_COMMANDS[run.arguments.command]}").main(run))
    except StopError as error:
        if error.sentence:
            run.say(f"diffrestorer: {error.sentence}")
        return error.status
    except KeyboardInterrupt:
        run.say(f"stopped; {run.tally['restored']} restored so far stand" if "output" in run.arguments else "stopped")
        return EXIT_STOPPED
    except BrokenPipeError:  # the reader of stdout has gone; keep Python from writing to it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURES
    finally:
        signal.signal(signal.SIGTERM, previous)
