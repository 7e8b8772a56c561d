"""Scores kept between runs, so that no output is scored twice."""

import json
from pathlib import Path


class ScoreStore:
    """Scores computed so far, kept as lines of JSON below a folder: (output, reference, metric version) -> value.

    Every process appends to a file of its own; a line that was cut off by a kill is ignored.
    """

    def __init__(self, folder: Path, process: int) -> None:
        self.known: dict[tuple[str, str, str], float] = {}
        for file in sorted(folder.glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    output, reference, version, value = json.loads(line)
                    self.known[output, reference, version] = float(value)
                except (ValueError, TypeError):
                    continue
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{process}.jsonl").open("a", encoding="utf-8")
        self._file.write("\n")  # ends a line that a kill cut off

    def add(
        self,
        output: str,
        reference: str,
        version: str,
        value: float,
    ) -> None:
        """Keep a score."""
        self.known[output, reference, version] = value
        self._file.write(json.dumps([output, reference, version, value]) + "\n")

    def flush(self) -> None:
        """Hand what was added to the operating system, so that a kill of the process does not lose it."""
        self._file.flush()

    def close(self) -> None:
        """Close this process's file."""
        self._file.close()
