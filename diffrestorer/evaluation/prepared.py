"""Suites of the paper's test sets, from a folder that scripts/prepare_data.py made."""

import re
from pathlib import Path

from diffrestorer.config.schema import EvaluateConfig
from diffrestorer.evaluation.files import Source
from diffrestorer.evaluation.suites import (
    REAL,
    SETS,
    SUITES,
    Item,
    Suite,
    check_any,
    open_suite,
    prepare_command,
    suite_of,
)

MANIFEST = "manifest.parquet"
COLUMNS = ("lq", "gt", "degradation", "split", "set")


def build_suite(config: EvaluateConfig) -> Suite:
    """The suite `config.suite`: of `config.data.root` where that is given, else of open photos.

    Raises:
        ValueError: an unknown suite; one that is not prepared, with the command that prepares it; pairs named twice.
    """
    if config.suite not in SUITES:
        raise ValueError(f"suite={config.suite} is not valid; choose from {', '.join(SUITES)}")
    if config.data.root is None or config.suite == "demo":
        return open_suite(config)
    return prepared_suite(config, Path(config.data.root))


def prepared_suite(config: EvaluateConfig, root: Path) -> Suite:
    """The suite's test pairs in a prepared folder, the first `config.images` of each task.

    Raises:
        ValueError: there is no manifest, none of the suite's tasks is in it, or a pair lacks its clean image.
    """
    items: dict[str, list[Item]] = {task: [] for task in SUITES[config.suite]}
    tasks_of_real = {name: task for task, name in REAL.items()}
    for lq, gt, degradation, split, name in _rows(root):
        task = tasks_of_real.get(name, degradation)
        if split != "test" or SETS.get(task) != name or task not in items:
            continue
        if gt is None and task != "real_haze":
            raise ValueError(f"{root / MANIFEST}: {lq} has no clean image, which {task} is compared with")
        source = _source(root, lq)
        image = f"{name}_{source.path.stem}_{source.row:05d}" if source.row is not None else source.path.stem
        items[task].append(Item(suite_of(task), task, image, source, None if gt is None else _source(root, gt)))
    missing = {task: f"not prepared: {prepare_command(task, str(root))}" for task, found in items.items() if not found}
    check_any(config.suite, list(items), missing)
    chosen = tuple(item for found in items.values() for item in found[: config.images])
    return Suite(config.suite, chosen, _note(config), missing)


def _note(config: EvaluateConfig) -> str:
    if config.images is None:
        return ""
    return f"Measured on the first {config.images} test images of each task, not on all of them."


def _rows(root: Path) -> list[tuple[str, str | None, str, str, str]]:
    import pyarrow
    import pyarrow.parquet

    path = root / MANIFEST
    if not path.is_file():
        raise ValueError(f"data.root={root} holds no {MANIFEST}: make it with scripts/prepare_data.py out={root}")
    try:
        columns = pyarrow.parquet.read_table(path, columns=list(COLUMNS)).to_pydict()
        return list(zip(*(columns[name] for name in COLUMNS), strict=True))
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({str(error).splitlines()[0]}); prepare the folder again") from None


def _source(root: Path, address: str) -> Source:
    """`pairs/gopro/test/blur/00000.npy#5/0`, or a file's path, below `root`."""
    found = re.fullmatch(r"(.+\.npy)#(\d+)/(\d+)", address)
    return Source(root / found[1], int(found[2]), int(found[3])) if found else Source(root / address)
