"""The state of one command while it runs: its arguments, a count of what became of each file, and its messages."""

import argparse
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from diffrestorer.config.installation import import_without_unused
from diffrestorer.data.storage import find_special_file
from diffrestorer.inference.photos import load_pipeline, printable

EXIT_FAILURES, EXIT_USAGE, EXIT_STOPPED = 1, 2, 130


class StopError(Exception):
    """The end of a command: one sentence (an empty one is not printed), and the exit status."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence, status)
        self.sentence = sentence
        self.status = status


@dataclass(frozen=True)
class Job:
    """A photo to read and the file to write (none for detect)."""

    input: Path
    output: Path | None = None


@dataclass
class Run:
    """One command: its arguments, the files counted by what became of them, and the terminal."""

    arguments: argparse.Namespace
    tally: Counter[str] = field(default_factory=Counter)
    foreign: set[str] = field(default_factory=set)
    """Reasons why photos of some formats cannot be read that have been printed already."""
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def say(self, text: str) -> None:
        """Print a line on stderr, above the progress bar if there is one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def write(self, text: str) -> None:
        """Print a line of results on stdout.

        Raises:
            StopError: nothing more can be written there, as on a full disk.
            BrokenPipeError: its reader has gone.
        """
        try:
            print(text, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            silence_stdout()
            restored = (
                f"; {self.tally['restored']} restored so far stand"
                if "output" in self.arguments
                else ""
            )
            raise StopError(
                f"stdout takes no more ({error.strerror}): stopped{restored}", EXIT_FAILURES
            ) from error

    def report(self, job: Job, status: str, **more: Any) -> None:
        """Count a file by its status and tell whoever needs to know.

        Args:
            job: the file.
            status: `restored`, `detected`, `skipped`, `clean` (left alone), `failed` or `unreadable` (a format that
                nothing here reads).
            more: further fields of its JSON line; `reason` of a failure.
        """
        self.tally[status] += 1
        if status == "failed":
            self.say(f"diffrestorer: {printable(job.input)}: {more['reason']}")
        if self.arguments.json:
            output = {} if job.output is None else {"output": str(job.output)}
            self.write(json.dumps({"input": str(job.input), **output, "status": status, **more}))

    def load(self) -> Any:
        """Load the pipeline that --model, --device, --precision and --compile describe.

        Raises:
            StopError: the device cannot be used or the model cannot be loaded.
        """
        arguments = self.arguments
        if special := find_special_file(Path(arguments.model)):
            sentence = f"the model {arguments.model!r} can't be loaded: {printable(special)} is not a regular file"
            raise StopError(sentence, EXIT_USAGE)
        try:
            import_without_unused()
            return load_pipeline(
                arguments.model, arguments.device, arguments.precision, arguments.compile
            )
        except ValueError as error:
            raise StopError(str(error), EXIT_USAGE) from error


def silence_stdout() -> None:
    """Send what is still buffered for stdout nowhere: Python would fail to write it once more when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
