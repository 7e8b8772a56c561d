"""Snow as soft discs, smeared paths and clumps; held out: irregular polygons by screen."""

import math

import cv2
import numpy as np

from diffrestorer.data.degrading.pixels import (
    Field,
    Image,
    gaussian_noise,
    mix,
    overlay,
    pale_colour,
    ratio,
    scale_of,
    smooth_field,
    soften,
    to_bytes,
    to_float,
)

_SUBPIXEL = 4  # bits of a fraction of a pixel in OpenCV's drawing


def discs(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Draw round flakes of many sizes in three depths: those in focus cover, near ones are large, soft and thin."""
    height, width = image.shape[:2]
    scale = scale_of(image)
    falling = to_float(image)
    colour = pale_colour(rng, 0.85, 1.0)
    for radius, density, sigma, cover in (
        (0.8, 5.0, 0.5, 0.8),
        (1.7, 1.6, 0.7, 1.0),
        (4.5, 0.22, 2.0, 0.6),
    ):
        # Each depth is there or not, and with flakes of sizes of its own.
        size = radius * rng.uniform(0.7, 1.3) * scale
        count = rng.poisson(density * ratio(strength, 0.15, 1.4) * height * width / (1000.0 * scale**2))
        places = rng.uniform((0, 0), (width, height), (count, 2))
        radii = np.maximum(size * rng.lognormal(0.0, 0.35, count), 0.5)
        greys = rng.integers(130, 256, count).tolist()
        canvas = np.zeros((height, width), np.uint8)
        unit = 1 << _SUBPIXEL
        rows = np.rint(np.column_stack([places, radii]) * unit).astype(int).tolist()
        for (x, y, r), grey in zip(rows, greys, strict=True):
            cv2.circle(canvas, (x, y), r, grey, -1, cv2.LINE_AA, _SUBPIXEL)
        mask = soften(to_float(canvas), sigma * rng.uniform(0.6, 1.5) * scale)
        opacity = min(cover * mix(strength, 0.25, 1.05), 1.0)
        falling = overlay(falling, mask * opacity, colour, "alpha")
    return to_bytes(_veiled(falling, rng, strength))


def smeared(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Draw the short curved paths of flakes in a gust, which turns from place to place; their light is added."""
    height, width = image.shape[:2]
    scale = scale_of(image)
    count = 1 + rng.poisson(ratio(strength, 0.5, 4.5) * height * width / (1000.0 * scale**2))
    starts = rng.uniform((0, 0), (width, height), (count, 2))
    lengths = scale * rng.lognormal(math.log(rng.uniform(3.0, 12.0)), 0.4, count)
    gust = (smooth_field(height, width, 3, rng) - 0.5) * rng.uniform(0.5, 2.5) + rng.uniform(-1.1, 1.1)
    angles = gust[starts[:, 1].astype(int), starts[:, 0].astype(int)] + rng.normal(0.0, 0.12, count)
    bends = rng.normal(0.0, 0.4, count)

    # Four points of an arc per flake.
    steps = np.linspace(0.0, 1.0, 4)[None, :]
    turned = angles[:, None] + bends[:, None] * steps
    x = starts[:, :1] + lengths[:, None] * steps * np.sin(turned)
    y = starts[:, 1:] + lengths[:, None] * steps * np.cos(turned)
    points = np.rint(np.stack([x, y], axis=-1) * (1 << _SUBPIXEL)).astype(np.int32)
    thicknesses = np.maximum(np.rint(scale * rng.lognormal(0.25, 0.5, count)), 1).astype(int).tolist()
    greys = rng.integers(90, 256, count).tolist()
    canvas = np.zeros((height, width), np.uint8)
    for path, thickness, grey in zip(points, thicknesses, greys, strict=True):
        cv2.polylines(canvas, [path], False, grey, thickness, cv2.LINE_AA, _SUBPIXEL)
    mask = soften(to_float(canvas), rng.uniform(0.6, 1.5) * scale) * mix(strength, 0.14, 0.9)
    falling = overlay(to_float(image), mask, pale_colour(rng, 0.8, 1.0), "add")
    return to_bytes(_veiled(falling, rng, strength))


def clumps(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Cut irregular flakes out of smooth noise at a high level, in two sizes; they cover what is behind."""
    height, width = image.shape[:2]
    scale = scale_of(image)
    falling = to_float(image)
    colour = pale_colour(rng, 0.85, 1.0)
    for size in (rng.uniform(0.7, 1.3), rng.uniform(1.5, 3.0)):
        # Drawn out a little across or along the fall; the noise is made small and enlarged where its grain is large.
        grain = max(size * scale, 0.6)
        noise = soften(gaussian_noise((height, width), rng), grain)
        noise = cv2.GaussianBlur(
            noise, (0, 0), 0.3, sigmaY=grain * rng.uniform(0.3, 1.0), borderType=cv2.BORDER_REFLECT
        )
        noise /= noise.std() + 1e-6
        level = mix(strength, 2.9, 1.75) + rng.uniform(-0.1, 0.1)
        mask = np.clip((noise - level) * rng.uniform(1.2, 3.5), 0.0, 1.0)
        falling = overlay(falling, mask * mix(strength, 0.25, 0.95), colour, "alpha")
    return to_bytes(_veiled(falling, rng, strength))


def polygons(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Held out: fill ragged polygons whose sizes follow a power law, blur them by their size, brighten by screen."""
    height, width = image.shape[:2]
    scale = scale_of(image)
    count = 1 + rng.poisson(ratio(strength, 0.5, 6.0) * height * width / (1000.0 * scale**2))
    radii = np.minimum(0.8 * (1.0 - rng.random(count)) ** (-1.0 / 2.2), 9.0) * scale
    places = rng.uniform((0, 0), (width, height), (count, 2))
    corners = np.linspace(0.0, 2 * math.pi, 8, endpoint=False)[None, :] + rng.uniform(
        0.0, math.pi, (count, 1)
    )
    reaches = radii[:, None] * rng.uniform(0.45, 1.3, (count, 8))
    stretch = rng.uniform(1.0, 2.0)
    x = places[:, :1] + reaches * np.cos(corners)
    y = places[:, 1:] + reaches * np.sin(corners) * stretch
    outlines = np.rint(np.stack([x, y], axis=-1) * (1 << _SUBPIXEL)).astype(np.int32)

    # Three groups by size: the larger, the nearer, the less in focus.
    light = np.zeros((height, width), np.float32)
    group = np.digitize(radii / scale, (1.5, 3.5))
    for index, sigma in enumerate((0.4, 0.8, 1.9)):
        canvas = np.zeros((height, width), np.uint8)
        for outline in outlines[group == index]:
            cv2.fillPoly(canvas, [outline], int(rng.integers(120, 256)), cv2.LINE_AA, _SUBPIXEL)
        light = np.maximum(light, soften(to_float(canvas), sigma * scale))
    mask = light * mix(strength, 0.12, 0.95)
    falling = overlay(to_float(image), mask, pale_colour(rng, 0.85, 1.0), "screen")
    upward = np.linspace(1.0, 0.2, height, dtype=np.float32)[:, None] * mix(strength, 0.0, 0.25)
    return to_bytes(
        overlay(
            falling, np.broadcast_to(upward, (height, width)), pale_colour(rng, 0.75, 0.95), "alpha"
        )
    )


def _veiled(image: Field, rng: np.random.Generator, strength: float) -> Field:
    """Lay on the veil of flakes too far away to be told apart, on half of the images."""
    if rng.random() < 0.5:
        return image
    height, width = image.shape[:2]
    veil = rng.uniform(0.0, mix(strength, 0.02, 0.3)) * (0.5 + smooth_field(height, width, 2, rng))
    return overlay(image, np.clip(veil, 0.0, 1.0), pale_colour(rng, 0.75, 1.0), "alpha")
