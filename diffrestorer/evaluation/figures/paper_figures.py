"""The paper's figures, each drawn from numbers by one command; PNG and PDF.

3: similarity of degraded photos to texts. 10: t-SNE of P_CLIP and P_D. 7-9, 11-14: `grids`. training: loss curves.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from diffrestorer.config.degradations import is_synthesised
from diffrestorer.config.evaluating import EvaluateConfig, FiguresConfig, TestDataConfig
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.storage import write_bytes
from diffrestorer.data.synthesis import degrade
from diffrestorer.evaluation.figures.grids import GRIDS, draw_grid
from diffrestorer.evaluation.paper_suites import build_suite
from diffrestorer.evaluation.restoring.outputs import as_batch, read_pixels
from diffrestorer.evaluation.suites import DEMO_PHOTOS, DEMO_SHORTER_SIDE, open_photo
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.backbones import degradation_similarity
from diffrestorer.models.normalisation import normalise
from diffrestorer.models.prompt_processor import VisualPrompts

TEXTS: dict[str, str] = {
    "blur": "blurry photo",
    "low_light": "low-light photo",
    "haze": "hazy photo",
    "snow": "snowy photo",
}
"""Degradation -> the text it should be nearest to (Fig. 3)."""

CROP = 160
CROPS = 6
"""Figure 10 shows so many crops of each open photo under each degradation."""

NEIGHBOURS = 5


def save_figure(figure: Figure, path: Path) -> None:
    """Writes PATH.png and PATH.pdf; equal numbers give equal bytes."""
    FigureCanvasAgg(figure)
    for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None, "Producer": None})):
        data = io.BytesIO()
        figure.savefig(data, format=suffix[1:], dpi=150, metadata=metadata)
        write_bytes(path.with_suffix(suffix), data.getvalue())


def draw_similarity(config: FiguresConfig) -> Figure:
    """Figure 3: CLIP's similarity between degraded photos and texts that name the degradation.

    Raises:
        ValueError: the model is `mini`, whose image encoder has no text tower, or CLIP's weights can't be had.
    """
    import open_clip

    if config.model == "mini":
        raise ValueError(
            "figure=3 is unavailable with mini: it compares images with texts, and mini's image encoder has no text "
            "tower; give model=sd15 and, without network, clip=FILE with OpenAI's ViT-L/14 in open_clip's format"
        )
    name = "ViT-L-14-quickgelu"
    try:
        clip = open_clip.create_model(name, pretrained=config.clip).eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"figure=3 is unavailable: no CLIP weights for clip={config.clip} ({str(error).splitlines()[0]}); give "
            "clip=FILE with OpenAI's ViT-L/14 in open_clip's format"
        ) from None
    return plot_similarity(measure_similarity(clip, open_clip.get_tokenizer(name), config.seed))


@torch.no_grad()
def measure_similarity(clip: torch.nn.Module, tokenizer: Callable[[list[str]], Any], seed: int) -> Float[Tensor, "n n"]:
    """Row: a degradation of `TEXTS`, mean over the open photos. Column: softmax over the texts (Eq. 1)."""
    import open_clip
    from torchvision.transforms.v2.functional import resize

    texts = clip.encode_text(tokenizer(list(TEXTS.values())))  # type: ignore[operator]
    rows = []
    side = clip.visual.image_size  # type: ignore[union-attr]
    side = side[0] if isinstance(side, tuple) else side
    for degradation in TEXTS:
        photos = [open_photo(name, DEMO_SHORTER_SIDE) for name in DEMO_PHOTOS]
        degraded = [
            degrade(p, degradation, counter_rng(seed, f"figure3/{degradation}", i)) for i, p in enumerate(photos)
        ]
        images = resize(as_batch(degraded), [side, side], antialias=True)
        images = normalise(images, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        embeddings = clip.encode_image(images)  # type: ignore[operator]
        rows.append(degradation_similarity(embeddings, texts, logit_scale=100.0).mean(dim=0))
    return torch.stack(rows)


def plot_similarity(similarities: Float[Tensor, "n n"]) -> Figure:
    """The matrix of `measure_similarity`, each cell with its number."""
    figure = Figure(figsize=(5.4, 4), layout="constrained")
    axis = figure.subplots()
    axis.imshow(similarities.numpy(), vmin=0, vmax=1, cmap="Blues")
    axis.set_xticks(range(len(TEXTS)), [f'"{text}"' for text in TEXTS.values()], rotation=20)
    axis.set_yticks(range(len(TEXTS)), list(TEXTS))
    for (row, column), value in np.ndenumerate(similarities.numpy()):
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.5 else "black")
    axis.set_title("Figure 3: CLIP similarity, softmax at logit scale 100")
    return figure


@dataclass(frozen=True)
class Separability:
    """How well classes lie apart in embeddings.

    Attributes:
        silhouette: mean silhouette coefficient, -1 to 1, of the embeddings themselves (not of the picture).
        accuracy: of a vote of the 5 nearest neighbours among the other photos.
    """

    silhouette: float
    accuracy: float


def measure_separability(embeddings: np.ndarray, classes: np.ndarray, photos: np.ndarray) -> Separability:
    """Embeddings (n, d), and the class and the photo of each; a photo is never its own neighbour."""
    right = 0
    for photo in np.unique(photos):
        own = photos == photo
        voter = KNeighborsClassifier(NEIGHBOURS).fit(embeddings[~own], classes[~own])
        right += int((voter.predict(embeddings[own]) == classes[own]).sum())
    return Separability(float(silhouette_score(embeddings, classes)), right / len(classes))


def draw_embeddings(config: FiguresConfig) -> Figure:
    """Figure 10: t-SNE of P_CLIP and of P_D, each with its separability, and how often the classifier is right.

    Raises:
        ValueError: there are images of fewer than two of the model's classes.
    """
    pipe = DiffRestorerPipeline.from_pretrained(config.model)
    if config.data.root is None:
        examples = degraded_crops(pipe.classes, config.seed)
    else:
        examples = [example for example in degraded_photos(config.data) if example.degradation in pipe.classes]
    if len({example.degradation for example in examples}) < 2:
        raise ValueError(
            f"figure=10 compares classes, and fewer than two of {config.model}'s ({', '.join(pipe.classes)}) have "
            "images here: open photos are degraded by the paper's eight or left clean, data.root=PREPARED has the eight"
        )
    found = embed(pipe, [example.lq for example in examples])
    classes = np.array([pipe.classes.index(example.degradation) for example in examples])
    photos = np.unique([example.photo for example in examples], return_inverse=True)[1]
    told = (found.degradation_logits.argmax(1).numpy() == classes).mean()
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots(1, 2)
    prompts = {"P_CLIP": found.clip_embedding.numpy(), "P_D": found.degradation_embedding.numpy()}
    for axis, (name, embeddings) in zip(axes, prompts.items(), strict=True):
        apart = measure_separability(embeddings, classes, photos)
        perplexity = min(20, len(embeddings) - 1)
        points = TSNE(perplexity=perplexity, init="pca", random_state=config.seed).fit_transform(embeddings)
        _scatter(axis, points, classes, pipe.classes)
        axis.set_title(f"{name}: silhouette {apart.silhouette:.2f}, nearest-neighbour accuracy {apart.accuracy:.0%}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    figure.suptitle(
        f"Figure 10: {len(classes)} degraded images of {photos.max() + 1} photos; "
        f"the classifier of {config.model} tells {told:.0%} of them right"
    )
    return figure


@dataclass(frozen=True)
class Example:
    """A degraded photo, uint8 (h, w, 3), which photo it is, and its degradation."""

    lq: np.ndarray
    photo: str
    degradation: str


def degraded_crops(classes: Sequence[str], seed: int) -> list[Example]:
    """Crops of the open photos under each of a model's classes that can be made from photos."""
    examples = []
    for number, photo in enumerate(DEMO_PHOTOS):
        whole = open_photo(photo, DEMO_SHORTER_SIDE)
        for label, name in enumerate(classes):
            for index in range(CROPS if is_synthesised(name) else 0):
                rng = counter_rng(seed, "figure10", number, label, index)
                top, left = rng.integers(len(whole) - CROP + 1, size=2)
                crop = np.ascontiguousarray(whole[top : top + CROP, left : left + CROP])
                examples.append(Example(degrade(crop, name, rng), photo, name))
    return examples


def degraded_photos(data: TestDataConfig) -> list[Example]:
    """The test images of the eight classes in a prepared folder."""
    items = build_suite(EvaluateConfig(suite="single", data=data)).items
    return [Example(read_pixels(item.lq), item.image, item.degradation) for item in items]


@torch.no_grad()
def embed(pipe: DiffRestorerPipeline, images: Sequence[np.ndarray]) -> VisualPrompts:
    """The prompts of images, which need not be of one size."""
    rows = [pipe.restorer.read_prompts(as_batch([image]).to(pipe.device)) for image in images]
    names = [item.name for item in fields(VisualPrompts)]
    return VisualPrompts(**{name: torch.cat([getattr(row, name) for row in rows]).cpu() for name in names})


def _scatter(axis: Axes, points: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> None:
    for label in np.unique(classes):
        own, name = points[classes == label], names[label]
        axis.scatter(own[:, 0], own[:, 1], s=14, color=f"C{label}", label=name)
    axis.set_xticks([])
    axis.set_yticks([])


def draw_training(config: FiguresConfig) -> Figure:
    """Loss curves of a training run: every step, and the mean over a fiftieth of the run.

    Raises:
        ValueError: `config.training` holds no losses.csv.
    """
    path = Path(config.training) / "losses.csv"
    if not path.is_file():
        raise ValueError(f"training={config.training} holds no losses.csv: give the output_dir of a training script")
    with path.open(newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    values = np.array([[float(cell) for cell in row] for row in rows])
    window = max(1, len(values) // 50)
    figure = Figure(figsize=(3.6 * (len(names) - 1), 3.2), layout="constrained")
    for axis, column in zip(np.atleast_1d(figure.subplots(1, len(names) - 1)), range(1, len(names)), strict=True):
        axis.plot(values[:, 0], values[:, column], linewidth=0.5, alpha=0.35)
        mean = np.convolve(values[:, column], np.ones(window) / window, mode="valid")
        axis.plot(values[window - 1 :, 0], mean, linewidth=1.5, color="C0")
        axis.set_title(names[column])
        axis.set_xlabel("step")
        if (values[:, column] > 0).all():
            axis.set_yscale("log")
    return figure


PAPER_FIGURES: dict[str, Callable[[FiguresConfig], Figure]] = {
    "3": draw_similarity,
    **dict.fromkeys(GRIDS, draw_grid),
    "10": draw_embeddings,
    "training": draw_training,
}
"""Figure -> how it is drawn."""
