"""Views of a clean photo: what a training crop shows of it, before it is degraded."""

import string

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffrestorer.config.view_ranges import Views
from diffrestorer.data.synthesis import draw

Pixels = NDArray[np.uint8]

_WORDS, _LETTERS = (1, 4), (1, 9)  # at least, fewer than
_LETTER_HEIGHT = (0.05, 0.2)  # of the crop's side
_NIGHT_GAMMA = (1.6, 5.0)
_DIM_LIGHT = (0.2, 0.8)  # share of the tones that a dim scene keeps
_DIM_HIGHLIGHTS = 12.0  # the power of the tones that keep more of theirs: lamps, what they shine on
_COLOR_GAMMA = (0.6, 1.7)  # of each channel; drawn log-uniformly


def crop(photo: Pixels, size: int, views: Views, rng: np.random.Generator) -> Pixels:
    """A random square of a photo (h, w, 3), both sides at least `size`, mirrored half of the time: (size, size, 3).

    With `views.scale` the photo is shrunk first, by a factor from that range, though never below the crop.
    """
    side = min(round(size / draw(rng, views.scale)), *photo.shape[:2])
    top, left = (rng.integers(length - side + 1) for length in photo.shape[:2])
    square = photo[top : top + side, left : left + side]
    if side > size:
        square = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
    return np.array(square[:, ::-1] if rng.random() < 0.5 else square, order="C")


def vary(image: Pixels, degradation: str, views: Views, rng: np.random.Generator) -> Pixels:
    """The crop, now and then in other colours, turned into a night or a dim scene, or written on.

    A dark photo is not a degraded one, nor is one of a colour that few photos have: without such scenes among the
    clean ones every dark photo is taken for `low_light`, whose clean photos therefore stay as bright as they are.
    Dim scenes are as dark as those of `low_light` and lack only its noise.
    """
    tones = np.tile(np.arange(256)[:, None] / 255.0, 3)
    if rng.random() < views.color_share:
        image = image[:, :, rng.permutation(3)]
        low, high = np.log(_COLOR_GAMMA)
        tones **= np.exp(rng.uniform(low, high, 3))
    scene = rng.random()
    if degradation != "low_light":
        if scene < views.dark_share:
            tones **= rng.uniform(*_NIGHT_GAMMA)
        elif scene < views.dark_share + views.dim_share:
            tones = _dim(tones, rng)
    table = np.rint(255.0 * tones).astype(np.uint8)
    if (table != np.arange(256)[:, None]).any():
        image = np.take_along_axis(table, image.reshape(-1, 3), axis=0).reshape(image.shape)
    return _write_on(image, rng) if rng.random() < views.text_share else image


def _dim(tones: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Tones in [0, 1] in less light, the brightest of them more or less as bright as they were."""
    light, highlights = rng.uniform(*_DIM_LIGHT), rng.uniform()
    return light * tones + (1.0 - light) * highlights * tones**_DIM_HIGHLIGHTS


def _write_on(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A line or more of random letters and digits somewhere, of one colour."""
    side = image.shape[0]
    alphabet = list(string.ascii_letters + string.digits)
    words = ["".join(rng.choice(alphabet, rng.integers(*_LETTERS))) for _ in range(rng.integers(*_WORDS))]
    font = ImageFont.load_default(size=max(8.0, side * rng.uniform(*_LETTER_HEIGHT)))
    canvas = Image.fromarray(image)
    corner = tuple(side * rng.uniform(0.0, 0.7, 2))
    ImageDraw.Draw(canvas).text(corner, rng.choice([" ", "\n"]).join(words), tuple(rng.integers(0, 256, 3)), font)
    return np.array(canvas)
