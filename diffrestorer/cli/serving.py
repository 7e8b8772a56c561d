"""`diffrestorer app`: the web page."""

from diffrestorer.app.server import serve
from diffrestorer.cli.job import EXIT_USAGE, Run, StopError


def main(run: Run) -> int:
    """Serve the page until Ctrl-C or SIGTERM; return the exit status."""
    host, port, names = run.arguments.host, run.arguments.port, run.arguments.allow_host
    try:
        serve(
            run.load,
            host,
            port,
            lambda address: run.say(f"DiffRestorer is at {address} (Ctrl-C ends it)"),
            names,
        )
    except ImportError as error:
        raise StopError(
            'the web page needs Gradio: pip install "diffrestorer[app]"', EXIT_USAGE
        ) from error
    except ValueError as error:
        raise StopError(str(error), EXIT_USAGE) from error
    except KeyboardInterrupt:
        run.say("stopped")
    return 0
