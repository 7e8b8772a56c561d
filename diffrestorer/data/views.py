"""Views of a clean photo: what a training crop shows of it, before it is degraded."""

import math
import string

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffrestorer.config.view_ranges import Views
from diffrestorer.data.degrading.jpeg import through_opencv
from diffrestorer.data.degrading.pixels import TO_LINEAR, draw_count, linear_to_bytes

Pixels = NDArray[np.uint8]

_WORDS, _LETTERS = (1, 4), (1, 9)  # at least, fewer than
_LETTER_HEIGHT = (0.05, 0.2)  # of the crop's side
_NIGHT_GAMMA = (1.6, 5.0)
_DIM_LIGHT = (0.2, 0.8)  # share of the tones that a dim scene keeps
_DIM_HIGHLIGHTS = 12.0  # the power of the tones that keep more of theirs: lamps, what they shine on
_COLOR_GAMMA = (0.6, 1.7)  # of each channel; drawn log-uniformly
_LIGHTS = (0.2, 20.0)  # per 1000 pixels; drawn log-uniformly
_LIGHT_SIZES = (0.4, 1.6)  # standard deviation in pixels of the smallest and of the largest kind
_LIGHT_WARMTH = 0.4  # standard deviation of the logarithm of red light over blue


def crop(photo: Pixels, size: int, views: Views, rng: np.random.Generator) -> Pixels:
    """Return a random square of a photo (h, w, 3) as (size, size, 3), mirrored half of the time.

    With `views.scale` the photo, whose sides are at least `size`, is shrunk first, though never below the crop.
    """
    # Only scales that the photo allows, in equal shares of octaves: a 4K photo is seen from near and far alike.
    lowest = size / min(photo.shape[:2])
    low, high = (max(scale, lowest) for scale in views.scale)
    scale = (
        low
        if views.scale[0] == views.scale[1]
        else math.exp(rng.uniform(math.log(low), math.log(high)))
    )
    side = min(round(size / scale), *photo.shape[:2])
    top, left = (rng.integers(length - side + 1) for length in photo.shape[:2])
    square = photo[top : top + side, left : left + side]
    if side > size:
        square = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
    return np.array(square[:, ::-1] if rng.random() < 0.5 else square, order="C")


def vary(image: Pixels, degradation: str, views: Views, rng: np.random.Generator) -> Pixels:
    """Return the crop, now and then in other colours or tones, turned into a dark scene, written on, or compressed.

    A dark photo is not a degraded one, nor is one of a colour that few photos have: without such scenes among the
    clean ones every dark photo is taken for `low_light`, whose clean photos therefore stay as bright as they are.
    Dim scenes are as dark as those of `low_light` and lack only its noise.
    """
    # Colours and light by one table per channel.
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
    if views.tone_share and rng.random() < views.tone_share:
        image = tone(image, degradation, views, rng)
    if (
        views.lights_share
        and rng.random() < views.lights_share
        and degradation not in ("low_light", "snow")
    ):
        image = light_up(image, rng)

    # What is written on or compressed has its colours already.
    if rng.random() < views.text_share:
        image = _write_on(image, rng)
    if views.compressed_share and rng.random() < views.compressed_share:
        sampling = ("420", "422", "444")[rng.integers(3)]
        image = through_opencv(image, draw_count(rng, views.compressed_quality), sampling)
    return image


def tone(image: Pixels, degradation: str, views: Views, rng: np.random.Generator) -> Pixels:
    """Return the crop as a scene that is dark, pale, warm or cool by nature.

    The network has to leave such scenes as they are, so none is of the class that it would be mistaken for: `low_light`
    gets no dark ones, `haze` no pale ones. A pale scene is evenly pale, unlike haze, which grows with distance.

    Args:
        image: uint8 (h, w, 3).
        degradation: the class that the crop will be degraded to.
        views: the ranges.
        rng: the only source of randomness.
    """
    kinds = [
        name
        for name, rival in (("dark", "low_light"), ("pale", "haze"), ("tint", ""))
        if rival != degradation
    ]
    kind = kinds[rng.integers(len(kinds))]

    # Linear light by its colour; the green channel keeps its brightness.
    light = np.tile(TO_LINEAR[:, None], 3)
    if kind == "tint" or rng.random() < 0.5:
        warmth = rng.uniform(*views.tone_warmth)
        light *= np.exp(np.array([0.5, 0.0, -0.5]) * warmth).astype(np.float32)
    if kind == "dark":
        # At dusk everything keeps its share; at night lamps and what they shine on keep more of theirs.
        low, high = np.log(views.tone_light)
        kept = math.exp(rng.uniform(low, high))
        lamps = rng.uniform(0.0, 1.0 - kept) * (rng.random() < 0.5)
        light = light * kept + lamps * light ** np.float32(rng.uniform(2.0, 6.0))
    tones = linear_to_bytes(light)
    if kind == "pale":
        veil, grey = rng.uniform(*views.tone_veil), rng.uniform(0.6, 0.95)
        tones = np.rint(tones * (1.0 - veil) + 255.0 * grey * veil).astype(np.uint8)
    return np.take_along_axis(tones, image.reshape(-1, 3), axis=0).reshape(image.shape)


def light_up(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Return the crop as a night full of lights: dark, with many bright points, some in a glow of their own.

    Without such clean scenes a sky full of stars is taken for `snow`, and its stars are removed.
    """
    # What the points stand before keeps little or nothing of its light.
    height, width = image.shape[:2]
    scene = TO_LINEAR[image] * np.float32(rng.uniform(0.0, 0.2) ** 2)

    # Points of a few sizes, most of them faint; each kind is spread as one picture.
    low, high = np.log(_LIGHTS)
    density = math.exp(rng.uniform(low, high)) / 1000.0
    for share, size in zip((0.7, 0.25, 0.05), np.sort(rng.uniform(*_LIGHT_SIZES, 3)), strict=True):
        points = np.zeros_like(scene)
        count = rng.poisson(share * density * height * width)
        brightness = rng.uniform(0.05, 1.0, count) ** 3
        warmth = np.exp(np.outer(rng.normal(0.0, _LIGHT_WARMTH, count), (0.5, 0.0, -0.5)))
        rows, columns = rng.integers(height, size=count), rng.integers(width, size=count)
        np.add.at(points, (rows, columns), (brightness[:, None] * warmth).astype(np.float32))
        spread = max(1.0, 2.0 * math.pi * size**2)  # a point as bright in its middle as it was drawn
        scene += spread * cv2.GaussianBlur(points, (0, 0), float(size))
        if share < 0.1:
            glow = rng.uniform(3.0, 8.0)
            scene += rng.uniform(0.0, 30.0) * cv2.GaussianBlur(points, (0, 0), glow)
    return linear_to_bytes(np.clip(scene, 0.0, 1.0))


def _dim(tones: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Show tones in [0, 1] in less light, the brightest of them more or less as bright as they were."""
    light, highlights = rng.uniform(*_DIM_LIGHT), rng.uniform()
    return light * tones + (1.0 - light) * highlights * tones**_DIM_HIGHLIGHTS


def _write_on(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Write a line or more of random letters and digits somewhere, in one colour."""
    side = image.shape[0]
    alphabet = list(string.ascii_letters + string.digits)
    words = [
        "".join(rng.choice(alphabet, rng.integers(*_LETTERS))) for _ in range(rng.integers(*_WORDS))
    ]
    font = ImageFont.load_default(size=max(8.0, side * rng.uniform(*_LETTER_HEIGHT)))
    canvas = Image.fromarray(image)
    corner = tuple(side * rng.uniform(0.0, 0.7, 2))
    ImageDraw.Draw(canvas).text(
        corner, rng.choice([" ", "\n"]).join(words), tuple(rng.integers(0, 256, 3)), font
    )
    return np.array(canvas)
