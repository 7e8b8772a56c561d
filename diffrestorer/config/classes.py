"""The classes of a run: `data.classes` are the model's, `data.degradations` are those of them that it trains on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffrestorer.config.degradations import DEGRADATIONS, check_class_names, nearest
from diffrestorer.config.schema import BaseConfig, DataConfig, DecoderConfig, RunConfig, StudentConfig


def model_classes(data: DataConfig) -> tuple[str, ...]:
    """Return the model's classes in the order of their index: the paper's eight where `data.classes` is null."""
    return DEGRADATIONS if data.classes is None else tuple(data.classes)


def trained_classes(data: DataConfig) -> tuple[str, ...]:
    """Return the classes that are trained on, as often as they are named: all where `data.degradations` is null."""
    return model_classes(data) if data.degradations is None else tuple(data.degradations)


def follows_a_model(config: RunConfig) -> bool:
    """Return whether a run takes its classes from a finished model: decoder, student, an encoder tuned in a model."""
    tunes = isinstance(config, BaseConfig) and config.teacher is not None
    return tunes or isinstance(config, DecoderConfig | StudentConfig)


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


def settle_classes(config: Any) -> None:
    """Check `data.classes` and `data.degradations`, and name the degradations that null stands for.

    A run that goes on from a model takes its classes, and a user's own pairs bring theirs along
    (`training.model_classes`). Neither is read here.
    """
    data = getattr(config, "data", None)
    if not isinstance(data, DataConfig):
        return
    if data.name == "pairs" and data.classes is None:
        return  # the folders tell them, which are not read here either
    if not follows_a_model(config):
        config.data = resolve_classes(data)
    elif data.classes is not None:
        check_classes(data)


def check_job_classes(schema: type[Any], job: DictConfig) -> None:
    """Check the names of classes that a job of a sweep gives itself, and resolve nothing.

    Args:
        schema: dataclass of the job's script.
        job: tree of the schema.
    """
    data: Any = job.get("data")
    if data is None or OmegaConf.get_type(data) is not DataConfig:
        return
    names: Any = OmegaConf.to_container(data)
    follows = issubclass(schema, DecoderConfig | StudentConfig) or job.get("teacher") is not None
    if names["classes"] is not None or not (follows or names["name"] == "pairs"):
        check_classes(DataConfig(classes=names["classes"], degradations=names["degradations"]))


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
