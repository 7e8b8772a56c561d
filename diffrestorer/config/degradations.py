"""The eight degradations of the paper, the class of clean photos, the mixtures, and what a class may be called.

A model's classes are its own (`PromptProcessor.classes`): the eight are the default. Nothing here needs numpy or torch.
"""

import difflib
import re
from collections.abc import Iterable, Sequence

DEGRADATIONS: tuple[str, ...] = (
    "noise",
    "low_light",
    "haze",
    "rain",
    "raindrop",
    "snow",
    "blur",
    "jpeg",
)
"""The paper's eight, in the order of their class index: a model's classes unless it was trained on others."""

CLEAN = "clean"
"""A photo with nothing wrong. As a training class its pair is the photo itself, twice."""

MIXTURES: dict[str, tuple[str, ...]] = {
    "blur+noise": ("blur", "noise"),
    "snow+noise": ("snow", "noise"),
    "raindrop+blur+noise": ("raindrop", "blur", "noise"),
    "jpeg+blur+noise": ("blur", "noise", "jpeg"),
}
"""Mixture name -> classes in the order they are applied: weather, blur, noise, jpeg. Tested on, never trained on."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Return `, did you mean 'X'?` with the option most like `name`; nothing where there is no option."""
    found = difflib.get_close_matches(str(name), list(options), n=1, cutoff=0.0)
    return f", did you mean {found[0]!r}?" if found else ""


def check_class_names(classes: Sequence[str], key: str = "classes") -> None:
    """Refuse names that no model can have as its classes.

    Args:
        classes: in the order of their index.
        key: what the message calls them.

    Raises:
        ValueError: there is no class, a name is there twice, or one has other characters than a-z, 0-9 and `_`.
    """
    if not classes:
        raise ValueError(f"{key} is empty: name at least one class")
    for name in classes:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(
                f"{key}={name} is not valid: a class is named with lowercase letters, digits and _"
            )
    repeated = [name for name in classes if list(classes).count(name) > 1]
    if repeated:
        raise ValueError(f"{key} names {repeated[0]} twice: name every class once")


def degradation_index(name: str, classes: Sequence[str] = DEGRADATIONS) -> int:
    """Return the index of a class among `classes`.

    Raises:
        ValueError: it is none of them; the message lists them.
    """
    if name not in classes:
        raise ValueError(
            f"unknown degradation {name!r}{nearest(name, classes)}; choose one of {', '.join(classes)}"
        )
    return list(classes).index(name)


def is_synthesised(name: str) -> bool:
    """Tell whether pairs of a class can be made from clean photos: those of the eight, and of `clean`."""
    return name in (*DEGRADATIONS, CLEAN)


def degradation_steps(name: str) -> tuple[str, ...]:
    """Return the single degradations that a class or a mixture is made of, in the order they are applied.

    `clean` is made of none.

    Raises:
        ValueError: `name` is neither; the message lists both kinds.
    """
    if name == CLEAN:
        return ()
    if name in DEGRADATIONS:
        return (name,)
    if name not in MIXTURES:
        options = (*DEGRADATIONS, *MIXTURES, CLEAN)
        raise ValueError(f"unknown degradation {name!r}; choose one of {', '.join(options)}")
    return MIXTURES[name]
