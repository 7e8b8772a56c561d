"""Hydra's refusals in one sentence, with the nearest valid key."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from diffrestorer.config.constructors import constructor_arguments
from diffrestorer.config.degradations import nearest
from diffrestorer.config.overrides import keys_of, parse


def explain(
    error: Exception,
    overrides: Sequence[str],
    schema: type[Any],
    groups: Mapping[str, Sequence[str]],
    root: str,
) -> str:
    """Return an error of Hydra or OmegaConf in one sentence.

    Args:
        error: raised while a configuration was composed.
        overrides: of the command line.
        schema: dataclass of the configuration.
        groups: group of configs/ -> its files.
        root: name of the root file, for an error that tells no key.

    Raises:
        ValueError: an override cannot be read at all.
    """
    first, *others = (line.strip() for line in str(error).splitlines())
    parsed = dict(zip(overrides, parse(overrides), strict=True))

    # A file of a group that is not there.
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        offer = ", ".join(error.options)
        return f"{group}={name} does not exist{nearest(name, error.options)}; choose one of {offer}"

    # A comma outside a sweep: Hydra lists three ways out, over four lines.
    if first.startswith("Ambiguous value"):
        line = next(line for line, override in parsed.items() if override.is_sweep_override())
        key, _, value = line.partition("=")
        return f"{line!r} gives several values; a list is written {key}=[{value}], a sweep needs -m"

    # A + before a key that is there.
    if first.startswith("Could not append"):
        key = first.split("'")[1]
        return f"{key} has a value already: write {key}=VALUE, without the +, to change it"

    # An unknown key. Hydra wraps the error of OmegaConf, which tells how far the key is known.
    cause = error.__cause__ or error
    known_part = getattr(cause, "full_key", None)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and known_part:
        for line, override in parsed.items():
            if f"{override.key_or_group}.".startswith(f"{known_part}."):
                return _explain_unknown(override.key_or_group, line, schema, groups, _method(overrides))

    # A file of configs/ that does not fit the schema: the second line says why.
    if first.endswith("raised while composing config:"):
        place = first.split(":")[0]
        return f"{place}: {others[0]}"

    # Anything else, such as a value of the wrong type: the first line says it.
    reason = str(cause).strip().splitlines()[0]
    return f"{known_part or root}: {reason}{_nearest_field(cause)}"


def _explain_unknown(
    key: str, line: str, schema: type[Any], groups: Mapping[str, Any], method: str
) -> str:
    """Return what is wrong with an override of a key that the configuration does not have."""
    arguments: list[str] = []
    for name, (_, known) in constructor_arguments({"method": method}).items():
        arguments += [f"{name}.{argument}" for argument in known]

    # Hydra adds to a dictionary only where a + says that this is meant.
    if key in arguments:
        return f"{key} is not set by configs/: write +{line} to add it"

    offer = nearest(key, [*keys_of(schema), *groups, *arguments])
    return f"unknown key {key!r}{offer}; --help lists them all"


def _method(overrides: Sequence[str]) -> str:
    """Return the compared method that a command line names."""
    named = [line.removeprefix("method=") for line in overrides if line.startswith("method=")]
    return named[-1].strip("'\"") if named else "nafnet"


def _nearest_field(cause: BaseException) -> str:
    """Return the nearest field where a dictionary gives a dataclass one that it does not have."""
    kind, key = getattr(cause, "object_type", None), getattr(cause, "key", None)
    names = [item.name for item in fields(kind)] if is_dataclass(kind) else []
    return nearest(str(key), names) if names and key not in names else ""
