"""Rain as drawn lines, filtered noise, sheets and backlit drops; held out: Gaussians, stamped one by one."""

import math

import cv2
import numpy as np

from diffrestorer.data.degrading.pixels import (
    Field,
    Image,
    capsule,
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
_MODES = ("alpha", "screen", "add")


def lines(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Draw streaks one by one, each of its own length and angle, in one to three layers from far to near."""
    size, scale = image.shape[:2], scale_of(image)
    angle, spread = rng.uniform(-0.7, 0.7), rng.uniform(0.01, 0.12)
    mask = np.zeros(size, np.float32)
    for nearness in np.linspace(rng.uniform(0.0, 0.3), rng.uniform(0.3, 1.0), int(rng.integers(1, 4))):
        # Near streaks are longer, thicker, fewer and less in focus.
        length = mix(nearness, 7.0, 55.0) * scale
        density = ratio(strength, 1.2, 9.0) * ratio(nearness, 1.0, 0.1)
        count = 1 + rng.poisson(density * size[0] * size[1] / (1000.0 * scale**2))
        layer = _draw_lines(size, count, length, mix(nearness, 0.7, 2.2) * scale, angle, spread, rng)
        layer = soften(layer, rng.uniform(0.0, 0.8) * scale * mix(nearness, 0.4, 1.0))
        mask = np.maximum(mask, layer * rng.uniform(0.6, 1.0))
    colour = pale_colour(rng, 0.7, 1.0)
    wet = overlay(to_float(image), mask * _opacity(rng, strength), colour, _MODES[rng.integers(3)])
    return to_bytes(_misty(wet, rng, strength))


def filtered(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Keep the peaks of white noise and smear them along the fall, at one or two sizes of the noise's grain."""
    height, width = image.shape[:2]
    scale = scale_of(image)
    angle = rng.uniform(-0.7, 0.7)
    mask = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, 3))):
        grain = rng.uniform(1.0, 2.2) * max(scale, 0.5)
        noise = gaussian_noise((max(round(height / grain), 1), max(round(width / grain), 1)), rng)
        peaks = np.clip(noise - (mix(strength, 2.9, 1.9) + rng.uniform(-0.2, 0.2)), 0.0, None)
        peaks = cv2.resize(peaks, (width, height), interpolation=cv2.INTER_LINEAR)

        # A slightly different angle each time: wind is never quite even.
        length = rng.uniform(8.0, 40.0) * scale
        kernel = capsule(length, 0.5, angle + rng.normal(0.0, 0.04), softness=1.0)
        streaks = cv2.filter2D(peaks, -1, kernel, borderType=cv2.BORDER_REFLECT)
        brightest = float(np.quantile(streaks[::3, ::3], 0.995))
        mask = np.maximum(mask, np.clip(streaks / max(brightest, 1e-3), 0.0, 1.0))
    colour = pale_colour(rng, 0.7, 1.0)
    wet = overlay(to_float(image), mask * _opacity(rng, strength), colour, _MODES[rng.integers(3)])
    return to_bytes(_misty(wet, rng, strength))


def curtain(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Hang sheets of distant rain: drawn-out noise of several sizes that brightens and darkens, mist, and softness."""
    height, width = image.shape[:2]
    scale = scale_of(image)
    angle = rng.uniform(-0.5, 0.5)
    sheet = np.zeros((height, width), np.float32)
    for length, thickness in ((14.0, 1.1), (45.0, 1.6), (110.0, 6.0)):
        longer = length * rng.uniform(0.7, 1.4) * scale
        sheet += _drawn_out(height, width, longer, max(thickness * scale, 0.8), angle, rng)
    sheet *= smooth_field(height, width, 3, rng) + 0.4

    # Brightening prevails: drops collect light from the sky, and only few block it.
    bright = np.clip(sheet - 0.3, -0.4, 1.6)
    veiled = _misty(
        soften(to_float(image), mix(strength, 0.0, 0.7) * scale),
        rng,
        0.3 + 0.7 * strength,
        certain=True,
    )
    return to_bytes(veiled + mix(strength, 0.012, 0.13) * bright[..., None])


def backlit(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Show in each streak what a drop refracts, the scene upside down, with a dark edge and at times a bright core.

    Source: Garg and Nayar, "Vision and rain", IJCV 2007: a drop's brightness is that of a wide view, so that it is
    bright before dark things and dark before the sky.
    """
    size, scale = image.shape[:2], scale_of(image)
    clear = to_float(image)
    wide = np.ascontiguousarray(soften(clear, 9.0 * scale)[::-1])
    seen = rng.uniform(0.3, 0.7) * wide + rng.uniform(0.1, 0.45) * wide.max()

    # The same streaks twice: wide for the edge, narrow for the core.
    angle, spread = rng.uniform(-0.6, 0.6), rng.uniform(0.01, 0.08)
    length, width = rng.uniform(20.0, 55.0) * scale, rng.uniform(1.2, 2.2) * scale
    count = 1 + rng.poisson(ratio(strength, 0.5, 2.6) * size[0] * size[1] / (1000.0 * scale**2))
    key = int(rng.integers(1 << 32))
    edge = _draw_lines(size, count, length, width, angle, spread, np.random.default_rng(key))
    core = _draw_lines(size, count, length, 0.4 * width, angle, spread, np.random.default_rng(key))
    opacity = mix(strength, 0.14, 0.8)
    dark = overlay(
        clear,
        soften(edge, rng.uniform(0.6, 1.1) * scale) * opacity,
        seen * rng.uniform(0.75, 1.0),
        "alpha",
    )
    wet = overlay(dark, soften(core, 0.5 * scale) * opacity, seen * rng.uniform(1.0, 1.6), "alpha")
    return to_bytes(_misty(wet, rng, strength))


def gaussians(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Held out: stamp elongated Gaussians, every one with its own place, angle, length, width and light, by screen."""
    height, width = image.shape[:2]
    scale = scale_of(image)
    angles = rng.uniform(-0.6, 0.6) + rng.normal(0.0, 0.08, int(rng.integers(1, 4)))
    count = 1 + rng.poisson(ratio(strength, 0.9, 4.5) * height * width / (1000.0 * scale**2))
    light = np.zeros((height, width), np.float32)
    for _ in range(min(count, 400)):
        angle = rng.choice(angles) + rng.normal(0.0, 0.03)
        long = rng.lognormal(1.9, 0.45) * scale
        thin = max(rng.uniform(0.4, 1.1) * scale, 0.35)
        reach = math.ceil(2.5 * long) + 1
        x, y = int(rng.integers(width)), int(rng.integers(height))
        left, right, top, bottom = (
            max(x - reach, 0),
            min(x + reach + 1, width),
            max(y - reach, 0),
            min(y + reach + 1, height),
        )
        dx = np.arange(left - x, right - x, dtype=np.float32)[None, :]
        dy = np.arange(top - y, bottom - y, dtype=np.float32)[:, None]
        along = (dx * math.sin(angle) + dy * math.cos(angle)) / long
        across = (dx * math.cos(angle) - dy * math.sin(angle)) / thin
        light[top:bottom, left:right] += rng.uniform(0.3, 1.0) * np.exp(-0.5 * (along**2 + across**2))
    mask = np.clip(light, 0.0, 1.0) * mix(strength, 0.12, 0.75)
    wet = overlay(to_float(image), mask, pale_colour(rng, 0.75, 1.0), "screen")
    upward = np.linspace(1.0, 0.3, height, dtype=np.float32)[:, None]
    haze = np.broadcast_to(upward * mix(strength, 0.0, 0.2), (height, width))
    return to_bytes(overlay(wet, haze, pale_colour(rng, 0.6, 0.85), "alpha"))


def _opacity(rng: np.random.Generator, strength: float) -> float:
    return mix(strength, 0.1, 0.75) * rng.uniform(0.75, 1.25)


def _misty(image: Field, rng: np.random.Generator, strength: float, certain: bool = False) -> Field:
    """Lay on the veil of drops too far away to be told apart; half of the images have none unless it is certain."""
    if not certain and rng.random() < 0.5:
        return image
    height, width = image.shape[:2]
    thickness = (
        0.5
        + smooth_field(height, width, 2, rng) * np.linspace(1.0, 0.4, height, dtype=np.float32)[:, None]
    )
    veil = thickness * rng.uniform(0.0, mix(strength, 0.02, 0.28))
    return overlay(image, np.clip(veil, 0.0, 1.0), pale_colour(rng, 0.55, 0.9), "alpha")


def _draw_lines(
    size: tuple[int, int],
    count: int,
    length: float,
    width: float,
    angle: float,
    spread: float,
    rng: np.random.Generator,
) -> Field:
    """Draw `count` streaks on black: (h, w) in [0, 1].

    Args:
        size: height and width.
        count: of streaks.
        length, width: mean ones in pixels; a width below one pixel makes a fainter line.
        angle, spread: of the fall from the vertical and its deviation in radians.
        rng: the only source of randomness.
    """
    height, width_px = size
    starts = rng.uniform((-length, -length), (width_px + length, height), (count, 2))
    tilts = rng.normal(angle, spread, count)
    lengths = length * rng.uniform(0.5, 1.5, count)
    ends = starts + lengths[:, None] * np.stack([np.sin(tilts), np.cos(tilts)], axis=1)
    greys = (rng.uniform(90.0, 255.0, count) * min(width, 1.0)).astype(int).tolist()
    thicknesses = np.maximum(np.rint(width * rng.uniform(0.6, 1.4, count)), 1).astype(int).tolist()

    # OpenCV smooths lines on bytes only.
    canvas = np.zeros(size, np.uint8)
    unit = 1 << _SUBPIXEL
    points = np.rint(np.concatenate([starts, ends], axis=1) * unit).astype(int).tolist()
    for (x, y, end_x, end_y), grey, thickness in zip(points, greys, thicknesses, strict=True):
        cv2.line(canvas, (x, y), (end_x, end_y), grey, thickness, cv2.LINE_AA, _SUBPIXEL)
    return to_float(canvas)


def _drawn_out(
    height: int, width: int, length: float, thickness: float, angle: float, rng: np.random.Generator
) -> Field:
    """Stretch white noise to `length` by `thickness` pixels per grain and turn it by `angle`: (h, w)."""
    diagonal = math.hypot(height, width)
    noise = gaussian_noise((math.ceil(diagonal / length) + 4, math.ceil(diagonal / thickness) + 4), rng)
    cosine, sine = math.cos(angle), math.sin(angle)

    # From a pixel to its place in the noise, both seen from their middles.
    turn = np.array([[cosine / thickness, -sine / thickness], [sine / length, cosine / length]])
    middle = np.array([noise.shape[1] / 2, noise.shape[0] / 2]) - turn @ [width / 2, height / 2]
    matrix = np.column_stack([turn, middle])
    options = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(noise, matrix, (width, height), flags=options, borderMode=cv2.BORDER_REFLECT)
