"""Pictures of the documentation: a figure is a function from the configuration to pixels; a new one joins `FIGURES`.

The paper's figures are in `paper_figures`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffrestorer.config.schema import FiguresConfig
from diffrestorer.config.synthesis import Blur, Jpeg, Noise, Synthesis, at_strength
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.images import Photo, write_photo
from diffrestorer.data.synthesis import degrade
from diffrestorer.degradations import DEGRADATIONS, MIXTURES

PHOTOS: tuple[str, ...] = ("astronaut", "chelsea", "coffee", "rocket")
"""Photos in scikit-image's wheel (CC0 or public domain)."""

STRENGTHS: dict[str, float] = {"weak": 0.0, "medium": 0.5, "strong": 1.0}

SHOWN = Synthesis(noise=Noise((15.0, 50.0)), blur=Blur(defocus_share=0.0), jpeg=Jpeg((10, 40)))
"""The defaults, with ranges for the two classes whose default is one value; the page shows defocus by itself."""

TILE = 156  # px: the page stays below 1.5 MB
GAP = 6
CAPTION_HEIGHT = 20


def make_figure(config: FiguresConfig) -> Path:
    """Makes the figure `config.figure` and returns where it lies.

    Raises:
        ValueError: there is no such figure or photo, or the file can't be written.
    """
    if config.figure not in FIGURES:
        return _make_paper_figure(config)
    path = Path(config.output_dir) / f"{config.figure}.png"
    pixels = FIGURES[config.figure](config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_photo(path, Photo(pixels))
    return path


def _make_paper_figure(config: FiguresConfig) -> Path:
    try:
        from diffrestorer.evaluation.paper_figures import PAPER_FIGURES, save_figure
    except ImportError as error:
        raise ValueError(
            f"figures need {error.name}, which is not installed: pip install 'diffrestorer[eval]'"
        ) from None
    if config.figure not in PAPER_FIGURES:
        offer = ", ".join((*FIGURES, *PAPER_FIGURES))
        raise ValueError(f"figure={config.figure} is not there: choose one of {offer}")
    name = f"figure{config.figure}" if config.figure.isdigit() else config.figure
    path = Path(config.output_dir) / f"{name}.png"
    save_figure(PAPER_FIGURES[config.figure](config), path)
    return path


def draw_degradations(config: FiguresConfig) -> np.ndarray:
    """One photo under the eight degradations at three strengths each, and clean, under the mixtures, and out of focus.

    A class has one random stream for its three strengths, so that what grows is the strength. The mixtures have the
    default strength, those of the tests.
    """
    clean = _photo(config.photo, TILE)

    def tile(name: str, synthesis: Synthesis) -> np.ndarray:
        return degrade(clean, name, counter_rng(config.seed, f"figure/{name}"), synthesis)

    half = len(DEGRADATIONS) // 2
    rows: list[list[tuple[str, np.ndarray]]] = []
    for names in zip(DEGRADATIONS[:half], DEGRADATIONS[half:], strict=True):
        rows.append(
            [
                (f"{name}, {strength}", tile(name, at_strength(SHOWN, value)))
                for name in names
                for strength, value in STRENGTHS.items()
            ]
        )
    mixtures = [(name, tile(name, Synthesis())) for name in MIXTURES]
    defocus = tile("blur", Synthesis(blur=Blur(defocus_share=1.0)))
    return _page([*rows, [("clean", clean), *mixtures, ("blur, out of focus", defocus)]])


FIGURES: dict[str, Callable[[FiguresConfig], np.ndarray]] = {"degradations": draw_degradations}


def _photo(name: str, side: int) -> np.ndarray:
    """The centre of a photo as uint8 (side, side, 3), shrunk by area."""
    if name not in PHOTOS:
        raise ValueError(f"photo={name} is not there: choose one of {', '.join(PHOTOS)}")
    try:
        import skimage.data
    except ImportError:
        raise ValueError("the photos of the figures need scikit-image: pip install 'diffrestorer[eval]'") from None
    photo = getattr(skimage.data, name)()
    square = min(photo.shape[:2])
    top, left = ((size - square) // 2 for size in photo.shape[:2])
    return cv2.resize(photo[top : top + square, left : left + square], (side, side), interpolation=cv2.INTER_AREA)


def _page(rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
    """Rows of captioned tiles on white: uint8 (h, w, 3)."""
    step_x, step_y = TILE + GAP, TILE + CAPTION_HEIGHT + GAP
    page = Image.new("RGB", (GAP + max(map(len, rows)) * step_x, GAP + len(rows) * step_y), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=13)
    for row, tiles in enumerate(rows):
        for column, (caption, pixels) in enumerate(tiles):
            left, top = GAP + column * step_x, GAP + row * step_y
            draw.text((left + TILE // 2, top + CAPTION_HEIGHT // 2), caption, "black", font, anchor="mm")
            page.paste(Image.fromarray(pixels), (left, top + CAPTION_HEIGHT))
    return np.asarray(page)
