"""What a row found, and how numbers are written."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class Rejected(Exception):  # noqa: N818 - not an error
    """A row that can't be had on this device; the text says why."""


@dataclass
class Report:
    """What a row found.

    Attributes:
        lines: (what, measured, goal) of the table.
        proofs: (what, value, bound, whether it holds).
        data: raw numbers for the JSON.
    """

    lines: list[tuple[str, str, str]] = field(default_factory=list)
    proofs: list[tuple[str, float, str, bool]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def line(self, what: str, measured: str, goal: str = "") -> None:
        """Add a line to the table."""
        self.lines.append((what, measured, goal))

    def at_most(self, what: str, value: float, bound: float) -> None:
        """Prove that a difference is small."""
        self.proofs.append((what, value, f"<= {bound:g}", value <= bound))

    def at_least(self, what: str, value: float, bound: float, unit: str = "dB") -> None:
        """Prove that a signal stands out."""
        self.proofs.append((what, value, f">= {bound:g} {unit}", value >= bound))


def spread(values: Sequence[float], unit: float = 1.0, digits: int = 3) -> str:
    """`median (least - greatest)`, each times `unit`."""
    low, middle, high = (
        unit * value for value in (min(values), statistics.median(values), max(values))
    )
    return f"{middle:.{digits}g} ({low:.{digits}g} - {high:.{digits}g})"


def ratios(others: Sequence[float], own: Sequence[float]) -> list[float]:
    """How many times as fast own rounds were, round by round."""
    return [other / mine for other, mine in zip(others, own, strict=True)]


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB"
