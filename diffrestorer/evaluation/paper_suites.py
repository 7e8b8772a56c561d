"""Suites of the paper's test sets, from a folder that scripts/prepare_data.py made."""

from pathlib import Path

from omegaconf import OmegaConf

from diffrestorer.config.evaluating import EvaluateConfig
from diffrestorer.data.manifest import MANIFEST, list_test_pairs
from diffrestorer.data.remote import is_remote
from diffrestorer.evaluation.pair_suite import own_suite
from diffrestorer.evaluation.prepared_draws import read_draws
from diffrestorer.evaluation.suites import (
    PAIRS,
    REAL,
    SETS,
    SUITES,
    Item,
    Suite,
    check_any,
    open_suite,
    prepare_command,
    prepare_commands,
    suite_of,
)

OWN_PHOTOS = "photos"
"""The set of test pairs made of a folder of photos: it stands in for a task whose own set is not prepared."""


def read_settings(folder: Path) -> EvaluateConfig:
    """Read the settings of an evaluation from its output folder, which may have been moved.

    Raises:
        OSError: they can't be read.
    """
    saved = OmegaConf.load(folder / "config.yaml")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(EvaluateConfig), saved))
    assert isinstance(config, EvaluateConfig)
    config.output_dir = str(folder)
    return config


def build_suite(config: EvaluateConfig) -> Suite:
    """Build the suite `config.suite`, of `config.data.root` where that is given, of own pairs, or of open photos.

    Raises:
        ValueError: an unknown suite; one that is not prepared, with the command that prepares it; pairs named twice.
    """
    if config.suite not in (*SUITES, PAIRS):
        raise ValueError(f"suite={config.suite} is not valid; choose from {', '.join(SUITES)}, {PAIRS}")
    if config.data.root is not None and is_remote(config.data.root):
        raise ValueError(
            f"data.root={config.data.root} is a URL, which only training reads: copy {MANIFEST} and pairs/*/test from "
            "there into a folder, and give that"
        )
    folder = Path(config.output_dir) / "suite"
    if config.suite == PAIRS:
        return own_suite(config.data, folder, config.images)
    if stands_on_open_photos(config):
        return open_suite(
            config.suite, folder, config.size, config.images, config.seed, config.synthesis
        )
    return prepared_suite(config.suite, Path(str(config.data.root)), config.images)


def stands_on_open_photos(config: EvaluateConfig) -> bool:
    """Tell whether the suite is made of open photos: the demo, and what no prepared folder is given for."""
    return config.suite == "demo" or (config.suite != PAIRS and config.data.root is None)


def prepared_suite(name: str, root: Path, images: int | None) -> Suite:
    """Build a suite of the test pairs in a prepared folder.

    Args:
        name: a key of `SUITES`.
        root: the prepared folder.
        images: number of pairs of each task, the first ones; None for all.

    Raises:
        ValueError: there is no manifest, none of the suite's tasks is in it, or a pair lacks its clean image.
    """
    try:
        pairs = list_test_pairs(root)
    except ValueError as error:
        raise ValueError(f"{error}; {prepare_commands(SUITES[name], str(root))}") from None

    items: list[Item] = []
    missing: dict[str, str] = {}
    own: list[str] = []
    for task in SUITES[name]:
        # A real set's pairs carry the class that they show.
        label = task.removeprefix("real_") if task in REAL else task
        found = pairs.get((SETS[task], label), [])

        # Own photos, degraded by this package, stand in for a set that is not there.
        if not found and task not in REAL:
            found = pairs.get((OWN_PHOTOS, label), [])
            own += [task] * bool(found)
        if not found:
            missing[task] = f"not prepared: {prepare_command(task, str(root))}"

        draws = read_draws(found[0].lq.parents[1], task) if found else {}
        for pair in found[:images]:
            if pair.gt is None and task != "real_haze":
                raise ValueError(f"{root}: {pair.lq} has no clean image, which {task} is compared with")
            draw = draws.get(pair.name)
            items.append(Item(suite_of(task), task, pair.name, pair.lq, pair.gt, draw))
    check_any(name, SUITES[name], missing, str(root))
    return Suite(name, tuple(items), _note(own, images), missing)


def _note(own: list[str], images: int | None) -> str:
    """Return the caution about stand-ins and about parts of sets."""
    notes = []
    if own:
        notes.append(
            f"{', '.join(own)}: measured on own photos, degraded by this package, not on the paper's images, so the "
            "differences from the paper's numbers say nothing about the methods."
        )
    if images is not None:
        notes.append(f"Measured on the first {images} test images of each task, not on all of them.")
    return " ".join(notes)
