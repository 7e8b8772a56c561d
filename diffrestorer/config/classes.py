"""The classes of a run: `data.classes` are the model's, `data.degradations` are those of them that it trains on."""

from collections.abc import Sequence
from dataclasses import replace

from diffrestorer.config.degradations import DEGRADATIONS, check_class_names, nearest
from diffrestorer.config.schema import DataConfig


def model_classes(data: DataConfig) -> tuple[str, ...]:
    """Return the model's classes in the order of their index: the paper's eight where `data.classes` is null."""
    return DEGRADATIONS if data.classes is None else tuple(data.classes)


def trained_classes(data: DataConfig) -> tuple[str, ...]:
    """Return the classes that are trained on, as often as they are named: all where `data.degradations` is null."""
    return model_classes(data) if data.degradations is None else tuple(data.degradations)


def check_classes(data: DataConfig) -> None:
    """Refuse class names that are not valid, and degradations that are none of the classes.

    Raises:
        ValueError: naming the key and, of a degradation, the nearest class.
    """
    classes, trained = model_classes(data), trained_classes(data)
    check_class_names(classes, "data.classes")
    if not trained:
        raise ValueError(
            "data.degradations is empty: name at least one degradation, or leave it null for all classes"
        )
    for name in trained:
        if name not in classes:
            raise ValueError(
                f"data.degradations={name} is not valid{nearest(name, classes)}; choose from {', '.join(classes)}"
                + (
                    ""
                    if data.classes is not None
                    else " (data.classes=[...] gives a model classes of its own)"
                )
            )


def resolve_classes(data: DataConfig) -> DataConfig:
    """Return the data with all that is trained on named, so that the saved configuration says it.

    Raises:
        ValueError: as `check_classes`.
    """
    check_classes(data)
    return replace(data, degradations=list(trained_classes(data)))


def follow_classes(data: DataConfig, known: Sequence[str], model: str) -> DataConfig:
    """Return the data of a later stage with the classes of the model it goes on from.

    Args:
        data: of the run; its `classes` are null or the model's.
        known: the model's classes.
        model: where it is, for the message.

    Raises:
        ValueError: `data.classes` are others, or as `check_classes`.
    """
    if data.classes is not None and tuple(data.classes) != tuple(known):
        raise ValueError(
            f"data.classes=[{','.join(data.classes)}] differ from those of {model}, [{','.join(known)}]: a later stage "
            "keeps the classes of stage 1, so leave data.classes null"
        )
    resolved = resolve_classes(replace(data, classes=list(known)))
    unchanged = model_classes(data) == tuple(
        known
    )  # null stays null, as in runs from before models had classes
    return replace(resolved, classes=data.classes) if unchanged else resolved
