"""What one command knows while it runs: its arguments, what became of each file so far, and how it says so."""

import argparse
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from diffrestorer.inference.photos import load_pipeline, printable

EXIT_FAILURES, EXIT_USAGE, EXIT_STOPPED = 1, 2, 130


class StopError(Exception):
    """What ends a command: one sentence (an empty one is not said), and the exit status."""

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
    """What one command has done so far, and how it says so."""

    arguments: argparse.Namespace
    tally: Counter[str] = field(default_factory=Counter)
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def say(self, text: str) -> None:
        """A line on stderr, above the progress bar if there is one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def report(self, job: Job, status: str, **more: Any) -> None:
        """Counts a file as restored, detected, skipped or failed (with a reason), and tells whoever needs to know."""
        self.tally[status] += 1
        if status == "failed":
            self.say(f"diffrestorer: {printable(job.input)}: {more['reason']}")
        if self.arguments.json:
            output = {} if job.output is None else {"output": str(job.output)}
            print(json.dumps({"input": str(job.input), **output, "status": status, **more}), flush=True)

    def load(self) -> Any:
        """Load the pipeline that --model, --device, --precision and --compile describe."""
        arguments = self.arguments
        try:
            return load_pipeline(arguments.model, arguments.device, arguments.precision, arguments.compile)
        except ValueError as error:
            raise StopError(str(error), EXIT_USAGE) from error
