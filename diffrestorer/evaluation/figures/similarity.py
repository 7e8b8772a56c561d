"""Figure 3: CLIP's similarity between degraded photos and texts that name the degradation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from diffrestorer.data.counter import counter_rng
from diffrestorer.data.synthesis import degrade
from diffrestorer.evaluation.restoring.outputs import as_batch
from diffrestorer.evaluation.suites import DEMO_PHOTOS, DEMO_SHORTER_SIDE, open_photo
from diffrestorer.models.backbones import degradation_similarity
from diffrestorer.models.clip_files import ClipError, load_whole_clip
from diffrestorer.models.normalisation import normalise
from diffrestorer.models.pretrained import CLIP

TEXTS: dict[str, str] = {
    "blur": "blurry photo",
    "low_light": "low-light photo",
    "haze": "hazy photo",
    "snow": "snowy photo",
}
"""Degradation -> the text that should be nearest to it."""


def draw_similarity(model: str, clip_weights: str, seed: int) -> Figure:
    """Draw figure 3.

    Args:
        model: `mini` is refused.
        clip_weights: a tag of open_clip or a file.
        seed: of the degradations.

    Raises:
        ValueError: the model is `mini`, whose image encoder has no text tower, or CLIP's weights can't be had.
    """
    import open_clip

    if model == "mini":
        raise ValueError(
            "figure=3 is unavailable with mini: it compares images with texts, and mini's image encoder has no text "
            "tower; give model=sd15 and, without network, clip=FILE or FOLDER with OpenAI's ViT-L/14"
        )

    try:
        clip = load_whole_clip(CLIP, clip_weights)
    except ClipError as error:
        raise ValueError(
            f"figure=3 is unavailable: no CLIP weights for clip={clip_weights} ({error.reason}); give clip=FILE or "
            "FOLDER with OpenAI's ViT-L/14, text tower included, as OpenAI, open_clip or transformers have it"
        ) from None
    return plot_similarity(measure_similarity(clip, open_clip.get_tokenizer(CLIP), seed))


@torch.no_grad()
def measure_similarity(
    clip: torch.nn.Module,
    tokenizer: Callable[[list[str]], Any],
    seed: int,
) -> Float[Tensor, "n n"]:
    """Return the similarities: a row per degradation, mean over the photos; a column per text, softmax (Eq. 1)."""
    import open_clip
    from torchvision.transforms.v2.functional import resize

    texts = clip.encode_text(tokenizer(list(TEXTS.values())))  # type: ignore[operator]
    side = clip.visual.image_size  # type: ignore[union-attr]
    side = side[0] if isinstance(side, tuple) else side
    photos = [open_photo(name, DEMO_SHORTER_SIDE) for name in DEMO_PHOTOS]

    rows = []
    for degradation in TEXTS:
        # The photos under this degradation, as CLIP wants them.
        stream = f"figure3/{degradation}"
        degraded = [
            degrade(photo, degradation, counter_rng(seed, stream, i)) for i, photo in enumerate(photos)
        ]
        images = resize(as_batch(degraded), [side, side], antialias=True)
        images = normalise(images, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        embeddings = clip.encode_image(images)  # type: ignore[operator]
        rows.append(degradation_similarity(embeddings, texts, logit_scale=100.0).mean(dim=0))
    return torch.stack(rows)


def plot_similarity(similarities: Float[Tensor, "n n"]) -> Figure:
    """Draw the matrix of `measure_similarity`, each cell with its number."""
    figure = Figure(figsize=(5.4, 4), layout="constrained")
    axis = figure.subplots()
    axis.imshow(similarities.numpy(), vmin=0, vmax=1, cmap="Blues")
    axis.set_xticks(range(len(TEXTS)), [f'"{text}"' for text in TEXTS.values()], rotation=20)
    axis.set_yticks(range(len(TEXTS)), list(TEXTS))
    for (row, column), value in np.ndenumerate(similarities.numpy()):
        axis.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            color="white" if value > 0.5 else "black",
        )
    axis.set_title("Figure 3: CLIP similarity, softmax at logit scale 100")
    return figure
