"""What the tests on a GPU share. `GPU_TESTS_ON=cpu` walks them on a CPU, which proves nothing but that they run."""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import pytest
import torch

if TYPE_CHECKING:
    from diffrestorer.config.schema import ModelConfig
    from diffrestorer.data.pairs import PairBatch
    from diffrestorer.inference.pipeline import DiffRestorerPipeline
    from diffrestorer.models.restorer import Restorer
    from diffrestorer.training.task import Task

DEVICE = os.environ.get("GPU_TESTS_ON", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, and skip it where there is no CUDA device."""
    here = Path(__file__).parent
    missing = DEVICE == "cuda" and not torch.cuda.is_available()
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if missing:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests run."""
    return torch.device(DEVICE)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """float32 products with all their digits; TF32, torch's default for convolutions, rounds them to ten bits."""
    before = torch.backends.cudnn.conv.fp32_precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As users run it: a compiler does not see the tests' type checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def pipe(
    tiny_restorer: "Restorer", tiny_config: "ModelConfig", randomised: Callable
) -> "DiffRestorerPipeline":
    """A tiny pipeline on the CPU in which every path matters."""
    from diffusers import UniPCMultistepScheduler

    from diffrestorer.inference.pipeline import DiffRestorerPipeline

    scheduler = UniPCMultistepScheduler(**tiny_config.scheduler)
    pipe = DiffRestorerPipeline(**randomised(tiny_restorer).components(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def batch(photos_dir: Path) -> "PairBatch":
    """Two pairs of 64 pixels, on the CPU."""
    from diffrestorer.config.schema import DataConfig
    from diffrestorer.data.pairs import SynthesisedPairs, collate_pairs

    pairs = SynthesisedPairs(DataConfig("photos", str(photos_dir), 64, ["noise", "rain"]), 0, 2)
    return collate_pairs([pairs[0, position] for position in range(2)])


@pytest.fixture(scope="session")
def tasks(
    tiny_overrides: list[str],
    photos_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    randomised: Callable,
) -> "dict[str, Task]":
    """Both stages on the CPU, with noise in what starts at zero. Shared: change a copy."""
    from diffrestorer.config.composition import load
    from diffrestorer.config.schema import DecoderConfig, Stage1Config
    from diffrestorer.training.decoder_stage import DecoderTask
    from diffrestorer.training.stage1 import Stage1Task

    folder = tmp_path_factory.mktemp("stage1")
    torch.manual_seed(0)
    overrides = [
        *tiny_overrides,
        "data=photos",
        f"data.root={photos_dir}",
        "data.size=64",
        "hardware=cpu",
    ]
    stage1 = randomised(Stage1Task(load("train_stage1", Stage1Config, overrides)))
    stage1.save_model(folder / "model", torch.float32)
    decoder = DecoderTask(load("train_decoder", DecoderConfig, [*overrides, f"stage1={folder}"]))
    decoder.restorer.decoder = randomised(decoder.restorer.decoder)
    return {"stage1": stage1, "decoder": decoder}


@pytest.fixture
def on_device(device: torch.device) -> Callable:
    """A copy of a module on the device."""
    return lambda module: copy.deepcopy(module).to(device)
