"""Synthesis of the eight degradations from clean photos, fast enough to run while training: a small camera model each.

Images are uint8 sRGB arrays (h, w, 3) at this boundary, float32 in [0, 1] inside. A pair of numbers is a range, drawn
from uniformly. Lengths are in pixels of an image whose shorter side is `REFERENCE_SIDE`, and grow with the image; noise
and jpeg, which belong to the pixel grid, do not.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from diffrestorer.degradations import degradation_steps

Image = NDArray[np.uint8]
Field = NDArray[np.float32]

REFERENCE_SIDE = 256
NOISE_SIGMA = 50.0 / 255.0
JPEG_QUALITY = 10
LOW_LIGHT_EXPOSURE = (0.04, 0.16)  # share of the linear light that is left; drawn log-uniformly
LOW_LIGHT_FULL_WELL = (1500.0, 6000.0)  # electrons at white
LOW_LIGHT_READ_NOISE = (2.0, 8.0)  # electrons
HAZE_TRANSMISSION = (0.25, 0.6)  # at mean depth
HAZE_AIRLIGHT = (0.75, 0.95)
HAZE_AIRLIGHT_TINT = 0.02  # largest deviation of a channel from grey
HAZE_VERTICAL = (0.4, 0.8)  # share of depth that grows towards the top of the image
RAIN_ANGLE = (-30.0, 30.0)  # degrees from the vertical
RAIN_LAYERS = (  # streaks per 1000 reference pixels, length, width, opacity: far to near
    ((5.0, 10.0), (8.0, 14.0), (0.8, 1.2), (0.3, 0.5)),
    ((2.0, 4.0), (16.0, 28.0), (1.1, 1.6), (0.45, 0.65)),
    ((0.5, 1.2), (30.0, 50.0), (1.6, 2.4), (0.45, 0.7)),
)
RAIN_VEIL = (0.04, 0.15)
RAIN_COLOUR = (0.85, 0.98)
DROP_COUNT = (12, 40)
DROP_RADIUS = (4.0, 20.0)  # drawn with a square law, so that small drops are many
DROP_BLUR = (1.2, 2.5)  # sigma of the scene as a drop shows it
DROP_LENS = (1.5, 3.5)  # how many radii of the scene a radius of the drop shows, upside down
DROP_RIM = 0.35  # darkening at the very edge
SNOW_LAYERS = (  # flakes per 1000 reference pixels, radius, opacity: far to near
    ((6.0, 12.0), (0.5, 0.8), (0.4, 0.7)),
    ((2.5, 5.0), (0.9, 1.4), (0.6, 0.9)),
    ((0.8, 1.6), (1.6, 2.4), (0.7, 0.95)),
    ((0.1, 0.3), (3.0, 5.0), (0.5, 0.8)),
)
SNOW_ANGLE = (-50.0, 50.0)  # degrees from the vertical
SNOW_SPEED = (0.5, 4.0)  # length of motion in radii of a flake
SNOW_VEIL = (0.06, 0.18)
SNOW_COLOUR = (0.92, 1.0)
BLUR_EXTENT = (8.0, 20.0)  # largest side of the camera's trajectory
BLUR_STEPS = 96
BLUR_DEFOCUS_SHARE = 0.25
BLUR_DEFOCUS_RADIUS = (2.0, 4.0)

_SRGB = np.linspace(0.0, 1.0, 256)
_TO_LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4).astype(np.float32)
_LINEAR = np.linspace(0.0, 1.0, 1 << 16)
_TO_SRGB = np.where(_LINEAR <= 0.0031308, _LINEAR * 12.92, 1.055 * _LINEAR ** (1 / 2.4) - 0.055)
_TO_SRGB_8BIT = np.rint(_TO_SRGB * 255.0).astype(np.uint8)


def degrade(image: Image, degradation: str, rng: np.random.Generator) -> Image:
    """Degrade a clean photo.

    Args:
        image: sRGB photo, uint8 (h, w, 3); it is not changed.
        degradation: one of `DEGRADATIONS` or a name in `MIXTURES`, whose steps are applied one after another.
        rng: the only source of randomness: an equal generator gives an equal result.

    Returns:
        A new uint8 array (h, w, 3).

    Raises:
        ValueError: the name is unknown, or `image` is not uint8 (h, w, 3).
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"expected a uint8 image of shape (h, w, 3), got {image.dtype} {image.shape}")
    for step in degradation_steps(degradation):
        image = _DEGRADATIONS[step](image, rng)
    return image


def _noise(image: Image, rng: np.random.Generator) -> Image:
    """I + n, n ~ N(0, (50/255)^2), clipped and rounded (the field's sigma 50: Zhang et al., DnCNN, TIP 2017)."""
    return _to_bytes(_to_float(image) + NOISE_SIGMA * rng.standard_normal(image.shape, dtype=np.float32))


def _jpeg(image: Image, rng: np.random.Generator) -> Image:
    """JPEG at quality 10 with 4:2:0 chroma, encoded and decoded in memory (Dong et al., ARCNN, ICCV 2015)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return np.asarray(cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), np.uint8)


def _low_light(image: Image, rng: np.random.Generator) -> Image:
    """A short exposure on a real sensor: linear light x, scaled by the exposure, then noise of variance a x + b.

    Shot noise has variance x / full_well (the normal limit of Poisson), read noise (read / full_well)^2; the sRGB curve
    follows. Source: Foi et al., "Practical Poissonian-Gaussian noise modeling", TIP 2008; LOL: Wei et al., BMVC 2018.
    """
    exposure = math.exp(rng.uniform(*np.log(LOW_LIGHT_EXPOSURE)))
    full_well = rng.uniform(*LOW_LIGHT_FULL_WELL)
    read_noise = rng.uniform(*LOW_LIGHT_READ_NOISE) / full_well
    light = _TO_LINEAR[image] * np.float32(exposure)
    sigma = np.sqrt(light / np.float32(full_well) + np.float32(read_noise**2))
    return _linear_to_bytes(light + sigma * rng.standard_normal(image.shape, dtype=np.float32))


def _haze(image: Image, rng: np.random.Generator) -> Image:
    """I = J t + A (1 - t), t = exp(-beta d), with a smooth random depth d that grows towards the top of the image.

    beta is set so that t at the mean depth lies in `HAZE_TRANSMISSION`. Source: Koschmieder's law as in He et al., CVPR
    2009; ranges of A and t after RESIDE (Li et al., TIP 2019).
    """
    height, width = image.shape[:2]
    vertical = rng.uniform(*HAZE_VERTICAL)
    towards_top = np.linspace(1.0, 0.0, height, dtype=np.float32)[:, None]
    bumps = cv2.resize(rng.random((5, 5), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    depth = 0.2 + vertical * towards_top + (1.0 - vertical) * np.clip(bumps, 0.0, 1.0)
    beta = -math.log(rng.uniform(*HAZE_TRANSMISSION)) / depth.mean()
    transmission = np.exp(-beta * depth).astype(np.float32)
    tint = rng.uniform(-HAZE_AIRLIGHT_TINT, HAZE_AIRLIGHT_TINT, 3)
    airlight = (rng.uniform(*HAZE_AIRLIGHT) + tint).astype(np.float32)
    return _to_bytes(_blend(_to_float(image), airlight, 1.0 - transmission))


def _rain(image: Image, rng: np.random.Generator) -> Image:
    """Layers of falling streaks, near ones longer, wider and fewer, over a light veil of far drops.

    A streak covers what lies behind it in part and shows a bright grey c (a drop images the sky): I = (1 - M) J + c M.
    Source: Garg and Nayar, "Vision and rain", IJCV 2007; the veil: Yang et al., CVPR 2017.
    """
    height, width = image.shape[:2]
    scale = _scale(image)
    angle = math.radians(rng.uniform(*RAIN_ANGLE))
    colour = np.float32(rng.uniform(*RAIN_COLOUR))
    clear = np.full((height, width), 1.0 - rng.uniform(*RAIN_VEIL), np.float32)
    for density, length, thickness, opacity in RAIN_LAYERS:
        tilt = angle + math.radians(rng.uniform(-3.0, 3.0))
        kernel = _capsule(rng.uniform(*length) * scale, rng.uniform(*thickness) * scale / 2, tilt, softness=1.0)
        clear *= 1.0 - rng.uniform(*opacity) * _scatter(height, width, kernel, rng.uniform(*density) / scale**2, rng)
    return _to_bytes(_blend(_to_float(image), colour, 1.0 - clear))


def _raindrop(image: Image, rng: np.random.Generator) -> Image:
    """Drops on a window: small wide-angle lenses that show the scene upside down, out of focus, darker at the rim.

    I = (1 - M) J + M R with a soft mask M and R the refracted scene. Source: the image model of Qian et al. (Raindrop),
    CVPR 2018; the lens: Roser and Geiger, ICCV Workshops 2009.
    """
    height, width = image.shape[:2]
    scale = _scale(image)
    clear = _to_float(image)
    blurred = cv2.GaussianBlur(clear, (0, 0), max(rng.uniform(*DROP_BLUR) * scale, 0.3), borderType=cv2.BORDER_REFLECT)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    mask = np.zeros((height, width), np.float32)
    shading = np.ones((height, width), np.float32)
    small, large = DROP_RADIUS
    for _ in range(rng.integers(DROP_COUNT[0], DROP_COUNT[1] + 1)):
        radius = (small + (large - small) * rng.uniform() ** 2) * scale
        x, y, lens = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(*DROP_LENS)
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
        rim = 1.0 - DROP_RIM * np.minimum(distance, 1.0) ** 4 * (1.0 - dy / np.float32(1.5 * radius))
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


def _snow(image: Image, rng: np.random.Generator) -> Image:
    """Layers of falling flakes, near ones larger, fewer and more smeared by motion, and a light veil of far ones.

    I = (1 - M) J + c M, M opaque in part, c near white. Source: the snow model of Liu et al. (Snow100K, DesnowNet), TIP
    2018; the veil: Chen et al. (JSTASR), ECCV 2020.
    """
    height, width = image.shape[:2]
    scale = _scale(image)
    angle, speed = math.radians(rng.uniform(*SNOW_ANGLE)), rng.uniform(*SNOW_SPEED)
    colour = np.float32(rng.uniform(*SNOW_COLOUR))
    clear = np.full((height, width), 1.0 - rng.uniform(*SNOW_VEIL), np.float32)
    for density, radius, opacity in SNOW_LAYERS:
        size = rng.uniform(*radius) * scale
        tilt = angle + math.radians(rng.uniform(-15.0, 15.0))
        kernel = _capsule(speed * size, size, tilt, softness=max(0.7 * size, 1.0))
        clear *= 1.0 - rng.uniform(*opacity) * _scatter(height, width, kernel, rng.uniform(*density) / scale**2, rng)
    return _to_bytes(_blend(_to_float(image), colour, 1.0 - clear))


def _blur(image: Image, rng: np.random.Generator) -> Image:
    """Linear light, averaged along a hand's random trajectory or over a lens's circle of confusion; borders reflect.

    Source: Boracchi and Foi, "Modeling the performance of image restoration from motion blur", TIP 2012; light
    averaged instead of code values: Nah et al. (GoPro), CVPR 2017.
    """
    scale = _scale(image)
    if rng.uniform() < BLUR_DEFOCUS_SHARE:
        kernel = _capsule(0.0, rng.uniform(*BLUR_DEFOCUS_RADIUS) * scale, 0.0, softness=1.0)
    else:
        kernel = _trajectory(max(rng.uniform(*BLUR_EXTENT) * scale, 2.0), rng)
    blurred = cv2.filter2D(_TO_LINEAR[image], -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
    return _linear_to_bytes(np.asarray(blurred, np.float32))


def _trajectory(extent: float, rng: np.random.Generator) -> Field:
    """Time a shaken camera spends at each offset: an odd square kernel around a path whose larger side is `extent` px.

    The path integrates a velocity with inertia, random pushes and a pull to the centre; its mean is zero, so that the
    scene does not shift.
    """
    inertia = rng.uniform(0.9, 0.99)
    position, velocity, path = np.zeros(2), rng.normal(0.0, 3.0, 2), np.empty((BLUR_STEPS, 2))
    for step, push in enumerate(rng.standard_normal((BLUR_STEPS, 2))):
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


def _to_float(image: Image) -> Field:
    return image.astype(np.float32) / np.float32(255.0)


def _to_bytes(image: Field) -> Image:
    return np.asarray(np.rint(np.clip(image, 0.0, 1.0) * 255.0), np.uint8)


def _linear_to_bytes(light: Field) -> Image:
    """Linear light in [0, 1] (clipped) to 8-bit sRGB, by table: exact to one grey level."""
    return np.asarray(_TO_SRGB_8BIT[np.rint(np.clip(light, 0.0, 1.0) * 65535.0).astype(np.uint16)], np.uint8)


_FUNCTIONS = (_noise, _low_light, _haze, _rain, _raindrop, _snow, _blur, _jpeg)
_DEGRADATIONS = {function.__name__.removeprefix("_"): function for function in _FUNCTIONS}
