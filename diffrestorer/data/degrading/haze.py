"""Scattering I = J t + A (1 - t), t = exp(-beta d), with several depths d and airlights A (Koschmieder's law).

A slight haze cannot be told from a scene of low contrast, so the weak end is one that can be seen.
"""

import cv2
import numpy as np

from diffrestorer.data.degrading.pixels import (
    Field,
    Image,
    mix,
    normalised,
    pale_colour,
    smooth_field,
    soften,
    to_bytes,
    to_float,
)

_WEAK, _STRONG = 0.85, 0.2  # transmission at mean depth
_SEGMENTS = 7


def planes(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Take the distance of a ground plane below a horizon and a wall of air above it, tilted a little."""
    height, width = image.shape[:2]
    tilt = rng.uniform(-0.2, 0.2)
    rows = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
    rows = rows + tilt * np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]

    # A plane's distance is one over the angle below the horizon; far away it ends at a finite sight.
    horizon = rng.uniform(-0.3, 0.5)
    below = np.clip(rows - horizon, 0.0, None)
    depth = 1.0 / (below + rng.uniform(0.12, 0.5))
    return _hazy(image, depth, rng, strength)


def fields(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Take a random smooth depth of two scales, near or far at any place."""
    height, width = image.shape[:2]
    coarse = smooth_field(height, width, int(rng.integers(2, 4)), rng)
    fine = smooth_field(height, width, int(rng.integers(5, 10)), rng)
    return _hazy(image, 0.15 + coarse + 0.3 * fine, rng, strength)


def luminance(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Guess the depth from the photo: pale places, bright in their darkest channel, are taken for far ones.

    Source: the dark-channel prior of He et al., CVPR 2009, read the other way round.
    """
    side = max(3, round(0.03 * min(image.shape[:2])) | 1)
    tones = to_float(image)
    dark = cv2.erode(tones.min(axis=2), np.ones((side, side), np.uint8))
    pseudo = _guided(dark, tones.mean(axis=2), 2 * side)
    upward = np.linspace(1.0, 0.0, image.shape[0], dtype=np.float32)[:, None]
    share = rng.uniform(0.2, 0.8)
    return _hazy(image, 0.15 + share * normalised(pseudo) + (1.0 - share) * upward, rng, strength)


def patches(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Let the fog itself be uneven: banks and wisps drawn out sideways, over a slope of depth."""
    height, width = image.shape[:2]
    slope = 0.4 + np.linspace(1.0, 0.0, height, dtype=np.float32)[:, None]
    banks = np.zeros((height, width), np.float32)
    for octave in (2, 4, 9):
        coarse = rng.random((octave + 2, octave // 2 + 2), dtype=np.float32)
        banks += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / octave
    contrast = rng.uniform(0.6, 1.8)
    return _hazy(image, slope * (0.1 + normalised(banks) ** contrast), rng, strength)


def segments(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Held out: cut the photo into things of one colour and place, each at one distance; far things blur, too.

    The cut follows edges (a guided filter, He et al., ECCV 2010); the blur is multiple scattering in the air.
    """
    height, width = image.shape[:2]
    tones = to_float(image)
    small = cv2.resize(tones, (40, 40), interpolation=cv2.INTER_AREA)
    rows, columns = np.mgrid[0:40, 0:40].astype(np.float32) / 40.0
    points = np.dstack([small, rows * 0.8, columns * 0.4]).reshape(-1, 5).astype(np.float32)

    # Start labels from our own generator: OpenCV's is a global one.
    labels = rng.integers(_SEGMENTS, size=(len(points), 1)).astype(np.int32)
    rule = (cv2.TERM_CRITERIA_MAX_ITER, 8, 0.0)
    _, labels, centres = cv2.kmeans(points, _SEGMENTS, labels, rule, 1, cv2.KMEANS_USE_INITIAL_LABELS)
    distances = (1.1 - centres[:, 3] + rng.uniform(0.0, 0.5, _SEGMENTS)).astype(np.float32)
    coarse = cv2.resize(
        distances[labels].reshape(40, 40), (width, height), interpolation=cv2.INTER_NEAREST
    )
    depth = np.clip(
        _guided(coarse, tones.mean(axis=2), max(2, round(0.03 * min(height, width)))), 0.1, None
    )

    blurred = soften(tones, mix(strength, 0.3, 1.6))
    far = normalised(depth)[..., None]
    return _hazy(to_bytes(tones + (blurred - tones) * far), depth, rng, strength)


def _hazy(image: Image, depth: Field, rng: np.random.Generator, strength: float) -> Image:
    """Scatter with a depth (h, w) in any unit; the airlight is grey, coloured, or uneven over the image."""
    height, width = image.shape[:2]
    beta = -np.log(mix(strength, _WEAK, _STRONG)) / depth.mean()
    transmission = np.exp(-np.float32(beta) * depth).astype(np.float32)
    airlight = pale_colour(rng, 0.55, 1.0, tint=0.015)

    # Dust and evening light are warm, water is bluish; no air is green or pink.
    if rng.random() < 0.6:
        warmth = rng.uniform(-0.08, 0.12)
        airlight = np.clip(airlight + np.array([warmth, 0.3 * warmth, -warmth], np.float32), 0.0, 1.0)
    air = np.broadcast_to(airlight, image.shape)
    if rng.random() < 0.3:
        air = air * (1.0 + 0.25 * (smooth_field(height, width, 2, rng) - 0.5))[..., None]
    clear = np.broadcast_to(transmission, (height, width))[..., None]
    return to_bytes(to_float(image) * clear + air * (1.0 - clear))


def _guided(field: Field, guide: Field, radius: int, edge: float = 1e-3) -> Field:
    """Smooth a field (h, w) within the edges of a guide (h, w): the guided filter."""
    side = (2 * radius + 1, 2 * radius + 1)

    def mean(values: Field) -> Field:
        return np.asarray(cv2.blur(values, side, borderType=cv2.BORDER_REFLECT), np.float32)

    mean_guide, mean_field = mean(guide), mean(field)
    slope = (mean(guide * field) - mean_guide * mean_field) / (
        mean(guide * guide) - mean_guide**2 + edge
    )
    return mean(slope) * guide + mean(mean_field - slope * mean_guide)
