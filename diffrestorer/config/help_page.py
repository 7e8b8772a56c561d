"""The `--help` of a script: its header, its groups, and every key with its default, meaning and limits."""

import ast
import inspect
import math
import textwrap
from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any

from diffrestorer.config.options import Limits, limits_of
from diffrestorer.config.synthesis_ranges import Rule

VALUE_WIDTH = 48
"""Characters of a default, at most."""


def field_texts(schema: type[Any]) -> Mapping[str, str]:
    """Return the text under each field of a dataclass, in one line, by the field's name.

    A field without one has the text of the class it overrides or, where it holds a dataclass, the first sentence of
    that class.
    """
    texts: dict[str, str] = {}

    # Base classes come first: a class may say more of a field that it overrides.
    for part in reversed(schema.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0].body  # type: ignore[attr-defined]
        for statement, following in zip(body, body[1:], strict=False):
            text = _string(following)
            if isinstance(statement, ast.AnnAssign) and text is not None:
                texts[ast.unparse(statement.target)] = " ".join(text.split())

    # What a dataclass inside is for, it says itself.
    for item in fields(schema):
        if item.name not in texts and is_dataclass(item.type):
            texts[item.name] = _summary(item.type)
    return texts


def help_page(
    header: str, groups: Mapping[str, list[str]], schema: type[Any], values: Mapping[str, Any]
) -> str:
    """Return the page.

    Args:
        header: what the script does.
        groups: group of configs/ -> its files.
        schema: dataclass of the script's configuration.
        values: the configuration, with its defaults.
    """
    introduction = [header, ""]
    if groups:
        introduction.append("Groups, each of which sets several keys:")
        introduction += [f"  {group}={'|'.join(names)}" for group, names in groups.items()]
        introduction.append("")
    usage = "Keys, as KEY=VALUE. +KEY=VALUE adds one to a dictionary, -m KEY=A,B runs A, then B, --cfg job prints all:"
    return "\n".join([*introduction, usage, *_section(schema, values, "")])


def _section(schema: type[Any], values: Mapping[str, Any], prefix: str) -> list[str]:
    """Return a line for each field of a dataclass, then the sections of the dataclasses and dictionaries in it."""
    lines: list[str] = []
    inner: list[str] = []
    texts = field_texts(schema)
    for item in fields(schema):
        key = f"{prefix}{item.name}"
        value = values[item.name]
        text = texts.get(item.name, _summary(schema))

        # A dataclass or a dictionary gets a section of its own, after the plain keys.
        if is_dataclass(item.type):
            inner += ["", f"{key}: {text}"]
            inner += _section(item.type, value, f"{key}.")  # type: ignore[arg-type] # a class, not an instance
        elif isinstance(value, Mapping) and value:
            inner += ["", f"{key}: {text}"]
            inner += [_line(name, content) for name, content in flatten(value, f"{key}.")]
        else:
            lines.append(_line(key, value, f"{text} {_limits(item)}"))
    return [*lines, *inner]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of a tree of dictionaries beside their dotted keys. An empty dictionary is a leaf."""
    leaves: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves += flatten(value, f"{prefix}{name}.")
        else:
            leaves.append((f"{prefix}{name}", value))
    return leaves


def _line(key: str, value: Any, text: str = "") -> str:
    shown = "null" if value is None else str(value)
    if shown.startswith("${"):
        shown = "auto"  # found out when the run starts
    if len(shown) > VALUE_WIDTH:
        shown = f"{shown[: VALUE_WIDTH - 3]}..."
    return f"  {f'{key}={shown}':<46} {text}".rstrip()


def _limits(item: Field[Any]) -> str:
    """Return a field's limits in brackets; nothing where it has none."""
    limits = limits_of(item)

    # The parameters of the synthesis state theirs as an annotation.
    for rule in getattr(item.type, "__metadata__", ()):
        if isinstance(rule, Rule):
            limits = Limits(ge=rule.low, le=rule.high if math.isfinite(rule.high) else None)
    return f"({limits.describe()})" if limits is not None else ""


def _summary(schema: Any) -> str:
    return inspect.cleandoc(schema.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _string(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return str(statement.value.value)
    return None
