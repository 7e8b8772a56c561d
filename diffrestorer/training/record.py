"""A run's folder: whose it is, which configuration and environment it was made with, and its log."""

import json
import logging
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffrestorer import __version__
from diffrestorer.config.checkout import git_commit
from diffrestorer.config.composition import differences, save
from diffrestorer.config.schema import BaseConfig
from diffrestorer.training.checkpoint import newest_copies, step_of
from diffrestorer.training.kept_files import (
    DamagedFileError,
    read_sealed,
    remove,
    remove_leftovers,
    write_changed,
)

LOG = logging.getLogger("diffrestorer.training")

FREE_KEYS = (
    "output_dir",
    *(
        f"train.{name}"
        for name in ("num_workers", "checkpoint_every", "keep_checkpoints", "log_every", "sample_every")
    ),
    *(
        f"train.{name}"
        for name in ("tracker", "wandb_mode", "validate_every", "validation_", "cache_dir")
    ),
    *(f"train.{name}" for name in ("allow_changed_data", "micro_batch_size", "hardware")),
    *(f"data.{name}" for name in ("root", "validation_root", "skip_unreadable", "cache_")),
)
"""Keys that may differ between a run and its resumption: they change nothing that is learned. The contents of
`data.root` are compared by themselves."""

SEALED = ("data.json", "tracker.json")
"""Files with a checksum that checkpoints hold copies of."""


@contextmanager
def run_log(path: Path, is_main_process: bool) -> Iterator[logging.Logger]:
    """Give the run's log its handlers while the context lasts: stderr and a file on the main process.

    Its lines go to no other handler. Libraries (hydra, or open_clip while it loads CLIP) install one at the root that
    would repeat each of them.

    Args:
        path: of the file.
        is_main_process: others log errors only, to stderr.
    """
    # Handlers are made first: a file that cannot be opened must leave the logger as it was.
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if is_main_process:
        handlers.append(logging.FileHandler(path))
    level, propagates = LOG.level, LOG.propagate
    LOG.setLevel(logging.INFO if is_main_process else logging.ERROR)
    LOG.propagate = False
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        LOG.addHandler(handler)
    try:
        yield LOG
    finally:
        for handler in handlers:
            LOG.removeHandler(handler)
            handler.close()
        LOG.setLevel(level)
        LOG.propagate = propagates


def prepare_output(output_dir: Path, config: Any, accelerator: Accelerator) -> None:
    """Refuse another run's folder, rebuild damaged files from checkpoints, and write what is needed to repeat this run.

    For the main process.

    Raises:
        ValueError: the folder holds a run with another configuration; the message names the keys that differ.
    """
    remove_leftovers(output_dir)
    checkpoint, copies = newest_copies(output_dir / "checkpoints")
    for name in SEALED:
        if name in copies:
            _rebuild(output_dir / name, copies[name])

    # A checkpoint's copy is what the weights were trained with; config.yaml may have been damaged since.
    saved = output_dir / "config.yaml"
    done = step_of(checkpoint) if checkpoint is not None else 0
    reference = (
        checkpoint / "config.yaml" if checkpoint is not None and "config.yaml" in copies else saved
    )
    changed = _changed_keys(config, reference)
    if changed:
        raise ValueError(
            f"{output_dir} holds a run with another configuration ({'; '.join(changed[:5])}); "
            "choose another output_dir or remove it"
        )
    if config.train.max_steps < done:
        raise ValueError(
            f"{output_dir} has done {done} steps: train.max_steps={config.train.max_steps} is less"
        )

    if reference != saved and _changed_keys(config, saved):
        LOG.warning("%s is damaged; writing it again, after the copy of the newest checkpoint", saved)
        remove(saved)
    save(config, saved)
    environment = json.dumps(_environment(config.seed, accelerator), indent=1) + "\n"
    write_changed(output_dir / "environment.json", environment.encode())


def _changed_keys(config: Any, saved: Path) -> list[str]:
    """Return the keys that may not differ and do, as `key: old -> new`; a file that cannot be read is removed."""
    if not saved.exists():
        return []
    free = FREE_KEYS if _depends_on_length(config) else (*FREE_KEYS, "train.max_steps")
    try:
        return differences(config, saved, free)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException, AttributeError, TypeError) as error:
        LOG.warning("%s is damaged (%s); writing it again", saved, str(error).splitlines()[0])
        remove(saved)
        return []


def _depends_on_length(config: Any) -> bool:
    """Return whether a longer run would have trained otherwise from its first step, or others trained on its result."""
    falling_weight = getattr(config, "lambda_distillation", 0.0) > 0
    return config.train.lr_schedule != "constant" or falling_weight or isinstance(config, BaseConfig)


def restore_records(output_dir: Path, step: int, copies: Mapping[str, bytes]) -> None:
    """Bring what a run records per step to where its checkpoint left it: rows after it will be made again.

    Args:
        output_dir: of the run.
        step: of the checkpoint; 0: the run begins.
        copies: the files that the checkpoint holds.
    """
    # A loss is that of step 0 and so on, a validation comes after so many steps.
    for name, last in (("losses.csv", step - 1), ("validation.csv", step)):
        path = output_dir / name
        present = None
        if path.exists():
            with suppress(OSError):
                present = path.read_bytes()
        if name in copies:
            if present is None or not present.startswith(copies[name]):
                LOG.warning(
                    "%s is damaged or gone; taking the copy of the checkpoint of step %d", path, step
                )
            write_changed(path, copies[name])
            continue

        # Earlier versions kept no copies.
        kept = _rows_until(present or b"", last)
        if kept:
            write_changed(path, kept)
        else:
            remove(path)


def _rows_until(data: bytes, last: int) -> bytes:
    """Return the header and the rows of steps up to `last`, as far as they are readable; nothing without rows."""
    lines = data.split(b"\n")[:-1]
    kept = []
    for row in lines[1:]:
        number = row.split(b",")[0]
        if number.isdigit() and int(number) <= last:
            kept.append(row)
    return b"".join(row + b"\n" for row in [lines[0], *kept]) if kept else b""


def _rebuild(path: Path, copy: bytes) -> None:
    """Write a checkpoint's copy of a sealed file over one that is damaged or gone."""
    try:
        read_sealed(path)
    except FileNotFoundError:
        LOG.warning("%s is gone; taking the copy of the newest checkpoint", path)
        write_changed(path, copy)
    except DamagedFileError as error:
        LOG.warning("%s; taking the copy of the newest checkpoint", error)
        write_changed(path, copy)


def _environment(seed: int, accelerator: Accelerator) -> dict[str, Any]:
    packages = ("torch", "diffusers", "accelerate", "open_clip_torch")
    versions = {name: version(name) for name in packages}
    versions["diffrestorer"] = __version__  # a checkout need not be installed
    versions["python"] = platform.python_version()
    return {
        "versions": versions,
        "git_commit": git_commit(),
        "seed": seed,
        "num_processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "mixed_precision": accelerator.mixed_precision,
    }
