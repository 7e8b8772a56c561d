"""The command line: `diffrestorer restore`, `detect`, `app` and `study`.

Results go to stdout, the rest to stderr. Exit status: 0 all done, 1 something failed (named on stderr) or nothing
to do, 2 wrong usage, 130 stopped. Whatever needs torch is imported when it is used, so `--help` answers at once.
"""

import signal
from collections.abc import Sequence
from importlib import import_module

from diffrestorer.cli.job import EXIT_FAILURES, EXIT_STOPPED, Run, StopError, silence_stdout
from diffrestorer.cli.parser import parse
from diffrestorer.cli.threads import leave_busy_cores

_COMMANDS = {"restore": "restoring", "detect": "detecting", "app": "serving", "study": "studying"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; `--help`, `--version` and wrong options end in `SystemExit`."""
    run = Run(parse(argv))
    leave_busy_cores()
    previous = signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # ends like Ctrl-C, with nothing half done
    try:
        return int(import_module(f"diffrestorer.cli.{_COMMANDS[run.arguments.command]}").main(run))
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
