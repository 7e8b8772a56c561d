"""Drops on a window as beads, merged lenses, defocused spots and trails; held out: spherical caps by Snell's law.

A drop is a height field over the window: its slope displaces the scene, which is seen upside down and out of focus.
"""

import math
from typing import Any

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
    soften,
    to_bytes,
    to_float,
)

_SUBPIXEL = 4  # bits of a fraction of a pixel in OpenCV's drawing
_WATER = 1.33  # refractive index


def beads(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Let mist settle as many small beads of irregular shape: the tops of smooth noise, each a lens."""
    height, width = image.shape[:2]
    grain = ratio(rng.random(), 1.5, 7.0) * max(scale_of(image), 0.4)
    noise = soften(gaussian_noise((height, width), rng), grain)
    noise /= noise.std() + 1e-6
    above = np.clip(noise - mix(strength, 2.4, 0.6), 0.0, None)

    # Steep at the edge and flat on top, as surface tension makes it.
    heights = np.sqrt(above) * grain
    mask = np.clip(above * rng.uniform(2.0, 6.0), 0.0, 1.0)
    return _look_through(image, heights, mask, rng, strength, reach=2.5 * grain)


def merged(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Put drops of all sizes on the window and let those that touch flow together: level sets of summed bumps."""
    height, width = image.shape[:2]
    scale = scale_of(image)
    count = 1 + rng.poisson(ratio(strength, 5.0, 45.0))
    radii = (
        np.minimum(2.5 * (1.0 - rng.random(count)) ** (-1.0 / 1.3), mix(strength, 10.0, 34.0)) * scale
    )
    total = np.zeros((height, width), np.float32)
    for radius in radii.tolist():
        # Far from its centre a bump is nothing, so a window of it is enough. The lower end hangs down.
        x, y, tall = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.9, 1.5)
        reach = math.ceil(2.2 * radius * tall)
        left, right = max(int(x) - reach, 0), min(int(x) + reach + 1, width)
        top, bottom = max(int(y) - reach, 0), min(int(y) + reach + 1, height)
        dx = (np.arange(left, right, dtype=np.float32)[None, :] - x) / radius
        dy = (np.arange(top, bottom, dtype=np.float32)[:, None] - y) / np.float32(radius * tall)
        total[top:bottom, left:right] += np.exp(-0.7 * (dx * dx + dy * dy * (1.0 - 0.2 * np.sign(dy))))
    mean_radius = float(np.sqrt(np.mean(radii**2)))
    above = np.clip(total - 0.5, 0.0, None)
    heights = np.sqrt(above) * mean_radius
    mask = np.clip(above * (0.3 * mean_radius + 2.0), 0.0, 1.0)
    return _look_through(image, heights, mask, rng, strength, reach=2.5 * mean_radius)


def defocused(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Focus on the scene, so that drops and dirt near the lens are large soft spots with dark rims."""
    height, width = image.shape[:2]
    scale = scale_of(image)
    canvas = np.zeros((height, width), np.uint8)
    unit = 1 << _SUBPIXEL
    for _ in range(1 + rng.poisson(ratio(strength, 4.0, 24.0))):
        radius = ratio(rng.random(), 3.0, mix(strength, 10.0, 30.0)) * scale
        centre = (round(rng.uniform(0, width) * unit), round(rng.uniform(0, height) * unit))
        axes = (max(round(radius * unit), 1), max(round(radius * rng.uniform(0.7, 1.4) * unit), 1))
        grey = int(rng.integers(110, 256))
        cv2.ellipse(canvas, centre, axes, rng.uniform(0, 180), 0, 360, grey, -1, cv2.LINE_AA, _SUBPIXEL)
    edge = rng.uniform(1.5, 5.0) * scale
    spots = soften(to_float(canvas), edge)
    rim = np.abs(spots - soften(spots, 1.5 * edge))

    # Inside the scene is washed out, brighter (water) or darker (dirt) than outside.
    clear = to_float(image)
    washed = soften(clear, rng.uniform(2.0, 7.0) * scale)
    light = rng.uniform(0.75, 1.25)
    seen = washed * light + rng.uniform(0.0, 0.12)
    opacity = mix(strength, 0.35, 1.0)
    wet = overlay(clear, spots * opacity, seen, "alpha")
    return to_bytes(wet * (1.0 - rng.uniform(0.0, 1.2) * opacity * rim[..., None]))


def trails(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Let drops run down the window: wobbling tracks of water that end in a drop."""
    height, width = image.shape[:2]
    scale = scale_of(image)
    canvas = np.zeros((height, width), np.uint8)
    unit = 1 << _SUBPIXEL
    for _ in range(1 + rng.poisson(ratio(strength, 2.0, 14.0))):
        # A random walk sideways with a pull straight down, thinner at the top than at the head.
        steps = int(rng.integers(5, 14))
        top, length = rng.uniform(-0.3, 0.9) * height, rng.uniform(0.1, 0.7) * height
        wobble = np.cumsum(rng.normal(0.0, 1.6 * scale, steps))
        x = rng.uniform(0, width) + wobble + np.linspace(0.0, rng.normal(0.0, 6.0 * scale), steps)
        y = np.linspace(top, top + length, steps)
        points = np.rint(np.column_stack([x, y]) * unit).astype(np.int32)
        thickness = max(round(rng.uniform(1.5, mix(strength, 3.0, 6.0)) * scale), 1)
        cv2.polylines(
            canvas, [points], False, int(rng.integers(120, 220)), thickness, cv2.LINE_AA, _SUBPIXEL
        )
        head = (
            max(round(rng.uniform(0.9, 1.6) * thickness * unit), 1),
            max(round(1.4 * thickness * unit), 1),
        )
        x_end, y_end = points[-1].tolist()
        cv2.ellipse(canvas, (x_end, y_end), head, 0, 0, 360, 255, -1, cv2.LINE_AA, _SUBPIXEL)
    water = soften(to_float(canvas), 1.2 * scale)
    mask = np.clip(1.6 * water, 0.0, 1.0)
    return _look_through(image, water * (6.0 * scale), mask, rng, strength, reach=10.0 * scale)


def caps(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Held out: refract every ray through a spherical cap of water by Snell's law, and lose light at its rim.

    Source: the geometry of Halimeh and Roser, "Raindrop detection on car windshields", IV 2009, with the scene as a
    plane at one distance.
    """
    height, width = image.shape[:2]
    scale = scale_of(image)
    clear = to_float(image)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    mask = np.zeros((height, width), np.float32)
    loss = np.ones((height, width), np.float32)
    distance = rng.uniform(3.0, 8.0)  # of the scene, in radii of a drop
    for _ in range(1 + rng.poisson(ratio(strength, 4.0, 36.0))):
        radius = rng.lognormal(math.log(mix(strength, 4.0, 9.0)), 0.45) * scale
        x, y, squeeze, flat = (
            rng.uniform(0, width),
            rng.uniform(0, height),
            rng.uniform(0.75, 1.2),
            rng.uniform(0.5, 0.95),
        )
        reach = math.ceil(radius * 1.3) + 2
        left, top = max(int(x) - reach, 0), max(int(y) - reach, 0)
        window = np.s_[top : int(y) + reach + 1, left : int(x) + reach + 1]
        dx = (_coordinates(window, width) - x) / radius
        dy = (_coordinates(window[::-1], height).T - y) / (radius * squeeze)
        from_centre = np.hypot(dx, dy)

        # The angle of incidence at the cap, the refracted one inside, and where that ray meets the scene.
        incidence = np.arcsin(np.clip(from_centre * flat, 0.0, 0.999))
        bend = incidence - np.arcsin(np.sin(incidence) / _WATER)
        ray = np.tan(np.clip(2.6 * bend, 0.0, 1.45)) * distance * radius
        inside = np.clip((1.0 - from_centre) * (radius / max(1.2 * scale, 1.0)) + 0.5, 0.0, 1.0)
        covers = inside > mask[window]
        unit_x, unit_y = dx / (from_centre + 1e-4), dy / (from_centre + 1e-4)
        columns[window] = np.where(covers, x - unit_x * ray, columns[window])
        rows[window] = np.where(covers, y - unit_y * ray, rows[window])
        loss[window] = np.where(covers, 1.0 - 0.6 * np.clip(from_centre, 0.0, 1.0) ** 6, loss[window])
        mask[window] = np.maximum(mask[window], inside)
    near = soften(clear, 1.2 * scale)
    seen = (
        cv2.remap(near, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        * loss[..., None]
    )
    opacity = mix(strength, 0.4, 1.0)
    return to_bytes(overlay(clear, soften(mask, 0.6 * scale) * opacity, seen, "alpha"))


def _coordinates(window: tuple[slice, slice], length: int) -> Field:
    """Return the coordinates that the second slice of a window takes along a side of `length` pixels: (1, n)."""
    return np.arange(*window[1].indices(length), dtype=np.float32)[None, :]


def _look_through(
    image: Image, heights: Field, mask: Field, rng: np.random.Generator, strength: float, reach: float
) -> Image:
    """Show the scene through water.

    Args:
        image: uint8 (h, w, 3).
        heights: of the water over the window in pixels, (h, w).
        mask: where there is water, (h, w) in [0, 1].
        rng: the only source of randomness.
        strength: from 0, nearly clear water, to 1.
        reach: by how many pixels a slope of one displaces the scene.
    """
    height, width = image.shape[:2]
    scale = scale_of(image)
    clear = to_float(image)

    # A convex surface shows the scene upside down: the source lies down the slope's other side.
    slopes: Any = np.gradient(heights) if min(height, width) > 1 else (heights * 0, heights * 0)
    slope_y, slope_x = slopes
    push = rng.uniform(1.0, 2.5) * reach
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    columns += push * np.clip(slope_x, -1.5, 1.5)
    rows += push * np.clip(slope_y, -1.5, 1.5)
    lens = soften(clear, rng.uniform(0.6, 2.2) * scale)
    seen = cv2.remap(lens, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)

    # The sky is bright, so the lower part of a drop is, too; and now and then a lamp glints in it.
    shade = rng.uniform(0.05, 0.3) * np.clip(-slope_y, -1.0, 1.0)
    seen = seen * (1.0 + shade[..., None])
    if rng.random() < 0.5:
        glint = np.clip((slope_y + slope_x) * 1.2 - 0.9, 0.0, 1.0)
        seen = overlay(seen, soften(glint, 0.5 * scale) * 0.8, pale_colour(rng, 0.9, 1.0), "alpha")
    opacity = mix(strength, 0.4, 1.0)
    return to_bytes(
        overlay(clear, soften(mask, rng.uniform(0.3, 1.2) * scale) * opacity, seen, "alpha")
    )
