"""Synthesis of the eight degradations from clean photos, fast enough to run while training: a small camera model each.

Images are uint8 sRGB arrays (h, w, 3) at this boundary, float32 in [0, 1] inside. How strong, how many, how large:
`diffrestorer.config.synthesis_ranges`.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from diffrestorer.config.degradations import degradation_steps
from diffrestorer.config.synthesis_ranges import (
    REFERENCE_SIDE,
    Blur,
    Haze,
    IntRange,
    Jpeg,
    LowLight,
    Noise,
    Rain,
    Raindrop,
    Range,
    Snow,
    Synthesis,
)

Image = NDArray[np.uint8]
Field = NDArray[np.float32]

_TRAJECTORY_STEPS = 96
_RAIN_SPREAD, _SNOW_SPREAD = 3.0, 15.0  # degrees by which a layer falls otherwise than the others
_SRGB = np.linspace(0.0, 1.0, 256)
_TO_LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4).astype(np.float32)
_LINEAR = np.linspace(0.0, 1.0, 1 << 16)
_TO_SRGB = np.where(_LINEAR <= 0.0031308, _LINEAR * 12.92, 1.055 * _LINEAR ** (1 / 2.4) - 0.055)
_TO_SRGB_8BIT = np.rint(_TO_SRGB * 255.0).astype(np.uint8)

DEFAULTS = Synthesis()


def degrade(
    image: Image,
    degradation: str,
    rng: np.random.Generator,
    synthesis: Synthesis = DEFAULTS,
    depth: NDArray[np.floating] | None = None,
) -> Image:
    """Degrade a clean photo.

    Args:
        image: sRGB photo, uint8 (h, w, 3); it is not changed.
        degradation: one of `DEGRADATIONS`, a name in `MIXTURES`, whose steps are applied one after another, or `clean`,
            which leaves the photo as it is.
        rng: the only source of randomness: an equal generator gives an equal result.
        synthesis: the ranges that are drawn from.
        depth: for haze only: distance of each pixel in any unit, (h, w), >= 0; None draws a smooth one.

    Returns:
        A new uint8 array (h, w, 3).

    Raises:
        ValueError: the name is unknown, `image` is not uint8 (h, w, 3), or `depth` does not fit.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"expected a uint8 image of shape (h, w, 3), got {image.dtype} {image.shape}")
    steps = degradation_steps(degradation)
    if depth is not None:
        if steps != ("haze",):
            raise ValueError(f"a depth is of use to haze only, not to {degradation}")
        return _haze(image, rng, synthesis.haze, _check_depth(depth, image))
    for step in steps:
        image = _DEGRADATIONS[step](image, rng, getattr(synthesis, step))
    return image if steps else image.copy()


def _check_depth(depth: NDArray[np.floating], image: Image) -> Field:
    if depth.shape != image.shape[:2]:
        raise ValueError(f"the depth is of shape {depth.shape}, the image of {image.shape[:2]}: they have to agree")
    if not (np.isfinite(depth).all() and depth.min() >= 0.0 and depth.max() > 0.0):
        raise ValueError("the depth has to be finite, nowhere negative and somewhere positive")
    return np.asarray(depth, np.float32)


def _noise(image: Image, rng: np.random.Generator, noise: Noise) -> Image:
    """I + n, n ~ N(0, (sigma/255)^2), clipped and rounded (the field's sigma 50: Zhang et al., DnCNN, TIP 2017)."""
    sigma = draw(rng, noise.sigma) / 255.0
    return _to_bytes(_to_float(image) + sigma * rng.standard_normal(image.shape, dtype=np.float32))


def _jpeg(image: Image, rng: np.random.Generator, jpeg: Jpeg) -> Image:
    """JPEG with 4:2:0 chroma, encoded and decoded in memory (quality 10: Dong et al., ARCNN, ICCV 2015)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _draw_count(rng, jpeg.quality)]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return np.asarray(cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), np.uint8)


def _low_light(image: Image, rng: np.random.Generator, low_light: LowLight) -> Image:
    """A short exposure on a real sensor: linear light x, scaled by the exposure, then noise of variance a x + b.

    Shot noise has variance x / full_well (the normal limit of Poisson), read noise (read / full_well)^2; the sRGB curve
    follows. Source: Foi et al., "Practical Poissonian-Gaussian noise modeling", TIP 2008; LOL: Wei et al., BMVC 2018.
    """
    exposure = math.exp(draw(rng, (math.log(low_light.exposure[0]), math.log(low_light.exposure[1]))))
    full_well = draw(rng, low_light.full_well)
    read_noise = draw(rng, low_light.read_noise) / full_well
    light = _TO_LINEAR[image] * np.float32(exposure)
    sigma = np.sqrt(light / np.float32(full_well) + np.float32(read_noise**2))
    return _linear_to_bytes(light + sigma * rng.standard_normal(image.shape, dtype=np.float32))


def _haze(image: Image, rng: np.random.Generator, haze: Haze, depth: Field | None = None) -> Image:
    """I = J t + A (1 - t), t = exp(-beta d); without a given depth d a smooth random one that grows towards the top.

    beta is set so that t at the mean depth lies in `haze.transmission`: the unit of d does not matter. Source:
    Koschmieder's law as in He et al., CVPR 2009; ranges of A and t after RESIDE (Li et al., TIP 2019).
    """
    if depth is None:
        depth = _smooth_depth(image.shape[0], image.shape[1], draw(rng, haze.vertical), rng)
    beta = -math.log(draw(rng, haze.transmission)) / depth.mean()
    transmission = np.exp(-beta * depth).astype(np.float32)
    tint = rng.uniform(-haze.tint, haze.tint, 3)
    airlight = (draw(rng, haze.airlight) + tint).astype(np.float32)
    return _to_bytes(_blend(_to_float(image), airlight, 1.0 - transmission))


def _smooth_depth(height: int, width: int, vertical: float, rng: np.random.Generator) -> Field:
    """(height, width) >= 0.2: the share `vertical` of it grows towards the top, the rest are large soft bumps."""
    towards_top = np.linspace(1.0, 0.0, height, dtype=np.float32)[:, None]
    bumps = cv2.resize(rng.random((5, 5), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(0.2 + vertical * towards_top + (1.0 - vertical) * np.clip(bumps, 0.0, 1.0), np.float32)


def _rain(image: Image, rng: np.random.Generator, rain: Rain) -> Image:
    """Layers of falling streaks, near ones longer, wider and fewer, over a light veil of far drops.

    A streak covers what lies behind it in part and shows a bright grey c (a drop images the sky): I = (1 - M) J + c M.
    Source: Garg and Nayar, "Vision and rain", IJCV 2007; the veil: Yang et al., CVPR 2017.
    """
    height, width = image.shape[:2]
    scale = _scale(image)
    angle = math.radians(draw(rng, rain.angle))
    colour = np.float32(draw(rng, rain.colour))
    clear = np.full((height, width), 1.0 - draw(rng, rain.veil), np.float32)
    for layer in rain.layers:
        tilt = angle + math.radians(rng.uniform(-_RAIN_SPREAD, _RAIN_SPREAD))
        kernel = _capsule(draw(rng, layer.length) * scale, draw(rng, layer.width) * scale / 2, tilt, softness=1.0)
        opacity, density = draw(rng, layer.opacity), draw(rng, layer.density) / scale**2
        clear *= 1.0 - opacity * _scatter(height, width, kernel, density, rng)
    return _to_bytes(_blend(_to_float(image), colour, 1.0 - clear))


def _raindrop(image: Image, rng: np.random.Generator, raindrop: Raindrop) -> Image:
    """Drops on a window: small wide-angle lenses that show the scene upside down, out of focus, darker at the rim.

    I = (1 - M) J + M R with a soft mask M and R the refracted scene. Source: the image model of Qian et al. (Raindrop),
    CVPR 2018; the lens: Roser and Geiger, ICCV Workshops 2009.
    """
    height, width = image.shape[:2]
    scale = _scale(image)
    clear = _to_float(image)
    blurred = cv2.GaussianBlur(clear, (0, 0), max(draw(rng, raindrop.blur) * scale, 0.3), borderType=cv2.BORDER_REFLECT)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    mask = np.zeros((height, width), np.float32)
    shading = np.ones((height, width), np.float32)
    small, large = raindrop.radius
    for _ in range(_draw_count(rng, raindrop.count)):
        radius = (small + (large - small) * rng.uniform() ** 2) * scale
        x, y, lens = rng.uniform(0, width), rng.uniform(0, height), draw(rng, raindrop.lens)
        reach = math.ceil(1.5 * radius) + 1
        left, top = max(int(x) - reach, 0), max(int(y) - reach, 0)
        window = np.s_[top : int(y) + reach + 1, left : int(x) + reach + 1]
        size = mask[window].shape
        dx = np.arange(left, left + size[1], dtype=np.float32)[None, :] - np.float32(x)
        dy = np.arange(top, top + size[0], dtype=np.float32)[:, None] - np.float32(y)
        distance, inside = _drop_shape(dx, dy, radius, rng)
        covers = inside > mask[window]
        strength = lens * (0.5 + 0.5 * distance * distance)
        columns[window] = np.where(covers, x - dx * strength, columns[window])
        rows[window] = np.where(covers, y - dy * strength, rows[window])
        rim = 1.0 - raindrop.rim * np.minimum(distance, 1.0) ** 4 * (1.0 - dy / np.float32(1.5 * radius))
        shading[window] = np.where(covers, rim, shading[window])
        mask[window] = np.maximum(mask[window], inside)
    seen = cv2.remap(blurred, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return _to_bytes(_blend(clear, seen * shading[..., None], mask))


def _drop_shape(dx: Field, dy: Field, radius: float, rng: np.random.Generator) -> tuple[Field, Field]:
    """Distance from the centre in local radii (1 at the edge) and the soft mask in [0, 1] of an irregular drop: (h, w).

    dx (1, w) and dy (h, 1) are offsets from the centre in pixels, `radius` its mean radius.
    """
    angle = np.arctan2(dy, dx)
    outline = np.ones_like(angle)
    for order in (2, 3):
        outline += np.float32(rng.uniform(0.0, 0.12)) * np.cos(
            order * angle + np.float32(rng.uniform(0.0, 2 * math.pi))
        )
    distance = np.hypot(dx, dy / np.float32(rng.uniform(0.95, 1.25))) / (np.float32(radius) * outline)
    edge = np.float32(max(0.15 * radius, 1.0))
    return distance, np.clip((1.0 - distance) * np.float32(radius) / edge + 0.5, 0.0, 1.0)


def _snow(image: Image, rng: np.random.Generator, snow: Snow) -> Image:
    """Layers of falling flakes, near ones larger, fewer and more smeared by motion, and a light veil of far ones.

    I = (1 - M) J + c M, M opaque in part, c near white. Source: the snow model of Liu et al. (Snow100K, DesnowNet), TIP
    2018; the veil: Chen et al. (JSTASR), ECCV 2020.
    """
    height, width = image.shape[:2]
    scale = _scale(image)
    angle, speed = math.radians(draw(rng, snow.angle)), draw(rng, snow.speed)
    colour = np.float32(draw(rng, snow.colour))
    clear = np.full((height, width), 1.0 - draw(rng, snow.veil), np.float32)
    for layer in snow.layers:
        size = draw(rng, layer.radius) * scale
        tilt = angle + math.radians(rng.uniform(-_SNOW_SPREAD, _SNOW_SPREAD))
        kernel = _capsule(speed * size, size, tilt, softness=max(0.7 * size, 1.0))
        opacity, density = draw(rng, layer.opacity), draw(rng, layer.density) / scale**2
        clear *= 1.0 - opacity * _scatter(height, width, kernel, density, rng)
    return _to_bytes(_blend(_to_float(image), colour, 1.0 - clear))


def _blur(image: Image, rng: np.random.Generator, blur: Blur) -> Image:
    """Linear light, averaged along a hand's random trajectory or over a lens's circle of confusion; borders reflect.

    Source: Boracchi and Foi, "Modeling the performance of image restoration from motion blur", TIP 2012; light
    averaged instead of code values: Nah et al. (GoPro), CVPR 2017.
    """
    scale = _scale(image)
    if rng.uniform() < blur.defocus_share:
        kernel = _capsule(0.0, draw(rng, blur.defocus_radius) * scale, 0.0, softness=1.0)
    else:
        kernel = _trajectory(max(draw(rng, blur.extent) * scale, 2.0), rng)
    blurred = cv2.filter2D(_TO_LINEAR[image], -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
    return _linear_to_bytes(np.asarray(blurred, np.float32))


def _trajectory(extent: float, rng: np.random.Generator) -> Field:
    """Time a shaken camera spends at each offset: an odd square kernel around a path whose larger side is `extent` px.

    The path integrates a velocity with inertia, random pushes and a pull to the centre; its mean is zero, so that the
    scene does not shift.
    """
    inertia = rng.uniform(0.9, 0.99)
    position, velocity, path = np.zeros(2), rng.normal(0.0, 3.0, 2), np.empty((_TRAJECTORY_STEPS, 2))
    for step, push in enumerate(rng.standard_normal((_TRAJECTORY_STEPS, 2))):
        velocity = inertia * velocity + push - 0.01 * position
        position = position + velocity
        path[step] = position
    path = ndimage.zoom(path, (16, 1), order=1)  # dense enough that no pixel on the way is skipped
    path = (path - path.mean(axis=0)) * (extent - 1.0) / np.ptp(path, axis=0).max()
    half = math.ceil(np.abs(path).max()) + 2
    dwell, _, _ = np.histogram2d(path[:, 0], path[:, 1], bins=2 * half + 1, range=[[-half - 0.5, half + 0.5]] * 2)
    return np.asarray(ndimage.gaussian_filter(dwell, 0.5), np.float32)


def _capsule(length: float, radius: float, angle: float, softness: float) -> Field:
    """Soft-edged disc of `radius` px, moved over `length` px at `angle` rad from the vertical: an odd square in [0, 1].

    Its edge is `softness` px wide, so that a disc thinner than a pixel loses opacity instead of area.
    """
    half = math.ceil(length / 2 + radius + softness)
    offset = np.arange(-half, half + 1, dtype=np.float32)
    along = offset[:, None] * np.float32(math.cos(angle)) + offset[None, :] * np.float32(math.sin(angle))
    across = offset[None, :] * np.float32(math.cos(angle)) - offset[:, None] * np.float32(math.sin(angle))
    distance = np.hypot(np.maximum(np.abs(along) - np.float32(length / 2), 0.0), across)
    return np.asarray(np.clip((radius - distance) / softness + 0.5, 0.0, 1.0), np.float32)


def _scatter(height: int, width: int, kernel: Field, density: float, rng: np.random.Generator) -> Field:
    """Copies of `kernel` at random places, `density` of them per 1000 px, each of its own opacity: (h, w) in [0, 1]."""
    margin = kernel.shape[0] // 2
    tall, wide = height + 2 * margin, width + 2 * margin
    count = max(rng.poisson(density * tall * wide / 1000.0), 1)
    seeds = np.zeros((tall, wide), np.float32)
    seeds[rng.integers(tall, size=count), rng.integers(wide, size=count)] = rng.uniform(0.3, 1.0, count)
    spread = cv2.filter2D(seeds, -1, kernel, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(np.clip(spread[margin : margin + height, margin : margin + width], 0.0, 1.0), np.float32)


def _blend(image: Field, over: Field | np.float32, opacity: Field) -> Field:
    """`over` laid on `image` (h, w, 3) with an opacity (h, w) in [0, 1]."""
    return image + (over - image) * opacity[..., None]


def _scale(image: Image) -> float:
    """Size of a structure in this image relative to its size in the reference image."""
    return float(min(image.shape[:2]) / REFERENCE_SIDE)


def draw(rng: np.random.Generator, values: Range) -> float:
    """A number of a range; a range of one number uses no randomness."""
    low, high = values
    return float(low) if low == high else float(rng.uniform(low, high))


def _draw_count(rng: np.random.Generator, values: IntRange) -> int:
    """An integer of a range that includes both ends; a range of one number uses no randomness."""
    low, high = values
    return low if low == high else int(rng.integers(low, high + 1))


def _to_float(image: Image) -> Field:
    return image.astype(np.float32) / np.float32(255.0)


def _to_bytes(image: Field) -> Image:
    return np.asarray(np.rint(np.clip(image, 0.0, 1.0) * 255.0), np.uint8)


def _linear_to_bytes(light: Field) -> Image:
    """Linear light in [0, 1] (clipped) to 8-bit sRGB, by table: exact to one grey level."""
    return np.asarray(_TO_SRGB_8BIT[np.rint(np.clip(light, 0.0, 1.0) * 65535.0).astype(np.uint16)], np.uint8)


_FUNCTIONS = (_noise, _low_light, _haze, _rain, _raindrop, _snow, _blur, _jpeg)
_DEGRADATIONS = {function.__name__.removeprefix("_"): function for function in _FUNCTIONS}
