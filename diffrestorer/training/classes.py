"""The classes of a stage that goes on from stage 1: those of the model it goes on from."""

from dataclasses import replace
from typing import TypeVar

from diffrestorer.config.classes import follow_classes
from diffrestorer.config.schema import DecoderConfig
from diffrestorer.model_folder import find_model
from diffrestorer.models.components import read_classes

LaterStage = TypeVar("LaterStage", bound=DecoderConfig)


def follow_stage1(config: LaterStage) -> LaterStage:
    """Return the configuration with the classes of the model at `stage1`, of which no weights are read.

    Where `stage1` is not set it is returned as it is: the stage itself says what is missing.

    Raises:
        ValueError: `data.classes` are others than the model's, `data.degradations` are none of them, or there is no
            model folder.
    """
    if not config.stage1:
        return config
    known = read_classes(find_model(config.stage1))
    return replace(config, data=follow_classes(config.data, known, f"stage1={config.stage1}"))
