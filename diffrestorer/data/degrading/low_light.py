"""Too little light: photons, gamma curves, tinted and vignetted light, crushed tones; held out: an illumination map."""

import cv2
import numpy as np

from diffrestorer.data.degrading.pixels import (
    TO_LINEAR,
    Field,
    Image,
    gaussian_noise,
    linear_to_bytes,
    mix,
    ratio,
    soften,
    to_bytes,
    to_float,
)

# A slightly darker photo cannot be told from a slightly darker scene, so the weak end is one that can be seen.
_WEAK, _STRONG = 0.45, 0.025  # share of the linear light


def photons(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Expose too briefly: fewer photons, whose counts have the variance of their mean, and read noise."""
    light = TO_LINEAR[image] * ratio(strength, _WEAK, _STRONG)
    return linear_to_bytes(_sensed(light, rng, strength))


def gamma(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Darken by a power curve and a factor, then add white noise: the recipe of early low-light sets (LLNet, 2017)."""
    power = mix(strength, 1.5, 3.5) * rng.uniform(0.85, 1.15)
    factor = rng.uniform(mix(strength, 0.8, 0.5), 1.0)
    sigma = rng.uniform(0.0, mix(strength, 1.0, 8.0)) / 255.0
    table = (factor * np.linspace(0.0, 1.0, 256) ** power).astype(np.float32)
    return to_bytes(table[image] + sigma * gaussian_noise(image.shape, rng))


def tinted(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Expose too briefly under lamps: a white balance that is off, corners darker than the middle."""
    height, width = image.shape[:2]
    warmth = rng.uniform(-0.35, 0.45)
    balance = np.exp(np.array([warmth, 0.0, -warmth]) + rng.normal(0.0, 0.05, 3)).astype(np.float32)

    # The fourth power of the cosine, roughly: light falls off with the square of the distance from the axis.
    down = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    across = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    falloff = 1.0 / (1.0 + rng.uniform(0.0, 0.6) * (down * down + across * across)) ** 2
    exposure = ratio(strength, _WEAK, _STRONG)
    light = TO_LINEAR[image] * (exposure * balance) * falloff[..., None]
    return linear_to_bytes(_sensed(light, rng, strength))


def crushed(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Darken as a camera's contrast curve does: shadows fall to black, lights are dull, stray light may lie on it."""
    exposure = ratio(strength, 0.6, 0.06)
    black = mix(strength, 0.0, 0.04) * rng.random()
    light = _sensed(TO_LINEAR[image] * exposure, rng, strength)
    codes = to_float(linear_to_bytes(light))
    steep = rng.uniform(0.0, 0.6)
    curved = codes * (1.0 - steep) + steep * codes * codes * (3.0 - 2.0 * codes)
    return to_bytes(black + rng.uniform(0.75, 1.0) * np.clip(curved - black, 0, 1))


def retinex(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Held out: split the photo into illumination and reflectance, dim the illumination by a curve, multiply again.

    Dark places lose more than lit ones. Source: the decomposition of Land and McCann, "Lightness and retinex theory",
    JOSA 1971; illumination as the blurred largest channel: Guo et al. (LIME), TIP 2017.
    """
    light = TO_LINEAR[image]
    largest = cv2.dilate(light.max(axis=2), np.ones((5, 5), np.uint8))
    illumination = np.clip(soften(largest, 0.04 * min(image.shape[:2])), 0.02, 1.0)
    dimmed = ratio(strength, 0.55, 0.07) * illumination ** rng.uniform(1.0, 1.8)
    light = light / illumination[..., None] * dimmed[..., None]

    # Twelve bits with an amplifier: Poisson counts, and a row's common offset.
    electrons = ratio(strength, 12000.0, 1500.0)
    noise = np.sqrt(np.clip(light, 0.0, None) / electrons) * gaussian_noise(image.shape, rng)
    rows = gaussian_noise((image.shape[0], 1, 1), rng) * mix(strength, 0.5, 2.0) / electrons
    return linear_to_bytes(np.rint((light + noise + rows) * 4095.0) / 4095.0)


def _sensed(light: Field, rng: np.random.Generator, strength: float) -> Field:
    """Add shot noise of variance light / full_well and read noise to linear light."""
    full_well = ratio(strength, 12000.0, 1200.0) * rng.uniform(0.6, 1.6)
    read = rng.uniform(1.0, 6.0) / full_well
    sigma = np.sqrt(light / full_well + read * read)
    return np.asarray(light + sigma * gaussian_noise(light.shape, rng), np.float32)
