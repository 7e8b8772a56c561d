"""The front of a script's command line: what users type becomes options and overrides as Hydra reads them.

Text is taken as typed. Hydra's grammar gives brackets, spaces, `=` and numbers a meaning, so the values of keys whose
type is text are quoted here. A list of names may be written `a,b`, and some keys may be written `--key value`.
"""

import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from diffrestorer.config.degradations import nearest

HYDRA_OPTIONS = (
    "help",
    "cfg",
    "resolve",
    "package",
    "multirun",
    "config-name",
    "config-dir",
    "info",
    "hydra-help",
)
"""Options of Hydra that a misspelt one is compared with."""

SWEEPS = ("choice(", "range(", "interval(", "glob(", "shuffle(", "sort(", "tag(", "extend_list(")
"""Beginnings of values that are calls of Hydra's grammar."""


@dataclass(frozen=True)
class CommandLine:
    """A command line in Hydra's form.

    Attributes:
        options: Hydra's own, such as `--cfg job`.
        overrides: such as `seed=1`, `+model.unet.dropout=0.1`, `~ablation`.
        multirun: the overrides are a sweep.
    """

    options: list[str]
    overrides: list[str]
    multirun: bool


def read_command_line(
    arguments: Iterable[str], schema: type[Any], flags: Sequence[str] = (), switch: str = ""
) -> CommandLine:
    """Return a command line in Hydra's form.

    Args:
        arguments: the words after the script's name.
        schema: dataclass of the configuration, which tells the keys that are text.
        flags: keys that may also be written `--key value`.
        switch: a key that may also be written `--key`, which sets it to true.

    Raises:
        ValueError: an option is unknown, naming the nearest; a flag has no value; a word is no override.
    """
    options, overrides = _split(arguments, flags, switch)

    # Hydra's own parser knows its options; whatever is left over it would refuse with its usage.
    known, unknown = get_args_parser().parse_known_args(options)
    for word in [*unknown, *known.overrides]:
        if word.startswith("-"):
            offer = nearest(word.lstrip("-"), [*flags, *filter(None, [switch]), *HYDRA_OPTIONS])
            raise ValueError(f"unknown option {word}{offer}; keys are written key=value")
        raise ValueError(f"{word!r} is not of the form key=value")
    return CommandLine(options, take_as_typed(overrides, schema, known.multirun), known.multirun)


def take_as_typed(overrides: Iterable[str], schema: type[Any], multirun: bool = False) -> list[str]:
    """Return overrides in which the values of text are quoted, and lists of text have brackets.

    In a sweep a comma separates the values of two jobs, else two members of a list.
    """
    taken = []
    for override in overrides:
        key, equals, value = override.partition("=")
        hint = type_of_key(schema, key.lstrip("+"))

        # Null, nothing and deletions keep the meaning they have for Hydra.
        as_it_is = not value or value.lower() == "null" or key.startswith("~")
        if _is_text(hint) and not as_it_is:
            value = _quote_parts(value, "{}") if multirun else quote(value)
        elif _is_list_of_text(hint) and not as_it_is:
            value = _bracket(value, multirun)
        taken.append(f"{key}{equals}{value}")
    return taken


def type_of_key(schema: type[Any], key: str) -> Any:
    """Return the type of a dotted key of a dataclass; None where there is no such key."""
    hint: Any = schema
    for name in key.split("."):
        if get_origin(hint) is dict:
            hint = get_args(hint)[1]
        else:
            hint = get_type_hints(hint).get(name) if is_dataclass(hint) else None
    return hint


def keys_of(schema: type[Any], prefix: str = "") -> list[str]:
    """Return every dotted key of a dataclass, with those that hold other dataclasses."""
    keys = []
    for item in fields(schema):
        keys.append(f"{prefix}{item.name}")
        if is_dataclass(item.type):
            keys += keys_of(item.type, f"{prefix}{item.name}.")  # type: ignore[arg-type] # a class, not an instance
    return keys


def quote(value: str) -> str:
    """Return a value in quotes as Hydra's grammar reads them, unless it is quoted already."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value if quoted else QuotedString(value, Quote.single).with_quotes()


def parse(overrides: Sequence[str]) -> list[Override]:
    """Return the overrides as Hydra reads them.

    Raises:
        ValueError: one cannot be read.
    """
    parsed = []
    for line in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(line))
        except HydraException:
            key, equals, value = line.partition("=")
            if not equals:
                raise ValueError(f"{line!r} is not of the form key=value") from None
            raise ValueError(
                f"{line!r} cannot be read; a value with special characters needs quotes in quotes: \"{key}='{value}'\""
            ) from None
    return parsed


def _split(arguments: Iterable[str], flags: Sequence[str], switch: str) -> tuple[list[str], list[str]]:
    """Return options and overrides: words with `=`, and deletions, are overrides wherever they stand."""
    options: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")

        # A flag takes the next word as its value, unless that is an option.
        if word.startswith("--") and name in flags:
            if not equals and rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            if not value:
                raise ValueError(f"--{name} needs a value")
            overrides.append(f"{name}={value}")
        elif switch and word == f"--{switch}":
            overrides.append(f"{switch}=true")
        elif word.startswith("~") or ("=" in word and not word.startswith("-")):
            overrides.append(word)
        else:
            options.append(word)
    return options, overrides


def _bracket(value: str, multirun: bool) -> str:
    """Return a list of text with its members in quotes; in a sweep, as many lists as there are members."""
    # A list in brackets, whose members may hold lists. What is quoted or a mapping is left to Hydra.
    inside = value[1:-1]
    if value.startswith("[") and value.endswith("]") and len(_outer_parts(value)) == 1:
        if not inside or set(inside) & set("{}'\""):
            return value
        return f"[{','.join(quote(part.strip()) for part in _outer_parts(inside))}]"

    # Names with commas between them.
    if multirun:
        return _quote_parts(value, "[{}]")
    return f"[{_quote_parts(value, '{}')}]"


def _quote_parts(value: str, form: str) -> str:
    """Return the parts between commas, each in quotes and in a form. What is quoted or a call stays as it is."""
    if value.startswith(SWEEPS) or any(sign in value for sign in "'\"["):
        return value
    return ",".join(form.format(quote(part.strip())) for part in value.split(","))


def _outer_parts(inside: str) -> list[str]:
    """Return the parts between the commas that stand in no inner brackets."""
    parts, depth = [""], 0
    for sign in inside:
        depth += {"[": 1, "]": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def _is_text(hint: Any) -> bool:
    return hint is str or (
        get_origin(hint) in (Union, types.UnionType) and set(get_args(hint)) == {str, type(None)}
    )


def _is_list_of_text(hint: Any) -> bool:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return any(get_origin(option) is list and get_args(option) == (str,) for option in options)
