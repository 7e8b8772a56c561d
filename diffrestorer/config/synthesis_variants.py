"""Names of the models that each degradation class has of itself: key `data.synthesis.CLASS.variants=[...]`.

The code is in `diffrestorer.data.degrading`, a module per class. One variant of each class is held out: it
never trains, so that its scores tell whether a network has learned rain or only one package's rain.
"""

from collections.abc import Sequence

from diffrestorer.config.degradations import nearest

OURS = "ours"
"""The first model of each class, with ranges of its own in the configuration; the others take `strength`."""

TRAINED: dict[str, tuple[str, ...]] = {
    "noise": (OURS, "gaussian", "sensor", "coloured", "banded", "bayer", "chroma", "impulse"),
    "low_light": (OURS, "photons", "gamma", "tinted", "crushed"),
    "haze": (OURS, "planes", "fields", "luminance", "patches"),
    "rain": (OURS, "lines", "filtered", "curtain", "backlit"),
    "raindrop": (OURS, "beads", "merged", "defocused", "trails"),
    "snow": (OURS, "discs", "smeared", "clumps"),
    "blur": (OURS, "motion", "aperture", "gaussian", "resampled"),
    "jpeg": (OURS, "opencv", "pillow", "double", "rescaled"),
}
"""Class -> variants that may train."""

HELD_OUT: dict[str, str] = {
    "noise": "film",
    "low_light": "retinex",
    "haze": "segments",
    "rain": "gaussians",
    "raindrop": "caps",
    "snow": "polygons",
    "blur": "video",
    "jpeg": "reencoded",
}
"""Class -> the variant that never trains."""


def check_variants(degradation: str, names: Sequence[str], key: str) -> None:
    """Refuse a list of variants that cannot be drawn from.

    Args:
        degradation: the class.
        names: its variants; one that is named twice is drawn twice as often.
        key: what the message calls them.

    Raises:
        ValueError: the list is empty, or a name is no variant of the class.
    """
    known = (*TRAINED[degradation], HELD_OUT[degradation])
    if not names or isinstance(names, str):
        raise ValueError(f"{key} is not a list of variants: name at least one of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ValueError(
                f"{key}={name} does not exist{nearest(name, known)}; choose from {', '.join(known)}"
            )
