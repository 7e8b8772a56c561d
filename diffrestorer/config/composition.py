"""How a script's configuration is composed from configs/ and the command line, and checked against its schema.

A script's root file in configs/ names one file of each group (model, data, ablation); `key=value` on the command line
overrides it. Whatever is unknown or of the wrong type is refused in one sentence, before anything is loaded.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffrestorer.config.classes import check_classes, resolve_classes
from diffrestorer.config.degradations import nearest
from diffrestorer.config.hardware_presets import REFUSED, detect_hardware
from diffrestorer.config.schema import CHOICES, DataConfig

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"

Config = TypeVar("Config")


def run(
    root: str,
    schema: type[Config],
    main: Callable[[Config], None],
    flags: Sequence[str] = (),
    switch: str = "",
    explain: Callable[[Sequence[str]], str] = lambda arguments: "",
) -> None:
    """A script's front: composes configs/`root`.yaml with the command line and calls `main` with the typed result.

    Args:
        flags: keys that may also be written `--key value`.
        switch: a key that may also be written `--key`, which sets it to true.
        explain: what `--help` says first of the other arguments.

    Exits with status 2 and one sentence where a key or a value is wrong or `main` raises ValueError.
    """
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write("\n".join(filter(None, (explain(arguments), help_text(root, schema)))) + "\n")
        return
    try:
        arguments = [f"{switch}=true" if switch and word == f"--{switch}" else word for word in arguments]
        main(load(root, schema, _flags_to_overrides(arguments, flags, _groups(root))))
    except ValueError as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {error}\n")
        sys.exit(2)


def load(root: str, schema: type[Config], overrides: Sequence[str] = ()) -> Config:
    """Composes configs/`root`.yaml with overrides into a checked `schema`.

    Raises:
        ValueError: an unknown key or value, naming the nearest valid one; a value of the wrong type.
    """
    groups = _groups(root)
    parsed = _parse(overrides)
    chosen = [line for line, override in zip(overrides, parsed, strict=True) if override.key_or_group in groups]
    for line in chosen:
        _check_group(*line.split("=", 1))
    precision = None
    if "hardware" in groups and not any(line.startswith("hardware=") and line != "hardware=auto" for line in chosen):
        detected = detect_hardware()
        precision = detected.mixed_precision
        chosen = [line for line in chosen if line != "hardware=auto"] + [f"hardware={detected.preset}"]
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            merged = OmegaConf.merge(_settable(schema), compose(root, chosen))
        if precision is not None:
            OmegaConf.update(merged, "train.mixed_precision", precision)
        known = list(_flatten(OmegaConf.to_container(merged)))
        for override in parsed:
            key = override.key_or_group
            if key in groups:
                continue
            if not _is_known(key, known):
                raise ValueError(f"unknown key {key!r}{nearest(key, [*known, *groups])}; --help lists them all")
            OmegaConf.update(merged, key, override.value())
        config = _instantiate(merged)
    except (HydraException, OmegaConfBaseException) as error:
        key = getattr(error, "full_key", None) or root
        raise ValueError(f"{key}: {str(error).splitlines()[0]}") from None
    _check_choices(merged)
    _settle_classes(config)
    return config


def save(config: Any, path: Path) -> None:
    """Writes the resolved config as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def differences(config: Any, path: Path, ignore: Sequence[str]) -> list[str]:
    """Keys in which `config` differs from the one saved at `path`, as `key: old -> new`; `ignore` names prefixes.

    A key that did not exist yet when the file was saved counts as saved with its default.
    """
    defaults, new = (OmegaConf.to_container(OmegaConf.structured(c)) for c in (type(config), config))
    old = _flatten(OmegaConf.to_container(OmegaConf.merge(defaults, OmegaConf.load(path))))
    new = _flatten(new)
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not any(key.startswith(prefix) for prefix in ignore)
    ]


def git_commit() -> str | None:
    """The commit of the checkout this package runs from; None where it runs from an installed copy."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None


def help_text(root: str, schema: type[Any]) -> str:
    """What a script does (the header of its root config), and every key with its default."""
    text = (CONFIG_DIR / f"{root}.yaml").read_text()
    header = [line.removeprefix("#").removeprefix(" ") for line in text.splitlines() if line.startswith("#")]
    defaults = _flatten(OmegaConf.to_container(OmegaConf.structured(load(root, schema))))
    keys = [f"  {key}={'null' if value is None else value}" for key, value in defaults.items()]
    groups = [
        f"  {group}={'|'.join(sorted(path.stem for path in (CONFIG_DIR / group).glob('*.yaml')))}"
        for group in _groups(root)
    ]
    shown_groups = ["", "Groups:", *groups] if groups else []
    return "\n".join([*header, *shown_groups, "", "Keys and their defaults:", *keys])


def _settable(schema: type[Any]) -> DictConfig:
    """The schema's tree, open to overrides: OmegaConf would lock the frozen dataclasses in it."""
    tree = OmegaConf.structured(schema)
    nodes: list[Any] = [tree]
    for node in nodes:
        OmegaConf.set_readonly(node, None)
        keys = node.keys() if isinstance(node, DictConfig) else range(len(node))
        nodes += [node[key] for key in keys if OmegaConf.is_config(node[key])]
    return tree


def _instantiate(node: Any, hint: Any = None) -> Any:
    """The dataclasses of a tree. A list becomes a tuple where the dataclass that holds it says so."""
    if isinstance(node, ListConfig):
        items = [_instantiate(item) for item in node]
        return tuple(items) if get_origin(hint) is tuple else items
    if isinstance(node, DictConfig) and is_dataclass(schema := OmegaConf.get_type(node)):
        hints = get_type_hints(schema)
        return schema(**{str(key): _instantiate(node[key], hints[str(key)]) for key in node})
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node


def _groups(root: str) -> list[str]:
    """The groups of configs/ that a root file names; elsewhere such a key is a plain one (evaluate's model=FOLDER)."""
    text = (CONFIG_DIR / f"{root}.yaml").read_text()
    return [path.name for path in sorted(CONFIG_DIR.iterdir()) if path.is_dir() and f"  - {path.name}:" in text]


def _flags_to_overrides(arguments: Sequence[str], flags: Sequence[str], groups: Sequence[str] = ()) -> list[str]:
    """`--suite mixed` and `--suite=mixed` become `suite=mixed`; a list a,b becomes [a,b] (a bare one is a sweep).

    A key that names a group here (`method` of train_baseline) is no list.
    """
    overrides, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            if name not in flags:
                raise ValueError(f"unknown option --{name}{nearest(name, flags)}; keys are written key=value")
            if not equals and rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            if not value:
                raise ValueError(f"--{name} needs a value")
            argument = f"{name}={value}"
        key, equals, value = argument.partition("=")
        lists = {"method", "metrics", "data.degradations", "data.classes", "degradations"} - set(groups)
        if key in lists and not value.startswith("["):
            value = "[" + ",".join(f"'{item}'" if "=" in item else item for item in value.split(",")) + "]"
        overrides.append(f"{key}{equals}{value}")
    return overrides


def _parse(overrides: Sequence[str]) -> list[Override]:
    parsed = []
    for line in overrides:
        if "=" not in line or line.startswith(("+", "~", "-")):
            raise ValueError(f"{line!r} is not of the form key=value")
        key, value = line.split("=", 1)
        try:
            override = OverridesParser.create().parse_override(line)
        except HydraException:
            raise ValueError(
                f"{line!r} cannot be read; a value with special characters needs quotes in quotes: \"{key}='{value}'\""
            ) from None
        if override.is_sweep_override():
            raise ValueError(f"{line!r} gives several values; a list is written {key}=[{value}]")
        parsed.append(override)
    return parsed


def _check_group(group: str, value: str) -> None:
    options = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
    if value not in options:
        raise ValueError(f"{group}={value} does not exist{nearest(value, options)}; choose one of {', '.join(options)}")


def _check_choices(config: DictConfig | ListConfig) -> None:
    for key, names in CHOICES.items():
        value = OmegaConf.select(config, key)
        for item in value if OmegaConf.is_list(value) else [value]:
            if reason := REFUSED.get(f"{key}={item}"):
                raise ValueError(f"{key}={item} is refused: {reason}")
            if item is not None and item not in names:
                raise ValueError(f"{key}={item} is not valid{nearest(item, names)}; choose from {', '.join(names)}")


def _settle_classes(config: Any) -> None:
    """Checks `data.classes` and `data.degradations` and names what null stands for.

    A stage that goes on from another one takes the classes from that one's model (`training.classes`), which is not
    read here.
    """
    data = getattr(config, "data", None)
    if not isinstance(data, DataConfig):
        return
    if not (hasattr(config, "stage1") or hasattr(config, "teacher")):
        config.data = resolve_classes(data)
    elif data.classes is not None:
        check_classes(data)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping) or not tree:
        return {prefix[:-1]: tree}
    return {key: value for name, branch in tree.items() for key, value in _flatten(branch, f"{prefix}{name}.").items()}


def _is_known(key: str, known: Sequence[str]) -> bool:
    return key in known or any(name.startswith(f"{key}.") for name in known)
