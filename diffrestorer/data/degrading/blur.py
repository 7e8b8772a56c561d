"""Blur by motion, apertures, Gaussians and resampling; held out: the mean of a video's frames."""

import math

import cv2
import numpy as np

from diffrestorer.data.degrading.pixels import (
    TO_LINEAR,
    Field,
    Image,
    gaussian_noise,
    linear_to_bytes,
    mix,
    scale_of,
    smooth_field,
    to_bytes,
    to_float,
)

_NOISY_SHARE = 0.25
_FINE = 8  # cells of a pixel in which an aperture is drawn


def motion(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Move the camera along a straight line or a curve, at a speed that changes."""
    extent = max(mix(strength, 1.0, 26.0) * scale_of(image), 0.5)
    angle, bend = rng.uniform(0.0, math.pi), rng.uniform(-0.5, 0.5) if rng.random() < 0.6 else 0.0

    # A quadratic Bezier curve: the middle is pulled aside by `bend`; `pace` makes it slow down or speed up.
    time = np.linspace(0.0, 1.0, 200) ** math.exp(rng.uniform(-0.5, 0.5))
    along = (time - 0.5) * extent
    aside = bend * extent * 4.0 * time * (1.0 - time)
    x = along * math.cos(angle) - aside * math.sin(angle)
    y = along * math.sin(angle) + aside * math.cos(angle)
    return _filtered(image, _dwell(x - x.mean(), y - y.mean()), rng, strength)


def aperture(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Put the lens out of focus: a round or polygonal aperture, evenly lit or not, with a sharp or a soft edge."""
    radius = max(mix(strength, 0.55, 5.5) * scale_of(image), 0.5)
    half = math.ceil(radius) + 1
    side = (2 * half + 1) * _FINE
    centre = side // 2

    # Drawn finely and averaged, so that its area is right at any radius.
    shape = np.zeros((side, side), np.float32)
    blades = int(rng.integers(4, 10))
    corners = rng.uniform(0.0, 2 * math.pi) + np.arange(blades) * 2 * math.pi / blades
    if blades < 9:
        points = centre + radius * _FINE * np.stack([np.cos(corners), np.sin(corners)], axis=1)
        cv2.fillPoly(shape, [np.rint(points).astype(np.int32)], 1.0)
    else:
        cv2.circle(shape, (centre, centre), round(radius * _FINE), 1.0, -1)
    offsets = (np.arange(side, dtype=np.float32) - centre) / np.float32(radius * _FINE)
    shape *= 1.0 + rng.uniform(-0.5, 1.0) * (offsets[:, None] ** 2 + offsets[None, :] ** 2)
    kernel = shape.reshape(2 * half + 1, _FINE, 2 * half + 1, _FINE).mean(axis=(1, 3))
    if rng.random() < 0.4:
        kernel = cv2.GaussianBlur(
            kernel, (0, 0), max(0.25 * radius, 0.3), borderType=cv2.BORDER_CONSTANT
        )
    return _filtered(image, kernel, rng, strength)


def gaussian(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Blur by a Gaussian, round or drawn out to one side."""
    sigma = max(mix(strength, 0.4, 4.0) * scale_of(image), 0.35)
    other = sigma * (1.0 if rng.random() < 0.5 else rng.uniform(0.25, 1.0))
    angle = rng.uniform(0.0, math.pi)
    half = math.ceil(3.0 * sigma)
    offsets = np.arange(-half, half + 1, dtype=np.float32)
    along = offsets[None, :] * math.cos(angle) + offsets[:, None] * math.sin(angle)
    across = offsets[:, None] * math.cos(angle) - offsets[None, :] * math.sin(angle)
    kernel = np.exp(-0.5 * ((along / sigma) ** 2 + (across / other) ** 2))
    return _filtered(image, kernel.astype(np.float32), rng, strength)


def resampled(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Shrink and enlarge again with one of several interpolations, or average over a box."""
    height, width = image.shape[:2]
    if rng.random() < 0.25:
        side = max(mix(strength, 1.25, 10.0) * scale_of(image), 1.0)
        return _filtered(image, np.outer(_box(side), _box(side)), rng, strength)

    factor = mix(strength, 1.12, 5.0)
    small = (max(round(width / factor), 1), max(round(height / factor), 1))
    down = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(3)]
    up = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)[rng.integers(3)]
    shrunk = cv2.resize(image, small, interpolation=down)
    return _maybe_noisy(cv2.resize(shrunk, (width, height), interpolation=up), rng, strength)


def video(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Held out: average frames of a moving camera that shifts, turns and comes nearer, beside something that moves.

    Source: the GoPro set averages frames of a fast video in the same way (Nah et al., CVPR 2017).
    """
    height, width = image.shape[:2]
    light = TO_LINEAR[image]
    reach = mix(strength, 0.6, 14.0) * scale_of(image)
    shift = (rng.normal(0.0, 0.4, 2) * reach).tolist()
    push = (rng.normal(0.0, 0.25, 2) * reach).tolist()
    turn, zoom = (rng.normal(0.0, 0.5, 2) * reach / max(height, width)).tolist()
    moving = (
        smooth_field(height, width, 3, rng)
        if rng.random() < 0.5
        else np.zeros((height, width), np.float32)
    )
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    across, down = columns - width / 2, rows - height / 2

    frames = max(7, 2 * round(reach / 2) + 1)
    total = np.zeros_like(light)
    for time in np.linspace(-1.0, 1.0, frames, dtype=np.float32):
        # Similar to a rotation and a zoom while both are small; what moves by itself is shifted a second time.
        x = columns + time * (shift[0] - turn * down + zoom * across)
        y = rows + time * (shift[1] + turn * across + zoom * down)
        own = time * moving
        x, y = x + own * push[0], y + own * push[1]
        total += cv2.remap(light, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return linear_to_bytes(total / frames)


def _dwell(x: np.ndarray, y: np.ndarray) -> Field:
    """Return the time spent at each whole offset of a path in pixels, shared among its four neighbours: odd, square."""
    half = math.ceil(max(np.abs(x).max(), np.abs(y).max())) + 1
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right_share, bottom_share = x - left, y - top
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    for step_y, weight_y in ((0, 1.0 - bottom_share), (1, bottom_share)):
        for step_x, weight_x in ((0, 1.0 - right_share), (1, right_share)):
            np.add.at(kernel, (top + half + step_y, left + half + step_x), weight_y * weight_x)
    return kernel


def _box(side: float) -> Field:
    """Return a box of any width >= 1 as an odd number of weights: its ends count in part."""
    half = math.ceil((side - 1.0) / 2.0)
    weights = np.ones(2 * half + 1, np.float32)
    if half:
        weights[[0, -1]] = (side - 1.0) / 2.0 - (half - 1)
    return weights


def _filtered(image: Image, kernel: Field, rng: np.random.Generator, strength: float) -> Image:
    """Convolve linear light or, as most photo software does, code values; borders reflect."""
    kernel = (kernel / kernel.sum()).astype(np.float32)
    if rng.random() < 0.5:
        blurred = cv2.filter2D(TO_LINEAR[image], -1, kernel, borderType=cv2.BORDER_REFLECT)
        return _maybe_noisy(linear_to_bytes(blurred), rng, strength)
    blurred = cv2.filter2D(to_float(image), -1, kernel, borderType=cv2.BORDER_REFLECT)
    return _maybe_noisy(to_bytes(blurred), rng, strength)


def _maybe_noisy(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Add the little noise that a sensor adds after the lens, to some images."""
    if rng.random() >= _NOISY_SHARE:
        return image
    sigma = rng.uniform(0.5, mix(strength, 1.5, 4.0)) / 255.0
    return to_bytes(to_float(image) + sigma * gaussian_noise(image.shape, rng))
