"""The pictures in docs/ are what their command makes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffrestorer.config.evaluating import FiguresConfig
from diffrestorer.evaluation.figures.drawing import FIGURES, make_figure

DOCS = Path(__file__).resolve().parents[2] / "docs"


# The page of all variants is ten megabytes: it is drawn when somebody wants to see it.
@pytest.mark.parametrize("figure", sorted(set(FIGURES) - {"variants"}))
def test_the_picture_in_docs_is_current(figure: str, tmp_path: Path) -> None:
    path = make_figure(FiguresConfig(figure=figure, output_dir=str(tmp_path / "new")))
    assert path == tmp_path / "new" / f"{figure}.png"
    with Image.open(path) as made, Image.open(DOCS / f"{figure}.png") as published:
        assert made.format == published.format == "PNG"
        made_pixels, published_pixels = np.asarray(made, np.int16), np.asarray(published, np.int16)
    assert made_pixels.shape == published_pixels.shape
    assert np.abs(made_pixels - published_pixels).mean() < 0.5, (
        "the same picture, up to a machine's rounding"
    )
    assert (DOCS / f"{figure}.png").stat().st_size <= 1_500_000


def test_a_figure_is_the_same_bytes_each_time_and_another_with_another_seed(tmp_path: Path) -> None:
    first, again, other = (
        make_figure(FiguresConfig(output_dir=str(tmp_path / name), seed=seed)).read_bytes()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            FiguresConfig(figure="degradation"),
            "figure=degradation is not there: choose one of degradations",
        ),
        (
            FiguresConfig(photo="cat"),
            "photo=cat is not there: choose one of astronaut, chelsea, coffee, rocket",
        ),
    ],
)
def test_what_is_not_there_is_refused(config: FiguresConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_figure(FiguresConfig(config.figure, str(tmp_path), config.seed, config.photo))
    assert not list(tmp_path.iterdir())
