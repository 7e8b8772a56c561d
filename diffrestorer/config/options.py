"""Fields of the configuration with the values they take, and the check of a whole configuration against them."""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

from diffrestorer.config.degradations import nearest

LIMITS = "limits"
"""Key of a field's metadata."""


@dataclass(frozen=True)
class Limits:
    """The values that a field takes. In a list or a dictionary they hold for every member; null is always possible.

    Attributes:
        ge: least number.
        gt: number that all are above.
        le: greatest number.
        lt: number that all are below.
        multiple_of: divisor of all numbers.
        choices: names, where the values are names.
        refused: names that users may expect -> why they are not among the choices.
    """

    ge: int | float | None = None
    gt: int | float | None = None
    le: int | float | None = None
    lt: int | float | None = None
    multiple_of: int | None = None
    choices: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the values in words, such as `at least 1`; nothing where every value is possible."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        bounds = (
            ("at least", self.ge),
            ("more than", self.gt),
            ("at most", self.le),
            ("less than", self.lt),
            ("a multiple of", self.multiple_of),
        )
        return " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)

    def check(self, key: str, value: Any) -> None:
        """Refuse a value that the field does not take.

        Raises:
            ValueError: names the key, the value and what is possible.
        """
        if self.choices:
            if reason := self.refused.get(value):
                raise ValueError(f"{key}={value} is refused: {reason}")
            if value not in self.choices:
                offer = f"{nearest(value, self.choices)}; choose from {', '.join(self.choices)}"
                raise ValueError(f"{key}={value} is not valid{offer}")
        elif not self._holds(value):
            raise ValueError(f"{key}={value} is not possible: it has to be {self.describe()}")

    def _holds(self, value: int | float) -> bool:
        return (
            math.isfinite(value)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )


def option(default: Any, **limits: Any) -> Any:
    """Return a dataclass field with a default and limits.

    Args:
        default: its value, also a list or a dictionary, which every configuration gets a copy of.
        limits: attributes of `Limits`.
    """
    metadata = {LIMITS: Limits(**limits)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def limits_of(item: Field[Any]) -> Limits | None:
    """Return a field's limits; None where every value of its type is possible."""
    return item.metadata.get(LIMITS)


def check_limits(schema: type[Any], values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse a configuration with a key that its dataclass does not have, or a value that its field does not take.

    Args:
        schema: dataclass of the configuration, with others inside.
        values: field name -> value, the inner dataclasses as dictionaries. Interpolations are passed over: whatever
            they stand for is a preset of configs/.
        prefix: how the keys begin.

    Raises:
        ValueError: names the key and the nearest one, or the value and what is possible.
    """
    names = [item.name for item in fields(schema)]
    for name in values:
        if name not in names:
            offer = nearest(f"{prefix}{name}", [f"{prefix}{known}" for known in names])
            raise ValueError(f"unknown key '{prefix}{name}'{offer}; --help lists them all")

    for item in fields(schema):
        key, value = f"{prefix}{item.name}", values.get(item.name)
        limits = limits_of(item)
        if is_dataclass(item.type) and isinstance(value, dict):
            check_limits(item.type, value, f"{key}.")  # type: ignore[arg-type] # a class, not an instance
        elif limits is not None:
            for member in _members(value):
                limits.check(key, member)


def _members(value: Any) -> Iterator[Any]:
    """Yield the members of a list or a dictionary, or the value itself; nothing for null."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    elif value is not None and not str(value).startswith("${"):
        yield value
