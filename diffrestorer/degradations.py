"""The eight degradations, in the order of their class index, and the mixtures of the paper (section IV-A).

Everything that counts, labels or names a degradation reads it here; nothing here needs numpy or torch.
"""

DEGRADATIONS: tuple[str, ...] = ("noise", "low_light", "haze", "rain", "raindrop", "snow", "blur", "jpeg")
"""Class index -> name. The classifier's eight outputs follow this order."""

MIXTURES: dict[str, tuple[str, ...]] = {
    "blur+noise": ("blur", "noise"),
    "snow+noise": ("snow", "noise"),
    "raindrop+blur+noise": ("raindrop", "blur", "noise"),
    "jpeg+blur+noise": ("blur", "noise", "jpeg"),
}
"""Mixture name -> classes in the order they are applied: weather, blur, noise, jpeg. Tested on, never trained on."""


def degradation_index(name: str) -> int:
    """Class index (0-7) of a degradation.

    Raises:
        ValueError: `name` is not one of `DEGRADATIONS`; the message lists them.
    """
    if name not in DEGRADATIONS:
        raise ValueError(f"unknown degradation {name!r}; choose one of {', '.join(DEGRADATIONS)}")
    return DEGRADATIONS.index(name)


def degradation_steps(name: str) -> tuple[str, ...]:
    """The single degradations that `name` (a class or a mixture) is made of, in the order they are applied.

    Raises:
        ValueError: `name` is neither; the message lists both kinds.
    """
    if name in DEGRADATIONS:
        return (name,)
    if name not in MIXTURES:
        raise ValueError(f"unknown degradation {name!r}; choose one of {', '.join((*DEGRADATIONS, *MIXTURES))}")
    return MIXTURES[name]
