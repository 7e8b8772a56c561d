"""The classes of a run: those of the finished model that it goes on from, or of the folders that it trains on."""

from dataclasses import replace
from typing import TypeVar

from diffrestorer.config.classes import follow_classes, resolve_classes
from diffrestorer.config.schema import BaseConfig, DecoderConfig, RunConfig, StudentConfig
from diffrestorer.data.prepared import name_classes
from diffrestorer.inference.model_folder import find_model
from diffrestorer.models.components import read_classes

AnyRun = TypeVar("AnyRun", bound=RunConfig)
FirstStage = TypeVar("FirstStage", bound=RunConfig)
LaterStage = TypeVar("LaterStage", bound=DecoderConfig)
Student = TypeVar("Student", bound=StudentConfig)
Base = TypeVar("Base", bound=BaseConfig)


def with_classes(config: AnyRun) -> AnyRun:
    """Return the configuration with the classes of the run, wherever its kind of run takes them from.

    Raises:
        ValueError: as the functions below.
    """
    if isinstance(config, DecoderConfig):
        return follow_stage1(config)
    if isinstance(config, StudentConfig):
        return follow_teacher(config)
    if isinstance(config, BaseConfig) and config.teacher is not None:
        return follow_tuned(config, config.teacher)
    return follow_folders(config)


def follow_folders(config: FirstStage) -> FirstStage:
    """Return the configuration with the classes of the pairs in a user's folders, unless `data.classes` names them.

    Raises:
        ValueError: the folders hold no pairs, or `data.degradations` are none of their classes.
    """
    if config.data.name != "pairs" or config.data.classes is not None:
        return config
    data = resolve_classes(replace(config.data, classes=name_classes(config.data)))
    return replace(config, data=data)


def follow_stage1(config: LaterStage) -> LaterStage:
    """Return the configuration with the classes of the model at `stage1`.

    No weights are read. Without `stage1` the configuration comes back as it is, and the stage itself reports what is
    missing.

    Raises:
        ValueError: `data.classes` are others than the model's, `data.degradations` are none of them, or there is no
            model folder.
    """
    if not config.stage1:
        return config
    known = read_classes(find_model(config.stage1))
    return replace(config, data=follow_classes(config.data, known, f"stage1={config.stage1}"))


def follow_teacher(config: Student) -> Student:
    """Return the configuration with the classes of its teacher, unless `data.classes` names others.

    A student keeps its teacher's prompt processor and learns from pairs alone, so its pairs may be of any class, such
    as `clean` beside the eight that the teacher tells apart.

    Raises:
        ValueError: `data.degradations` are none of the classes, or there is no model folder.
    """
    if config.data.classes is not None:
        return replace(config, data=resolve_classes(config.data))
    if not config.teacher:
        return config
    known = read_classes(find_model(config.teacher))
    return replace(config, data=follow_classes(config.data, known, f"teacher={config.teacher}"))


def follow_tuned(config: Base, teacher: str) -> Base:
    """Return the configuration with the classes of the finished model that gets the tuned image encoder.

    Raises:
        ValueError: another part than the image encoder is trained, `data.classes` are others than the model's, or
            there is no model folder.
    """
    if config.part != "image_encoder" or not config.image_encoder_steps:
        raise ValueError(
            "teacher= is for the tuning of an image encoder: part=image_encoder image_encoder_steps=STEPS"
        )
    known = read_classes(find_model(teacher))
    return replace(config, data=follow_classes(config.data, known, f"teacher={teacher}"))
