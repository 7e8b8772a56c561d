"""A tiny pipeline for the tests of inference, each with networks of its own."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import jaxtyping
import pytest

if TYPE_CHECKING:
    from diffrestorer.config.schema import ModelConfig
    from diffrestorer.inference.pipeline import DiffRestorerPipeline
    from diffrestorer.models.restorer import Restorer


@pytest.fixture
def pipe(
    tiny_restorer: "Restorer", tiny_config: "ModelConfig", randomised: Callable
) -> "DiffRestorerPipeline":
    """A pipeline in which every path matters."""
    from diffusers import UniPCMultistepScheduler

    from diffrestorer.inference.pipeline import DiffRestorerPipeline

    scheduler = UniPCMultistepScheduler(**tiny_config.scheduler)
    pipe = DiffRestorerPipeline(**randomised(tiny_restorer).components(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As users run it: without the tests' type checks, which compilers and modules around modules would not pass."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
