"""Pictures of the documentation: a figure is a function that returns pixels; a new one joins `FIGURES`.

The paper's figures are in `paper_figures`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.config.evaluating import FiguresConfig
from diffrestorer.config.synthesis_ranges import Blur, Jpeg, Noise, Synthesis, at_strength
from diffrestorer.config.synthesis_variants import HELD_OUT
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.images import Photo, write_photo
from diffrestorer.data.synthesis import VARIANTS, degrade

PHOTOS: tuple[str, ...] = ("astronaut", "chelsea", "coffee", "rocket")
"""Photos in scikit-image's wheel (CC0 or public domain)."""

STRENGTHS: dict[str, float] = {"weak": 0.0, "medium": 0.5, "strong": 1.0}
VARIANT_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of figure=variants

SHOWN = Synthesis(noise=Noise((15.0, 50.0)), blur=Blur(defocus_share=0.0), jpeg=Jpeg((10, 40)))
"""The defaults, with ranges for the two classes whose default is one value; the page shows defocus by itself."""

TILE = 156  # px: the page stays below 1.5 MB
GAP = 6
LARGE_SIDE, SHOWN_SIDE = 2048, 512  # of figure=tiles
CAPTION_HEIGHT = 20


def make_figure(config: FiguresConfig) -> Path:
    """Make the figure `config.figure` and return its path.

    Raises:
        ValueError: there is no such figure or photo, or the file can't be written.
    """
    draw = {**FIGURES, **MODEL_FIGURES}.get(config.figure)
    if draw is None:
        return _make_paper_figure(config)
    path = Path(config.output_dir) / f"{config.figure}.png"
    pixels = draw(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_photo(path, Photo(pixels))
    return path


def _make_paper_figure(config: FiguresConfig) -> Path:
    try:
        from diffrestorer.evaluation.figures.paper_figures import PAPER_FIGURES, save_figure
    except ImportError as error:
        raise ValueError(
            f"figures need {error.name}, which is not installed: pip install 'diffrestorer[eval]'"
        ) from None
    if config.figure not in PAPER_FIGURES:
        offer = ", ".join((*FIGURES, *MODEL_FIGURES, *PAPER_FIGURES))
        raise ValueError(f"figure={config.figure} is not there: choose one of {offer}")
    name = f"figure{config.figure}" if config.figure.isdigit() else config.figure
    path = Path(config.output_dir) / f"{name}.png"
    save_figure(PAPER_FIGURES[config.figure](config), path)
    return path


def draw_degradations(photo: str, seed: int) -> np.ndarray:
    """Draw a photo under the eight degradations at three strengths each, clean, mixed, and out of focus.

    A class has one random stream for its three strengths, so that what grows is the strength. The mixtures have the
    default strength, those of the tests.
    """
    clean = _photo(photo, TILE)

    def tile(name: str, synthesis: Synthesis) -> np.ndarray:
        return degrade(clean, name, counter_rng(seed, f"figure/{name}"), synthesis)

    half = len(DEGRADATIONS) // 2
    rows: list[list[tuple[str, np.ndarray]]] = []
    for names in zip(DEGRADATIONS[:half], DEGRADATIONS[half:], strict=True):
        row = []
        for name in names:
            for strength, value in STRENGTHS.items():
                row.append((f"{name}, {strength}", tile(name, at_strength(SHOWN, value))))
        rows.append(row)
    mixtures = [(name, tile(name, Synthesis())) for name in MIXTURES]
    defocus = tile("blur", Synthesis(blur=Blur(defocus_share=1.0)))
    return _page([*rows, [("clean", clean), *mixtures, ("blur, out of focus", defocus)]])


def draw_tiles(photo: str, model: str, seed: int) -> np.ndarray:
    """Draw a noisy photo of 2048x2048 pixels restored by tiles: degraded, restored, and full-size where tiles meet.

    Raises:
        ValueError: what the model returns is not finite.
    """
    import torch

    from diffrestorer.evaluation.restoring.outputs import as_pixels
    from diffrestorer.inference.pipeline import DiffRestorerPipeline
    from diffrestorer.inference.tiling import AUTO_SIDE, Grid
    from diffrestorer.models.backbones import PATCH

    clean = _photo(photo, LARGE_SIDE)
    lq = degrade(clean, "noise", counter_rng(seed, "figure/tiles"), SHOWN)
    pipe = DiffRestorerPipeline.from_pretrained(model)
    generator = torch.Generator().manual_seed(seed)
    restored = as_pixels(pipe(lq, generator=generator, output_type="pt").images[0])
    if restored is None:
        raise ValueError(f"model={model} restored the photo into numbers that are not finite")

    # The centre, where four tiles meet, in full size.
    grid = Grid.over(restored.shape[:2], AUTO_SIDE, 64, PATCH)
    # Where the second tile of each axis begins, in the middle: the first ends a quarter of a tile later.
    middles = [PATCH * (axis.starts[1] + axis.side // 8) for axis in (grid.rows, grid.columns)]
    top, left = (middle - SHOWN_SIDE // 2 for middle in middles)

    # Both whole images, shrunk, beside it.
    size = (SHOWN_SIDE, SHOWN_SIDE)
    small = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (lq, restored)]
    shown = restored[top : top + SHOWN_SIDE, left : left + SHOWN_SIDE]
    tiles = f"restored by {len(grid.rows.starts)} x {len(grid.columns.starts)} tiles"
    captions = ("2048 x 2048, noise", tiles, "where four tiles meet, full size")
    return _page([list(zip(captions, (*small, shown), strict=True))])


def draw_variants(photo: str, seed: int) -> np.ndarray:
    """Draw every variant of every class but `ours`: a row per variant from its weakest to its strongest.

    Each strength has a random stream of its own, so that a row shows the variety, too.
    """
    clean = _photo(photo, TILE)
    rows: list[list[tuple[str, np.ndarray]]] = []
    for degradation, variants in VARIANTS.items():
        for name, variant in variants.items():
            held = " (held out)" if name == HELD_OUT[degradation] else ""
            row = [(f"{degradation}: {name}{held}", clean)]
            for index, strength in enumerate(VARIANT_STRENGTHS):
                rng = counter_rng(seed, f"figure/{degradation}/{name}", index)
                row.append((f"strength {strength:g}", variant(clean, rng, strength)))
            rows.append(row)
    return _page(rows)


FIGURES: dict[str, Callable[[FiguresConfig], np.ndarray]] = {
    "degradations": lambda config: draw_degradations(config.photo, config.seed),
    "variants": lambda config: draw_variants(config.photo, config.seed),
}
"""Pictures that are the same bytes each time."""

MODEL_FIGURES: dict[str, Callable[[FiguresConfig], np.ndarray]] = {
    "tiles": lambda config: draw_tiles(config.photo, config.model, config.seed)
}
"""Pictures that a model makes, in minutes."""


def _photo(name: str, side: int) -> np.ndarray:
    """Load the centre of a photo as uint8 (side, side, 3), shrunk by area or enlarged by cubics."""
    if name not in PHOTOS:
        raise ValueError(f"photo={name} is not there: choose one of {', '.join(PHOTOS)}")
    try:
        import skimage.data
    except ImportError:
        raise ValueError(
            "the photos of the figures need scikit-image: pip install 'diffrestorer[eval]'"
        ) from None

    # The largest square in the middle.
    photo = getattr(skimage.data, name)()
    square = min(photo.shape[:2])
    top, left = ((size - square) // 2 for size in photo.shape[:2])
    middle = photo[top : top + square, left : left + square]
    method = cv2.INTER_AREA if side < square else cv2.INTER_CUBIC
    return cv2.resize(middle, (side, side), interpolation=method)


def _page(
    rows: Sequence[Sequence[tuple[str, np.ndarray]]],
) -> np.ndarray:
    """Lay rows of captioned square tiles on white: uint8 (h, w, 3)."""
    # The longest row gives the width.
    side = len(rows[0][0][1])
    step_x, step_y = side + GAP, side + CAPTION_HEIGHT + GAP
    width = GAP + max(map(len, rows)) * step_x
    height = GAP + len(rows) * step_y
    page = Image.new("RGB", (width, height), "white")

    # Each tile under its caption.
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=13)
    for row, tiles in enumerate(rows):
        for column, (caption, pixels) in enumerate(tiles):
            left, top = GAP + column * step_x, GAP + row * step_y
            centre = (left + side // 2, top + CAPTION_HEIGHT // 2)
            draw.text(centre, caption, "black", font, anchor="mm")
            page.paste(Image.fromarray(pixels), (left, top + CAPTION_HEIGHT))
    return np.asarray(page)
