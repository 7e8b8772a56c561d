"""Noise of sensors, readout, demosaicking and channels; held out: the grain of film."""

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
    ratio,
    soften,
    to_bytes,
    to_float,
)

_WEAK, _STRONG = 3.0 / 255.0, 60.0 / 255.0  # standard deviation


def gaussian(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Add white Gaussian noise: equal in all channels, or a grey one, or stronger in some channels."""
    sigma = mix(strength, _WEAK, _STRONG)
    kind = rng.integers(3)
    if kind == 0:
        return to_bytes(to_float(image) + sigma * gaussian_noise(image.shape, rng))
    if kind == 1:
        return to_bytes(to_float(image) + sigma * gaussian_noise((*image.shape[:2], 1), rng))
    channels = rng.uniform(0.5, 1.4, 3).astype(np.float32)
    return to_bytes(to_float(image) + sigma * channels * gaussian_noise(image.shape, rng))


def sensor(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Count photons in linear light: variance x / full_well + read^2, the normal limit of Poisson counts.

    Source: Foi et al., "Practical Poissonian-Gaussian noise modeling", TIP 2008.
    """
    full_well = ratio(strength, 3500.0, 30.0)
    read = rng.uniform(0.5, 2.0) / full_well
    light = TO_LINEAR[image]
    sigma = np.sqrt(light / full_well + read * read)
    return linear_to_bytes(light + sigma * gaussian_noise(image.shape, rng))


def coloured(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Add noise that neighbours share, as denoisers and scaling leave it, beside a little white noise."""
    sigma = mix(strength, _WEAK, 45.0 / 255.0)
    grain = soften(gaussian_noise(image.shape, rng), rng.uniform(0.5, 1.8))
    grain /= grain.std() + 1e-6
    white = rng.uniform(0.0, 0.5)
    mixed = (grain + white * gaussian_noise(image.shape, rng)) / math.sqrt(1.0 + white * white)
    return to_bytes(to_float(image) + sigma * mixed)


def banded(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Add an offset to every row or column, as a sensor's readout does, and white noise."""
    height, width = image.shape[:2]
    sigma = mix(strength, _WEAK, 45.0 / 255.0)

    # One of the two directions leads, and channels share their bands more or less.
    shape = (height, 1, 3) if rng.random() < 0.5 else (1, width, 3)
    common = rng.random()
    bands = common * gaussian_noise((*shape[:2], 1), rng) + (1.0 - common) * gaussian_noise(shape, rng)
    share = rng.uniform(0.3, 0.7)
    white = gaussian_noise(image.shape, rng)
    return to_bytes(to_float(image) + sigma * (share * bands + (1.0 - share) * white))


def bayer(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Keep one noisy colour per pixel, as behind a Bayer filter, and demosaic: noise of blotches and false colours."""
    height, width = image.shape[:2]
    light = TO_LINEAR[image]

    # The filter's pattern BGGR; a blue or red pixel needs more gain than a green one and has more noise.
    mosaic = light[..., 1].copy()
    mosaic[0::2, 0::2] = light[0::2, 0::2, 2]
    mosaic[1::2, 1::2] = light[1::2, 1::2, 0]
    gain = np.ones((height, width), np.float32)
    gain[0::2, 0::2] = rng.uniform(1.2, 2.2)
    gain[1::2, 1::2] = rng.uniform(1.2, 2.2)
    full_well = ratio(strength, 6000.0, 40.0)
    read = rng.uniform(0.5, 2.0) / full_well
    noise = np.sqrt(mosaic * gain / full_well + (gain * read) ** 2) * gaussian_noise(
        (height, width), rng
    )

    # The difference alone is demosaicked, so the scene keeps its sharpness and only the noise takes the filter's form.
    codes = np.rint(np.clip(0.5 + 0.25 * noise, 0.0, 1.0) * 65535.0).astype(np.uint16)
    padded = cv2.copyMakeBorder(
        codes, 2, 2, 2, 2, cv2.BORDER_REFLECT_101 if min(height, width) > 2 else cv2.BORDER_WRAP
    )
    spread = cv2.cvtColor(padded, cv2.COLOR_BayerRGGB2RGB)[2 : 2 + height, 2 : 2 + width]
    return linear_to_bytes(light + (spread.astype(np.float32) / 65535.0 - 0.5) * 4.0)


def chroma(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Add large blotches of colour and little noise of brightness, as a phone at night leaves them."""
    sigma = mix(strength, 4.0 / 255.0, 42.0 / 255.0)
    luma = sigma * rng.uniform(0.1, 0.5)
    blotches = soften(gaussian_noise((*image.shape[:2], 2), rng), rng.uniform(0.6, 2.5))
    blotches *= sigma / (blotches.std() + 1e-6) * 0.7

    # Cr and Cb, and what they are worth in R, G and B (ITU-R BT.601).
    red, blue = blotches[..., 0], blotches[..., 1]
    colours = np.stack([1.402 * red, -0.714 * red - 0.344 * blue, 1.772 * blue], axis=-1)
    return to_bytes(to_float(image) + colours + luma * gaussian_noise((*image.shape[:2], 1), rng))


def impulse(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Set some pixels or channels to black or white, over a little white noise."""
    share = ratio(strength, 0.0004, 0.06)
    noisy = to_float(image) + mix(strength, 1.0, 15.0) / 255.0 * gaussian_noise(image.shape, rng)
    shape = image.shape if rng.random() < 0.5 else (*image.shape[:2], 1)
    chance = np.broadcast_to(rng.random(shape, dtype=np.float32), image.shape)
    noisy[chance < share / 2] = 0.0
    noisy[chance > 1.0 - share / 2] = 1.0
    return to_bytes(noisy)


def film(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Held out: count developed grains, a binomial number strongest in the middle tones, spread over a grain's disc.

    Source: the grain model of Newson et al., "A stochastic film grain model", CGF 2017, in its limit of many grains.
    """
    tones = to_float(image)
    grains = ratio(strength, 1800.0, 14.0)
    developed = np.sqrt(np.clip(tones * (1.0 - tones), 0.002, None) / grains)

    # Layers of one film share most of their grain; a scanner sees each grain as a small disc.
    shared = rng.uniform(0.3, 1.0)
    grain: Field = shared * gaussian_noise((*image.shape[:2], 1), rng) + (1 - shared) * gaussian_noise(
        image.shape, rng
    )
    radius = int(rng.integers(1, 3))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2).astype(np.float32)
    grain = cv2.filter2D(grain, -1, disc / disc.sum(), borderType=cv2.BORDER_REFLECT)
    grain /= grain.std() + 1e-6
    return to_bytes(tones + developed * grain)
