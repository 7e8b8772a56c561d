"""Synthesis by name: `ours`, `broad` for training (configs/data/broad.yaml), `heldout` for evaluation only."""

from dataclasses import fields
from typing import Any

from diffrestorer.config.synthesis_ranges import Camera, Synthesis, Varied
from diffrestorer.config.synthesis_variants import HELD_OUT, TRAINED

_CLASSES = {
    item.name: type(item.default) for item in fields(Synthesis) if isinstance(item.default, Varied)
}


def held_out() -> Synthesis:
    """Return the synthesis that never trains: one variant per class, unlike all those that do."""
    classes: dict[str, Any] = {
        name: kind(variants=(HELD_OUT[name],)) for name, kind in _CLASSES.items()
    }
    return Synthesis(**classes)


def broad() -> Synthesis:
    """Return all variants that may train, in their full strength, with a camera after a third of them."""
    classes: dict[str, Any] = {name: kind(variants=TRAINED[name]) for name, kind in _CLASSES.items()}
    return Synthesis(**classes, camera=Camera(share=1 / 3))


def named_synthesis(name: str) -> Synthesis:
    """Return the synthesis of a name: `ours` (the default one), `broad` or `heldout`.

    Raises:
        ValueError: there is none of that name.
    """
    named = {"ours": Synthesis, "broad": broad, "heldout": held_out}
    if name not in named:
        raise ValueError(f"synthesis={name} is not valid; choose one of {', '.join(named)}")
    return named[name]()


def refuse_held_out(synthesis: Synthesis, key: str = "data.synthesis") -> None:
    """Refuse to train on what is held out.

    Args:
        synthesis: of a training run.
        key: what the message calls it.

    Raises:
        ValueError: one of its variants is held out.
    """
    for name in _CLASSES:
        if HELD_OUT[name] in getattr(synthesis, name).variants:
            raise ValueError(
                f"{key}.{name}.variants names {HELD_OUT[name]}, which is held out for evaluation and never trains: "
                f"choose from {', '.join(TRAINED[name])}"
            )
