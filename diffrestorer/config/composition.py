"""Composition of a script's configuration by Hydra, from configs/ and the command line, and its check.

A script's root file in configs/ extends the dataclass of its configuration and names one file of each group (model,
data, ablation). Whatever is unknown, of the wrong type or out of range is refused in one sentence, before anything is
loaded.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra import compose, initialize, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffrestorer.config.classes import check_job_classes, settle_classes
from diffrestorer.config.constructors import check_arguments
from diffrestorer.config.hardware_presets import detect_hardware
from diffrestorer.config.help_page import flatten, help_page
from diffrestorer.config.options import check_limits
from diffrestorer.config.overrides import CommandLine, parse, read_command_line, take_as_typed
from diffrestorer.config.refusals import explain
from diffrestorer.config.scaled_keys import check_scale
from diffrestorer.config.schema import TrainConfig
from diffrestorer.config.typed_trees import open_tree, to_dataclass

CONFIG_DIR = (Path(__file__).resolve().parents[1] / "configs").resolve()
"""In a clone `diffrestorer/configs` is a link to configs/; a wheel holds the files themselves."""

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Environment variable with which Hydra raises errors instead of printing them with advice and status 1."""

TRACEBACKS = os.environ.get(FULL_ERROR) == "1"
"""The user asked for tracebacks, also of errors that are told in one sentence."""

Config = TypeVar("Config")


def run(
    root: str,
    schema: type[Config],
    main: Callable[[Config], None],
    flags: Sequence[str] = (),
    switch: str = "",
    describe: Callable[[Sequence[str]], str] = lambda arguments: "",
) -> None:
    """Run a script: Hydra composes configs/`root`.yaml with the command line, `main` gets the typed result.

    Args:
        root: name of the root file.
        schema: dataclass of the configuration.
        main: called once, or once per job of a sweep (`-m`), whose `output_dir` is then OUTPUT_DIR/NUMBER.
        flags: keys that may also be written `--key value`.
        switch: a key that may also be written `--key`, which sets it to true.
        describe: returns the part of `--help` that depends on the other arguments.

    Exits with status 2 and one sentence where a key or a value is wrong or `main` raises ValueError.
    """
    # Help first, whatever else is on the command line.
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        description = describe(arguments)
        page = help_text(root, schema)
        sys.stdout.write(f"{description}\n{page}\n" if description else f"{page}\n")
        return

    # Then the run. Inside it, `_run_hydra` tells what `main` refuses.
    try:
        line = read_command_line(arguments, schema, flags, switch)
        _check_jobs(root, schema, line)
        _run_hydra(root, schema, main, line)
    except ValueError as error:
        _leave(error)


def load(root: str, schema: type[Config], overrides: Sequence[str] = ()) -> Config:
    """Compose configs/`root`.yaml with overrides into a checked `schema`, also inside a running script.

    Raises:
        ValueError: a key is unknown, naming the nearest; a value is of the wrong type or out of range.
    """
    return _finish(schema, _compose(root, schema, take_as_typed(overrides, schema)))


def save(config: Any, path: Path) -> None:
    """Write the resolved configuration as YAML, whole or not at all; a file that says the same is left alone."""
    text = OmegaConf.to_yaml(OmegaConf.structured(config))
    if path.is_file() and path.read_text() == text:
        return

    written = path.with_name(f".{path.name}.{os.getpid()}")
    written.write_text(text)
    written.replace(path)


def differences(config: Any, path: Path, ignore: Sequence[str]) -> list[str]:
    """Return the keys in which `config` differs from the one saved at `path`, as `key: old -> new`.

    A key that did not exist yet when the file was saved counts as saved with its default.

    Args:
        config: a dataclass.
        path: a file that `save` wrote, now or in an earlier version.
        ignore: prefixes of keys that may differ.
    """
    # A plain tree of the defaults admits keys that the schema does not have any more.
    defaults = OmegaConf.to_container(OmegaConf.structured(type(config)))
    saved: Any = OmegaConf.to_container(OmegaConf.merge(defaults, OmegaConf.load(path)))
    given: Any = OmegaConf.to_container(OmegaConf.structured(config))

    old, new = dict(flatten(saved)), dict(flatten(given))
    compared = [key for key in sorted({*old, *new}) if not key.startswith(tuple(ignore))]
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}" for key in compared if old.get(key) != new.get(key)
    ]


def help_text(root: str, schema: type[Any]) -> str:
    """Return the `--help` of a script: the header of its root file, its groups, and every key with its meaning."""
    lines = (CONFIG_DIR / f"{root}.yaml").read_text().splitlines()
    header = [line.removeprefix("#").removeprefix(" ") for line in lines if line.startswith("#")]

    # The defaults are those of the composed configuration, which may differ from the schema's.
    values: Any = OmegaConf.to_container(_compose(root, schema, []))
    return help_page("\n".join(header), groups_of(root), schema, values)


@functools.cache
def groups_of(root: str) -> dict[str, list[str]]:
    """Return the groups of configs/ that a root file names, each with its files.

    Elsewhere the name of a group is a plain key (evaluate's model=FOLDER).
    """
    tree: Any = OmegaConf.load(CONFIG_DIR / f"{root}.yaml")
    groups = {}
    for entry in tree.get("defaults", []):
        # An entry is the name of a file, or {group: file}. Optional groups follow the others.
        group = "" if isinstance(entry, str) else str(next(iter(entry)))
        if group and group != "hydra" and " " not in group:
            groups[group] = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
    return groups


def preset_value(key: str) -> Any:
    """Return what the preset of configs/hardware for this machine says of a key of `train`: `${preset:KEY}`."""
    detected = detect_hardware()
    if key == "mixed_precision" and detected.mixed_precision is not None:
        return detected.mixed_precision
    return OmegaConf.select(_read_preset(detected.preset), f"train.{key}")


@functools.cache
def _read_preset(name: str) -> Any:
    """Return a file of configs/hardware; a key that it does not set has the schema's default."""
    defaults = {"train": OmegaConf.structured(TrainConfig)}
    return OmegaConf.merge(defaults, OmegaConf.load(CONFIG_DIR / "hardware" / f"{name}.yaml"))


OmegaConf.register_new_resolver("preset", preset_value, replace=True)


def _run_hydra(
    root: str, schema: type[Config], main: Callable[[Config], None], line: CommandLine
) -> None:
    """Hand the command line to `hydra.main`, and tell its refusals in one sentence."""

    def task(composed: DictConfig) -> None:
        settings = HydraConfig.get()
        sweeps = settings.mode == RunMode.MULTIRUN
        try:
            config = _finish(schema, composed)
            if sweeps and hasattr(config, "output_dir"):
                config.output_dir = os.path.relpath(settings.runtime.output_dir)
            _announce()
            main(config)
        except ValueError as error:
            if sweeps:
                raise  # Hydra runs the other jobs first
            _leave(error)
        except OSError as error:
            if sweeps:
                raise
            _leave(ValueError(_explain_file(error)))
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")
            sys.exit(130)

    # Hydra reads sys.argv. It shall raise errors instead of printing them with advice and status 1.
    folder = _register(root, schema)
    sys.argv = [sys.argv[0], *line.options, f"hydra.job.name={root}", *line.overrides]
    os.environ[FULL_ERROR] = "1"
    with _sentences(root, schema, line.overrides):
        hydra.main(version_base="1.3", config_path=folder, config_name=root)(task)()


def _announce() -> None:
    """Say on the first process what the start waits for: PyTorch and the rest take up to a minute on a busy machine."""
    if "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{Path(sys.argv[0]).name}: loading PyTorch and the other libraries\n")
        sys.stderr.flush()


def _leave(error: ValueError) -> NoReturn:
    """End the script with one sentence and status 2, or with the traceback that HYDRA_FULL_ERROR=1 asks for."""
    if TRACEBACKS:
        raise error
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {error}\n")
    sys.exit(2)


def _explain_file(error: OSError) -> str:
    """Return the sentence for a file, a folder or a disk that failed."""
    place, why = error.filename2 or error.filename, error.strerror or error
    if place is None:
        return f"a file cannot be read or written ({why}): mend that, and the same command goes on"
    return f"{place} cannot be read or written ({why}): mend that, and the same command goes on"


def _check_jobs(root: str, schema: type[Any], line: CommandLine) -> None:
    """Check every job of a sweep before the first one runs, and a configuration that is only printed.

    Left to the jobs themselves: sweeps of other sweepers, and configurations that lie elsewhere.
    """
    # What is left to the jobs, or to the one run.
    runs_once = not line.multirun and not line.options
    elsewhere = any(word.startswith(("--config", "-cp", "-cn", "-cd")) for word in line.options)
    if runs_once or elsewhere or any(word.startswith("hydra") for word in line.overrides):
        return
    # The sweeper's own division into jobs.
    with _sentences(root, schema, line.overrides):
        jobs = BasicSweeper.split_arguments(parse(line.overrides), max_batch_size=None)[0]
    for overrides in jobs:
        composed = _compose(root, schema, overrides)
        check_scale(composed)
        check_job_classes(schema, _check(schema, composed))


def _compose(root: str, schema: type[Any], overrides: Sequence[str]) -> DictConfig:
    """Compose by Hydra's own function, which refuses to while a script of `hydra.main` runs: that is set aside."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    folder = _register(root, schema)
    try:
        with _sentences(root, schema, overrides):
            if folder is None:
                context: Any = initialize(None, version_base="1.3")
            else:
                context = initialize_config_dir(folder, version_base="1.3")
            with context:
                return compose(root, list(overrides))
    finally:
        GlobalHydra.instance().hydra = running


def _register(root: str, schema: type[Any]) -> str | None:
    """Put the dataclass where Hydra finds it, and return the folder of the root file.

    Hydra takes `size=256` for a group wherever it sees a folder of that name. A script with such a key is shown its
    root file and its own groups, and no folder.
    """
    store = ConfigStore.instance()
    groups = groups_of(root)
    keys = {item.name for item in fields(schema)}
    folders = {path.name for path in CONFIG_DIR.iterdir() if path.is_dir()}
    hides_folder = not groups or bool(keys & folders - set(groups))

    # What another script of this process has stored as groups would hide keys of the same names.
    for name in keys & set(store.repo) - set(groups):
        del store.repo[name]
    if f"{root}_schema.yaml" not in store.repo or (hides_folder and not set(groups) <= set(store.repo)):
        store.store(f"{root}_schema", open_tree(schema))
        store.store("plain", OmegaConf.load(CONFIG_DIR / "settings" / "hydra.yaml"), group="hydra")
        if hides_folder:
            store.store(root, OmegaConf.load(CONFIG_DIR / f"{root}.yaml"))
            for group, names in groups.items():
                for name in names:
                    store.store(name, OmegaConf.load(CONFIG_DIR / group / f"{name}.yaml"), group=group)
    return None if hides_folder else str(CONFIG_DIR)


@contextmanager
def _sentences(root: str, schema: type[Any], overrides: Sequence[str]) -> Iterator[None]:
    """Turn Hydra's and OmegaConf's errors into a ValueError with one sentence."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, overrides, schema, groups_of(root), root)) from error


def _check(schema: type[Any], composed: DictConfig) -> DictConfig:
    """Return what Hydra composed as a tree of the schema, refusing keys and values that are not possible.

    Interpolations are not resolved: finding the hardware may import torch.
    """
    # A root file of one's own (--config-name) need not extend the schema.
    typed = OmegaConf.get_type(composed) is schema
    tree: Any = composed if typed else OmegaConf.merge(open_tree(schema), composed)

    values: Any = OmegaConf.to_container(tree)
    check_limits(schema, values)
    check_arguments(values)
    return tree


def _finish(schema: type[Config], composed: DictConfig) -> Config:
    """Return the checked dataclass of what Hydra composed."""
    check_scale(composed)
    try:
        config = to_dataclass(_check(schema, composed))
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    settle_classes(config)
    return config
