"""The pairs of a study: two methods' outputs for one image, side and order by counter, names hidden."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd

from diffrestorer.data.counter import counter_rng
from diffrestorer.evaluation.paper_suites import build_suite, read_settings
from diffrestorer.evaluation.scoring.scores import base_name, read_scores


@dataclass(frozen=True)
class Pair:
    """Two outputs for one image.

    Attributes:
        place: `DEGRADATION/IMAGE`.
        left, right: names of the methods.
        input, left_file, right_file: image files.
    """

    place: str
    left: str
    right: str
    input: Path
    left_file: Path
    right_file: Path


def choose_pairs(
    runs: Sequence[Path],
    count: int,
    seed: int,
) -> list[Pair]:
    """Choose pairs of outputs from finished evaluations, as evenly over methods as their number allows.

    Args:
        runs: output folders of scripts/evaluate.py. Methods of one name in several of them are called RUN:METHOD.
        count: number of pairs; all there are where that is fewer.
        seed: of the choice, the sides and the order.

    Raises:
        ValueError: a folder is no finished evaluation, or there are fewer than two methods or no image of both.
    """
    outputs = _outputs(runs)
    if len(outputs) < 2:
        raise ValueError(
            f"a study compares at least two restoring methods, and {', '.join(map(str, runs))} has {len(outputs)}"
        )

    # Every pair of methods in turn, each with an order of the images of its own.
    columns: list[list[Pair]] = []
    for number, (one, two) in enumerate(combinations(outputs, 2)):
        places = [place for place in outputs[one] if place in outputs[two]]
        rng = counter_rng(seed, "study/blind_pairs", number)
        column = []
        for index in rng.permutation(len(places)):
            place = places[index]
            left, right = (one, two) if rng.integers(2) else (two, one)
            lq, _ = outputs[one][place]
            _, left_file = outputs[left][place]
            _, right_file = outputs[right][place]
            column.append(Pair(place, left, right, lq, left_file, right_file))
        columns.append(column)

    # One from each until there are enough.
    chosen: list[Pair] = []
    for row in range(max(map(len, columns))):
        chosen += [column[row] for column in columns if row < len(column)]
    if not chosen:
        raise ValueError("the methods have no image in common")
    order = counter_rng(seed, "study/order").permutation(len(chosen[:count]))
    return [chosen[index] for index in order]


def _outputs(
    runs: Sequence[Path],
) -> dict[str, dict[str, tuple[Path, Path]]]:
    """Return method -> `DEGRADATION/IMAGE` -> files of the input and of the output."""
    found: dict[str, dict[str, tuple[Path, Path]]] = {}
    tables = [_restored(run) for run in runs]
    for run, table in zip(runs, tables, strict=True):
        inputs = _inputs(run, table)
        for method, rows in table.groupby("method", sort=False):
            shared = sum(method in set(other["method"]) for other in tables) > 1
            name = f"{run.name}:{method}" if shared else str(method)
            if name in found:
                raise ValueError(f"two runs are called {run.name}: give folders of different names")
            files = {}
            for row in rows.itertuples():
                place = f"{row.degradation}/{row.image}"
                output = run / "restored" / str(method) / f"{place}.png"
                if not output.is_file():
                    raise ValueError(
                        f"{run}: its output {output} is missing; run diffrestorer evaluate again"
                    )
                files[place] = (inputs[place], output)
            found[name] = files
    return found


def _restored(run: Path) -> pd.DataFrame:
    """Return the rows of scores.csv of the restoring methods, one run of each."""
    if not (run / "scores.csv").is_file():
        raise ValueError(
            f"{run} holds no scores.csv: make it with `diffrestorer evaluate output_dir={run}`"
        )
    table = read_scores(run / "scores.csv")
    plain = table["method"].map(base_name) == table["method"]
    return table[plain & (table["method"] != "degraded")]


def _inputs(run: Path, table: pd.DataFrame) -> dict[str, Path]:
    """Return `DEGRADATION/IMAGE` -> the input's file, of the run's own folder or of the prepared one.

    Raises:
        ValueError: an input is missing.
    """
    # Open photos and pairs from folders lie in the run's folder, prepared ones where they were prepared.
    if (run / "suite" / "lq").is_dir():
        places = dict.fromkeys(f"{row.degradation}/{row.image}" for row in table.itertuples())
        files = {place: run / "suite" / "lq" / f"{place}.png" for place in places}
    else:
        files = _prepared_inputs(run)

    for file in files.values():
        if not file.is_file():
            raise ValueError(f"{run}: its input {file} is missing; run diffrestorer evaluate again")
    return files


def _prepared_inputs(run: Path) -> dict[str, Path]:
    try:
        suite = build_suite(read_settings(run))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{run}: its inputs are not in its folder and their prepared folder can't be read ({error}); a relative "
            "data.root counts from the folder that diffrestorer evaluate was started in"
        ) from None
    return {f"{item.degradation}/{item.image}": item.lq for item in suite.items}
