"""The card of a model that is uploaded to the Hugging Face hub: metadata, classes, licence, parts and scores."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from diffrestorer.config.degradations import CLEAN
from diffrestorer.models.components import COMPONENTS, read_classes

SCORED = "diff_restorer"
"""The method of an evaluation that the model is."""

_DEFAULT_TITLE = "# A Diff-Restorer model\n"


def full_card(folder: Path, repo: str, licence: str, evaluation: Path | None = None) -> str:
    """Return the card of a model folder, in Markdown with metadata; a card that its owner wrote keeps its text.

    Args:
        folder: of the model.
        repo: `USER/NAME`, where it will be.
        licence: an identifier of the hub, such as `apache-2.0` or `other`.
        evaluation: output folder of `diffrestorer evaluate`, whose means are given; None: no scores.

    Raises:
        ValueError: the evaluation holds no scores of the model.
    """
    classes = read_classes(folder)
    scores = [] if evaluation is None else _read_scores(evaluation)
    card = folder / "README.md"
    text = (
        ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).text
        if card.is_file()
        else ""
    )
    if not text.strip() or _DEFAULT_TITLE in text:
        text = _text(folder, repo, licence, classes, scores)

    data = ModelCardData(
        license=licence,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["image-restoration", "diffusion", "diff-restorer", *classes],
        model_name=repo.partition("/")[2],
        eval_results=scores or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n"


def _read_scores(evaluation: Path) -> list[EvalResult]:
    """Return the means of an evaluation, one for each class and metric."""
    try:
        with (evaluation / "summary.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["method"] == SCORED]
    except (OSError, KeyError):
        raise ValueError(
            f"{evaluation} holds no summary.csv: give an output folder of diffrestorer evaluate"
        ) from None
    if not rows:
        raise ValueError(
            f"{evaluation} has no scores of {SCORED}: evaluate with method={SCORED} model=THE FOLDER"
        )

    # The columns of metrics stand between the number of images and that of undefined scores.
    names = list(rows[0])
    metrics = names[names.index("n") + 1 : names.index("undefined")]
    scores = []
    for row in rows:
        for metric in metrics:
            if row[metric]:
                scores.append(
                    _result(row["suite"], row["degradation"], row["n"], metric, float(row[metric]))
                )
    return scores


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
