"""Synthesis of the eight degradations from clean photos, fast enough to run while training.

Every class has several models of itself, `variants`: their names are in `diffrestorer.config.synthesis_variants`, their
code is a module per class in `diffrestorer.data.degrading`. The default is one model per class, `ours`.
"""

from collections.abc import Callable, Mapping
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from diffrestorer.config.degradations import degradation_steps
from diffrestorer.config.synthesis_ranges import Synthesis, Varied
from diffrestorer.config.synthesis_variants import HELD_OUT, OURS, TRAINED
from diffrestorer.data.degrading import blur, haze, jpeg, low_light, noise, ours, rain, raindrop, snow
from diffrestorer.data.degrading.camera import process
from diffrestorer.data.degrading.pixels import Field, Image, draw

DEFAULTS = Synthesis()

Variant = Callable[[Image, np.random.Generator, float], Image]
"""A model of a class: image, random numbers and a strength from 0 (barely visible) to 1 give the degraded image."""

_MODULES: dict[str, ModuleType] = {
    "noise": noise,
    "low_light": low_light,
    "haze": haze,
    "rain": rain,
    "raindrop": raindrop,
    "snow": snow,
    "blur": blur,
    "jpeg": jpeg,
}


def _variants_of(degradation: str) -> dict[str, Variant]:
    names = [name for name in TRAINED[degradation] if name != OURS]
    return {name: getattr(_MODULES[degradation], name) for name in (*names, HELD_OUT[degradation])}


VARIANTS: Mapping[str, Mapping[str, Variant]] = {name: _variants_of(name) for name in _MODULES}
"""Class -> variant name -> its function; `ours` is apart, since it takes the ranges of the configuration."""


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
        synthesis: the variants and the ranges that are drawn from.
        depth: for haze only: distance of each pixel in any unit, (h, w), >= 0; None draws one.

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
        return ours.haze(image, rng, synthesis.haze, _check_depth(depth, image))

    # A clean photo stays as it is: the camera's traces belong to degraded ones, whose ground truth lacks them.
    if not steps:
        return image.copy()
    for step in steps:
        image = _apply(image, step, rng, getattr(synthesis, step))

    # No number is drawn without a camera, so the default draws what it always has.
    share = synthesis.camera.share
    if share > 0.0 and rng.random() < share:
        image = process(image, rng)
    return image


def _apply(image: Image, degradation: str, rng: np.random.Generator, parameters: Varied) -> Image:
    """Degrade by one of the variants of a class; a single variant uses no randomness to be chosen."""
    names = parameters.variants
    name = names[0] if len(names) == 1 else names[int(rng.integers(len(names)))]
    if name == OURS:
        model: Callable[..., Image] = getattr(ours, degradation)
        return model(image, rng, parameters)
    degraded = VARIANTS[degradation][name](image, rng, draw(rng, parameters.strength))
    return np.ascontiguousarray(degraded)


def _check_depth(depth: NDArray[np.floating], image: Image) -> Field:
    if depth.shape != image.shape[:2]:
        raise ValueError(
            f"the depth is of shape {depth.shape}, the image of {image.shape[:2]}: they have to agree"
        )
    if not (np.isfinite(depth).all() and depth.min() >= 0.0 and depth.max() > 0.0):
        raise ValueError("the depth has to be finite, nowhere negative and somewhere positive")
    return np.asarray(depth, np.float32)
