"""The card of a model that is uploaded to the Hugging Face hub: metadata, classes, licence, parts and scores."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from yaml import YAMLError

from diffrestorer.config.degradations import CLEAN
from diffrestorer.inference.model_folder import DEFAULT_TITLE
from diffrestorer.models.components import COMPONENTS, read_classes

SCORED = "diff_restorer"
"""The method of an evaluation that the model is."""


def full_card(folder: Path, repo: str, licence: str | None, evaluation: Path | None = None) -> str:
    """Return the card of a model folder, in Markdown with metadata.

    A card that its owner wrote keeps its text and its metadata, and gets what it lacks.

    Args:
        folder: of the model.
        repo: `USER/NAME`, where it will be.
        licence: an identifier of the hub, such as `apache-2.0`; None: the owner's card's, else `other`.
        evaluation: output folder of `diffrestorer evaluate`, whose means are given; None: no scores.

    Raises:
        ValueError: the evaluation holds no scores of the model, its file is damaged, or so is the owner's card.
    """
    classes = read_classes(folder)
    scores = [] if evaluation is None else _read_scores(evaluation)
    text, own = _read_card(folder / "README.md")
    licence = licence or own.get("license") or "other"
    if not text.strip() or DEFAULT_TITLE in text:
        text = _text(folder, repo, licence, classes, scores)

    # The owner's metadata come before ours, and tags are added up.
    tags = ["image-restoration", "diffusion", "diff-restorer", *classes]
    ours: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "image-to-image"}
    known = own.get("tags") or []
    ours |= own | {"license": licence, "tags": [*dict.fromkeys([*known, *tags])]}
    if scores:
        ours |= {"model_name": repo.partition("/")[2], "eval_results": scores}
        ours.pop("model-index", None)
    data = ModelCardData(**ours)
    return f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n"


def _read_card(file: Path) -> tuple[str, dict[str, Any]]:
    """Return text and metadata of a card; nothing where there is none.

    Raises:
        ValueError: it is not UTF-8, or its metadata are no YAML.
    """
    try:
        card = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except FileNotFoundError:
        return "", {}
    except (OSError, ValueError, YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} cannot be used as a card ({reason}): mend it or remove it") from None
    metadata = card.data.to_dict()  # type: ignore[no-untyped-call]
    return card.text, {name: value for name, value in metadata.items() if value is not None}


def _read_scores(evaluation: Path) -> list[EvalResult]:
    """Return the means of an evaluation, one for each class and metric that has a number."""
    rows, metrics = _read_summary(evaluation / "summary.csv")
    if not rows:
        raise ValueError(
            f"{evaluation} has no scores of {SCORED}: evaluate with method={SCORED} model=THE FOLDER"
        )

    # A metric may lack a number: unavailable, undefined, or not for such images.
    scores = []
    for row in rows:
        for metric in metrics:
            value = _number(evaluation / "summary.csv", row[metric])
            if math.isfinite(value):
                scores.append(_result(row["suite"], row["degradation"], row["n"], metric, value))
    if not scores:
        raise ValueError(f"{evaluation} has no number for {SCORED}: evaluate with other metrics=[...]")
    return scores


def _read_summary(file: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Return the rows of the model in a summary.csv, and the names of its metrics.

    Raises:
        ValueError: there is no such file, or `diffrestorer evaluate` did not write it so.
    """
    try:
        with file.open(encoding="utf-8", newline="") as text:
            table = csv.DictReader(text, strict=True)
            rows = list(table)
            names = list(table.fieldnames or [])
    except OSError:
        raise ValueError(
            f"{file.parent} holds no summary.csv: give an output folder of diffrestorer evaluate"
        ) from None
    except (ValueError, csv.Error) as error:
        raise ValueError(_damaged(file, str(error))) from None

    # The columns of metrics stand between the number of images and that of undefined scores.
    lacking = [
        name for name in ("suite", "degradation", "method", "n", "undefined") if name not in names
    ]
    if lacking:
        raise ValueError(_damaged(file, f"it has no column {lacking[0]}"))
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(_damaged(file, f"row {number} has not {len(names)} cells"))
    metrics = names[names.index("n") + 1 : names.index("undefined")]
    return [row for row in rows if row["method"] == SCORED], metrics


def _number(file: Path, cell: str) -> float:
    """Return the number in a cell of a metric; NaN where evaluate wrote that there is none."""
    if cell in ("", "unavailable"):
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise ValueError(_damaged(file, f"{cell!r} is no score")) from None


def _damaged(file: Path, why: str) -> str:
    return f"{file} is damaged ({why}): run diffrestorer evaluate again on its folder"


def _result(suite: str, degradation: str, count: str, metric: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="image-to-image",
        task_name="Image restoration",
        dataset_type=suite,
        dataset_name=f"{degradation}, {count} images",
        dataset_config=degradation,
        metric_type=metric,
        metric_value=round(value, 4),
    )


def _text(
    folder: Path, repo: str, licence: str, classes: Sequence[str], scores: Sequence[EvalResult]
) -> str:
    """Return the card's Markdown."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = "\n".join(f"| `{name}` | {index[name][1]} |" for name in (*COMPONENTS, "scheduler"))
    clean = " It also tells photos that are clean." if CLEAN in classes else ""
    table = "None was given.\n"
    if scores:
        rows = "\n".join(f"| {s.dataset_name} | {s.metric_type} | {s.metric_value} |" for s in scores)
        heading = f"Means over the suite `{scores[0].dataset_type}`."
        table = f"{heading}\n\n| images | metric | mean |\n|---|---|---|\n{rows}\n"
    return _CARD.format(
        name=repo.partition("/")[2],
        repo=repo,
        degradations=", ".join(name for name in classes if name != CLEAN),
        clean=clean,
        licence=licence,
        parts=parts,
        scores=table,
    )


_CARD = """# {name}

Restores photos with any of these degradations, or several of them, without being told which: {degradations}.{clean}
A model after Diff-Restorer ([arXiv 2407.03636](https://arxiv.org/abs/2407.03636)).

## Use

    pip install diffrestorer
    diffrestorer restore photo.jpg -o restored --model {repo}

```python
from PIL import Image

from diffrestorer import DiffRestorerPipeline

pipe = DiffRestorerPipeline.from_pretrained("{repo}")
pipe(Image.open("photo.jpg")).images[0].save("restored.png")
```

## Scores

{scores}
## Licence

`{licence}`: that of the weights and of the data it was trained from.

## Parts

| component | class |
|---|---|
{parts}
"""
