"""The first model of each class, `ours`: a small camera model each. How strong, how many, how large: the configuration.

Its bytes never change (tests/data/test_synthesis_bytes.py): trained weights and recorded losses rest on them.
"""

import math

import cv2
import numpy as np
from scipy import ndimage

from diffrestorer.config.synthesis_ranges import Blur, Haze, Jpeg, LowLight, Noise, Rain, Raindrop, Snow
from diffrestorer.data.degrading.pixels import (
    TO_LINEAR,
    Field,
    Image,
    blend,
    capsule,
    draw,
    draw_count,
    linear_to_bytes,
    scale_of,
    scatter,
    to_bytes,
    to_float,
)

_TRAJECTORY_STEPS = 96
_RAIN_SPREAD, _SNOW_SPREAD = 3.0, 15.0  # degrees by which a layer falls otherwise than the others


def noise(image: Image, rng: np.random.Generator, noise: Noise) -> Image:
    """Add n ~ N(0, (sigma/255)^2), clip and round (the field's sigma 50: Zhang et al., DnCNN, TIP 2017)."""
    sigma = draw(rng, noise.sigma) / 255.0
    return to_bytes(to_float(image) + sigma * rng.standard_normal(image.shape, dtype=np.float32))


def jpeg(image: Image, rng: np.random.Generator, jpeg: Jpeg) -> Image:
    """Encode as JPEG with 4:2:0 chroma and decode, in memory (quality 10: Dong et al., ARCNN, ICCV 2015)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, draw_count(rng, jpeg.quality)]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return np.asarray(
        cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), np.uint8
    )


def low_light(image: Image, rng: np.random.Generator, low_light: LowLight) -> Image:
    """Expose a real sensor briefly: linear light x, scaled by the exposure, then noise of variance a x + b.

    Shot noise has variance x / full_well (the normal limit of Poisson), read noise (read / full_well)^2; the sRGB curve
    follows. Source: Foi et al., "Practical Poissonian-Gaussian noise modeling", TIP 2008; LOL: Wei et al., BMVC 2018.
    """
    exposure = math.exp(draw(rng, (math.log(low_light.exposure[0]), math.log(low_light.exposure[1]))))
    full_well = draw(rng, low_light.full_well)
    read_noise = draw(rng, low_light.read_noise) / full_well
    light = TO_LINEAR[image] * np.float32(exposure)
    sigma = np.sqrt(light / np.float32(full_well) + np.float32(read_noise**2))
    return linear_to_bytes(light + sigma * rng.standard_normal(image.shape, dtype=np.float32))


def haze(image: Image, rng: np.random.Generator, haze: Haze, depth: Field | None = None) -> Image:
    """Scatter: I = J t + A (1 - t), t = exp(-beta d); a depth d that is not given is smooth and grows towards the top.

    beta is set so that t at the mean depth lies in `haze.transmission`: the unit of d does not matter. Source:
    Koschmieder's law as in He et al., CVPR 2009; ranges of A and t after RESIDE (Li et al., TIP 2019).
    """
    if depth is None:
        depth = _smooth_depth(image.shape[0], image.shape[1], draw(rng, haze.vertical), rng)
    beta = -math.log(draw(rng, haze.transmission)) / depth.mean()
    transmission = np.exp(-beta * depth).astype(np.float32)
    tint = rng.uniform(-haze.tint, haze.tint, 3)
    airlight = (draw(rng, haze.airlight) + tint).astype(np.float32)
    return to_bytes(blend(to_float(image), airlight, 1.0 - transmission))


def _smooth_depth(height: int, width: int, vertical: float, rng: np.random.Generator) -> Field:
    """Draw a depth (h, w) >= 0.2: the share `vertical` grows towards the top, the rest are large soft bumps."""
    towards_top = np.linspace(1.0, 0.0, height, dtype=np.float32)[:, None]
    bumps = cv2.resize(
        rng.random((5, 5), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    return np.asarray(
        0.2 + vertical * towards_top + (1.0 - vertical) * np.clip(bumps, 0.0, 1.0), np.float32
    )


def rain(image: Image, rng: np.random.Generator, rain: Rain) -> Image:
    """Lay on layers of falling streaks, near ones longer, wider and fewer, over a light veil of far drops.

    A streak covers what lies behind it in part and shows a bright grey c (a drop images the sky): I = (1 - M) J + c M.
    Source: Garg and Nayar, "Vision and rain", IJCV 2007; the veil: Yang et al., CVPR 2017.
    """
    height, width = image.shape[:2]
    scale = scale_of(image)
    angle = math.radians(draw(rng, rain.angle))
    colour = np.float32(draw(rng, rain.colour))
    clear = np.full((height, width), 1.0 - draw(rng, rain.veil), np.float32)
    for layer in rain.layers:
        tilt = angle + math.radians(rng.uniform(-_RAIN_SPREAD, _RAIN_SPREAD))
        kernel = capsule(
            draw(rng, layer.length) * scale, draw(rng, layer.width) * scale / 2, tilt, softness=1.0
        )
        opacity, density = draw(rng, layer.opacity), draw(rng, layer.density) / scale**2
        clear *= 1.0 - opacity * scatter(height, width, kernel, density, rng)
    return to_bytes(blend(to_float(image), colour, 1.0 - clear))


def raindrop(image: Image, rng: np.random.Generator, raindrop: Raindrop) -> Image:
    """Put drops on a window: small wide-angle lenses that show the scene upside down, out of focus, darker at the rim.

    I = (1 - M) J + M R with a soft mask M and R the refracted scene. Source: the image model of Qian et al. (Raindrop),
    CVPR 2018; the lens: Roser and Geiger, ICCV Workshops 2009.
    """
    height, width = image.shape[:2]
    scale = scale_of(image)
    clear = to_float(image)
    blurred = cv2.GaussianBlur(
        clear, (0, 0), max(draw(rng, raindrop.blur) * scale, 0.3), borderType=cv2.BORDER_REFLECT
    )
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    mask = np.zeros((height, width), np.float32)
    shading = np.ones((height, width), np.float32)
    small, large = raindrop.radius
    for _ in range(draw_count(rng, raindrop.count)):
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
        rim = 1.0 - raindrop.rim * np.minimum(distance, 1.0) ** 4 * (
            1.0 - dy / np.float32(1.5 * radius)
        )
        shading[window] = np.where(covers, rim, shading[window])
        mask[window] = np.maximum(mask[window], inside)
    seen = cv2.remap(blurred, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return to_bytes(blend(clear, seen * shading[..., None], mask))


def _drop_shape(dx: Field, dy: Field, radius: float, rng: np.random.Generator) -> tuple[Field, Field]:
    """Return an irregular drop: distance from the centre in local radii (1 at the edge), soft mask in [0, 1]; (h, w).

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


def snow(image: Image, rng: np.random.Generator, snow: Snow) -> Image:
    """Lay on layers of falling flakes, near ones larger, fewer and more smeared, and a light veil of far ones.

    I = (1 - M) J + c M, M opaque in part, c near white. Source: the snow model of Liu et al. (Snow100K, DesnowNet), TIP
    2018; the veil: Chen et al. (JSTASR), ECCV 2020.
    """
    height, width = image.shape[:2]
    scale = scale_of(image)
    angle, speed = math.radians(draw(rng, snow.angle)), draw(rng, snow.speed)
    colour = np.float32(draw(rng, snow.colour))
    clear = np.full((height, width), 1.0 - draw(rng, snow.veil), np.float32)
    for layer in snow.layers:
        size = draw(rng, layer.radius) * scale
        tilt = angle + math.radians(rng.uniform(-_SNOW_SPREAD, _SNOW_SPREAD))
        kernel = capsule(speed * size, size, tilt, softness=max(0.7 * size, 1.0))
        opacity, density = draw(rng, layer.opacity), draw(rng, layer.density) / scale**2
        clear *= 1.0 - opacity * scatter(height, width, kernel, density, rng)
    return to_bytes(blend(to_float(image), colour, 1.0 - clear))


def blur(image: Image, rng: np.random.Generator, blur: Blur) -> Image:
    """Average linear light along a hand's random trajectory or over a lens's circle of confusion; borders reflect.

    Source: Boracchi and Foi, "Modeling the performance of image restoration from motion blur", TIP 2012; light
    averaged instead of code values: Nah et al. (GoPro), CVPR 2017.
    """
    scale = scale_of(image)
    if rng.uniform() < blur.defocus_share:
        kernel = capsule(0.0, draw(rng, blur.defocus_radius) * scale, 0.0, softness=1.0)
    else:
        kernel = _trajectory(max(draw(rng, blur.extent) * scale, 2.0), rng)
    blurred = cv2.filter2D(TO_LINEAR[image], -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
    return linear_to_bytes(np.asarray(blurred, np.float32))


def _trajectory(extent: float, rng: np.random.Generator) -> Field:
    """Return the time a shaken camera spends at each offset: an odd square, the path's larger side `extent` px.

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
    dwell, _, _ = np.histogram2d(
        path[:, 0], path[:, 1], bins=2 * half + 1, range=[[-half - 0.5, half + 0.5]] * 2
    )
    return np.asarray(ndimage.gaussian_filter(dwell, 0.5), np.float32)
