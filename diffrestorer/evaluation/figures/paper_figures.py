"""The paper's figures, each drawn from numbers by one command; PNG and PDF."""

import io
from collections.abc import Callable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffrestorer.config.evaluating import FiguresConfig
from diffrestorer.data.storage import write_bytes
from diffrestorer.evaluation.figures.embeddings import draw_embeddings
from diffrestorer.evaluation.figures.grids import GRIDS, draw_grid
from diffrestorer.evaluation.figures.similarity import draw_similarity
from diffrestorer.evaluation.figures.training_curves import draw_training

PAPER_FIGURES: dict[str, Callable[[FiguresConfig], Figure]] = {
    "3": lambda config: draw_similarity(config.model, config.clip, config.seed),
    **dict.fromkeys(GRIDS, lambda config: draw_grid(config.figure, Path(config.evaluation))),
    "10": lambda config: draw_embeddings(config.model, config.data.root, config.seed),
    "training": lambda config: draw_training(Path(config.training)),
}
"""Figure -> the function that draws it, and the settings that it takes."""


def save_figure(figure: Figure, path: Path) -> None:
    """Write PATH.png and PATH.pdf; equal numbers give equal bytes."""
    FigureCanvasAgg(figure)
    for suffix, metadata in (
        (".png", {"Software": None}),
        (".pdf", {"CreationDate": None, "Producer": None}),
    ):
        data = io.BytesIO()
        figure.savefig(data, format=suffix[1:], dpi=150, metadata=metadata)
        write_bytes(path.with_suffix(suffix), data.getvalue())
