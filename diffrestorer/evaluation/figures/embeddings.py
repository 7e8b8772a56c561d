"""Figure 10: t-SNE of the visual prompts P_CLIP and P_D, and how well they separate the classes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from diffrestorer.config.degradations import is_synthesised
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.synthesis import degrade
from diffrestorer.evaluation.paper_suites import prepared_suite
from diffrestorer.evaluation.restoring.outputs import as_batch, read_pixels
from diffrestorer.evaluation.suites import DEMO_PHOTOS, DEMO_SHORTER_SIDE, open_photo
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.prompt_processor import VisualPrompts

CROP = 160
CROPS = 6
"""Number of crops of each open photo under each degradation."""

NEIGHBOURS = 5


@dataclass(frozen=True)
class Separability:
    """Separation of classes in embeddings.

    Attributes:
        silhouette: mean silhouette coefficient, -1 to 1, of the embeddings themselves (not of the picture).
        accuracy: of a vote of the 5 nearest neighbours among the other photos.
    """

    silhouette: float
    accuracy: float


def measure_separability(
    embeddings: np.ndarray,
    classes: np.ndarray,
    photos: np.ndarray,
) -> Separability:
    """Measure the separation of classes.

    Args:
        embeddings: (n, d).
        classes: the class of each.
        photos: the photo of each; a photo is never its own neighbour.
    """
    voter = KNeighborsClassifier(NEIGHBOURS)
    told = cross_val_predict(voter, embeddings, classes, groups=photos, cv=LeaveOneGroupOut())
    return Separability(float(silhouette_score(embeddings, classes)), float((told == classes).mean()))


def draw_embeddings(model: str, root: str | None, seed: int) -> Figure:
    """Draw figure 10, each t-SNE with its separability, and how often the classifier is right.

    Args:
        model: `mini`, a folder or a hub id.
        root: prepared folder with test images; None for crops of the open photos.
        seed: of the crops' degradations and of t-SNE.

    Raises:
        ValueError: there are images of fewer than two of the model's classes.
    """
    pipe = DiffRestorerPipeline.from_pretrained(model)
    if root is None:
        examples = degraded_crops(pipe.classes, seed)
    else:
        found_photos = degraded_photos(Path(root))
        examples = [example for example in found_photos if example.degradation in pipe.classes]
    if len({example.degradation for example in examples}) < 2:
        raise ValueError(
            f"figure=10 compares classes, and fewer than two of {model}'s ({', '.join(pipe.classes)}) have "
            "images here: open photos are degraded by the paper's eight or left clean, data.root=PREPARED has the eight"
        )

    # Their prompts, and the classifier's opinion.
    found = embed(pipe, [example.lq for example in examples])
    classes = np.array([pipe.classes.index(example.degradation) for example in examples])
    photos = np.unique([example.photo for example in examples], return_inverse=True)[1]
    guesses = found.degradation_logits.argmax(1).numpy()
    told = (guesses == classes).mean()

    # One scatter plot per prompt.
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots(1, 2)
    prompts = {"P_CLIP": found.clip_embedding, "P_D": found.degradation_embedding}
    for axis, (name, prompt) in zip(axes, prompts.items(), strict=True):
        embeddings = prompt.numpy()
        apart = measure_separability(embeddings, classes, photos)
        perplexity = min(20, len(embeddings) - 1)
        projection = TSNE(perplexity=perplexity, init="pca", random_state=seed)
        _scatter(axis, projection.fit_transform(embeddings), classes, pipe.classes)
        axis.set_title(
            f"{name}: silhouette {apart.silhouette:.2f}, nearest-neighbour accuracy {apart.accuracy:.0%}"
        )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    figure.suptitle(
        f"Figure 10: {len(classes)} degraded images of {photos.max() + 1} photos; "
        f"the classifier of {model} tells {told:.0%} of them right"
    )
    return figure


@dataclass(frozen=True)
class Example:
    """A degraded photo, uint8 (h, w, 3), its name, and its degradation."""

    lq: np.ndarray
    photo: str
    degradation: str


def degraded_crops(classes: Sequence[str], seed: int) -> list[Example]:
    """Return crops of the open photos under each of a model's classes that can be made from photos."""
    examples = []
    labels = [label for label, name in enumerate(classes) if is_synthesised(name)]
    for number, photo in enumerate(DEMO_PHOTOS):
        whole = open_photo(photo, DEMO_SHORTER_SIDE)
        for label, index in product(labels, range(CROPS)):
            name = classes[label]
            rng = counter_rng(seed, "figure10", number, label, index)
            top, left = rng.integers(len(whole) - CROP + 1, size=2)
            crop = np.ascontiguousarray(whole[top : top + CROP, left : left + CROP])
            examples.append(Example(degrade(crop, name, rng), photo, name))
    return examples


def degraded_photos(root: Path) -> list[Example]:
    """Return the test images of the eight classes in a prepared folder."""
    items = prepared_suite("single", root, images=None).items
    return [Example(read_pixels(item.lq), item.image, item.degradation) for item in items]


@torch.no_grad()
def embed(pipe: DiffRestorerPipeline, images: Sequence[np.ndarray]) -> VisualPrompts:
    """Return the prompts of images, which need not be of one size."""
    rows = []
    for image in images:
        batch = as_batch([image]).to(pipe.device)
        rows.append(pipe.restorer.read_prompts(batch))

    # The fields of all rows, joined.
    joined = {}
    for item in fields(VisualPrompts):
        values = [getattr(row, item.name) for row in rows]
        joined[item.name] = torch.cat(values).cpu()
    return VisualPrompts(**joined)


def _scatter(
    axis: Axes,
    points: np.ndarray,
    classes: np.ndarray,
    names: Sequence[str],
) -> None:
    for label in np.unique(classes):
        own, name = points[classes == label], names[label]
        axis.scatter(own[:, 0], own[:, 1], s=14, color=f"C{label}", label=name)
    axis.set_xticks([])
    axis.set_yticks([])
