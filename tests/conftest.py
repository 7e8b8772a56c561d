"""What every test gets: shape checks in the package, no network, a few real photos."""

import copy
import gc
import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, TypeVar
from unittest.mock import patch

import jaxtyping._import_hook
import pytest
from hydra.core.config_store import ConfigStore

if TYPE_CHECKING:
    from browser import Browser
    from torch import nn

    from diffrestorer.config.schema import ModelConfig
    from diffrestorer.models.restorer import Restorer

gc.disable()  # until everything is imported: garbage collection takes a fifth of that time
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny networks lose more time to a second thread than it saves

# From here on every annotated function of the package refuses tensors of another shape or type than it states.
jaxtyping.install_import_hook("diffrestorer", "beartype.beartype")


def checked_code(loader: jaxtyping._import_hook._JaxtypingLoader, name: str) -> CodeType | None:
    """The code of a module of the package with its checks, kept beside the code without them."""
    kept_as = partial(
        jaxtyping._import_hook._optimized_cache_from_source, loader._typechecker.get_hash()
    )
    with patch("importlib._bootstrap_external.cache_from_source", kept_as):
        return SourceFileLoader.get_code(loader, name)


# jaxtyping's own loader asks for checked bytecode until a module has run, for the libraries which it imports as well:
# four thousand files were compiled anew in each test process. Asking while a module is read is enough.
jaxtyping._import_hook._JaxtypingLoader.get_code = checked_code
jaxtyping._import_hook._JaxtypingLoader.exec_module = SourceFileLoader.exec_module

# Hydra copies every registered configuration before each composition, which changes none of them.
ConfigStore.__deepcopy__ = lambda self, memo: self

PHOTO_SIDE = 160

TINY_MODEL = (
    "model=mini",
    "model.base=none",
    "model.vae.block_out_channels=[8,16,16,16]",
    "model.vae.latent_channels=4",
    "model.vae.norm_num_groups=4",
    "model.image_encoder.vision_cfg.image_size=32",
    "model.image_encoder.embed_dim=12",
    "model.prompt_processor.clip_dim=12",
    "model.prompt_processor.semantic_dim=12",
    "model.prompt_processor.hidden_dim=10",
    "model.prompt_processor.degradation_dim=6",
    "model.unet.in_channels=4",
    "model.unet.out_channels=4",
    "model.unet.block_out_channels=[8,8,16]",
    "model.unet.norm_num_groups=4",
    "model.unet.cross_attention_dim=12",
    "model.unet.attention_head_dim=2",
    "model.control_encoder.block_out_channels=[4,8,8,8]",
    "model.control_encoder.degradation_dim=6",
    "model.control_encoder.norm_num_groups=4",
    "model.control_encoder.latent_channels=4",
    "model.perceptual=none",
)
"""Overrides that shrink the real mini config; append them to any script's command line."""

TINY_SD15 = (
    "model=sd15",
    "model.base=none",
    "model.vae.block_out_channels=[8,16,16,16]",
    "model.vae.layers_per_block=1",
    "model.vae.norm_num_groups=4",
    "model.image_encoder.vision_cfg={image_size: 28, layers: 4, width: 64, patch_size: 14}",
    "model.image_encoder.embed_dim=12",
    "model.prompt_processor.clip_dim=12",
    "model.prompt_processor.semantic_dim=12",
    "model.prompt_processor.hidden_dim=10",
    "model.prompt_processor.degradation_dim=6",
    "model.unet.block_out_channels=[8,8,16,16]",
    "model.unet.layers_per_block=1",
    "model.unet.norm_num_groups=4",
    "model.unet.cross_attention_dim=12",
    "model.unet.attention_head_dim=2",
    "model.control_encoder.block_out_channels=[4,8,8,8]",
    "model.control_encoder.degradation_dim=6",
    "model.control_encoder.norm_num_groups=4",
    "model.perceptual=none",
)
"""The same of sd15: Stable Diffusion's blocks and CLIP's tower, noise prediction, no path for the image's latents."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--record-golden` writes the golden losses anew instead of comparing with them."""
    parser.addoption(
        "--record-golden", action="store_true", help="record tests/training/golden.json anew"
    )


LONG_FILES = (
    "test_config.py",
    "training/test_golden.py",
    "training/test_student.py",
    "training/test_baselines.py",
    "training/test_decoder.py",
    "app/test_page.py",
    "inference/test_components.py",
    "inference/test_saving.py",
    "test_fake_device.py",
    "training/test_faults.py",
    "evaluation/test_run.py",
    "inference/test_pipeline.py",
    "training/test_run_folder.py",
    "cli/test_restore.py",
    "training/test_resume.py",
    "cli/test_commands.py",
    "training/test_stops.py",
    "training/test_own_data_page.py",
    "evaluation/test_study.py",
    "inference/test_offloading.py",
    "training/test_shared_work.py",
    "training/test_sharding.py",
    "training/test_validation.py",
    "training/test_encoder_tuning.py",
    "evaluation/test_damaged_outputs.py",
    "evaluation/test_scoring.py",
    "training/test_throughput.py",
    "training/test_own_pairs.py",
    "cli/test_photo_faults.py",
    "training/test_precision.py",
)
"""The files that take longest, which come first: workers that take file after file then end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first (`make test` gives --no-loadscope-reorder, or files of many tests would be)."""
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """Let garbage collection pass over what was imported: it stays until the end."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let garbage collection see everything again: some libraries check at exit that nothing of theirs is left."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def photos_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four real photos, 160 x 160 RGB PNG: what scikit-image carries in its wheel."""
    import skimage.data
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photo = getattr(skimage.data, name)()
        top, left = ((size - PHOTO_SIDE) // 2 for size in photo.shape[:2])
        Image.fromarray(photo[top : top + PHOTO_SIDE, left : left + PHOTO_SIDE]).save(
            folder / f"{name}.png"
        )
    return folder


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Headless Chromium, one page for a file of tests."""
    from browser import CHROMIUM, Browser

    if CHROMIUM is None:
        assert not os.environ.get("CI"), "CI installs Debian's chromium and runs this test"
        pytest.skip("no Chromium: apt-get install chromium")
    with Browser() as page:
        yield page


Module = TypeVar("Module", bound="nn.Module")


@pytest.fixture(scope="session")
def tiny_overrides() -> list[str]:
    """The command line that turns a training script's config into that of a tiny model."""
    return list(TINY_MODEL)


@pytest.fixture(scope="session")
def tiny_sd15_overrides() -> list[str]:
    """The same for a tiny model of Stable Diffusion's kind."""
    return list(TINY_SD15)


@pytest.fixture(scope="session")
def tiny_config(tiny_overrides: list[str]) -> "ModelConfig":
    """The mini model's config with tiny widths. Shared: change a copy (`dataclasses.replace`)."""
    from diffrestorer.config.composition import load
    from diffrestorer.config.schema import Stage1Config

    return load("train_stage1", Stage1Config, tiny_overrides).model


@pytest.fixture(scope="session")
def tiny_restorer(tiny_config: "ModelConfig") -> "Restorer":
    """The whole method at step 0, tiny. Shared: change a copy."""
    import torch

    from diffrestorer.models.pretrained import load_base
    from diffrestorer.models.restorer import build_restorer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_restorer(tiny_config, *load_base(tiny_config)).eval()


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of mini's networks with random weights and class prototypes. Shared: change a copy."""
    import torch
    from diffusers import UniPCMultistepScheduler

    from diffrestorer.config.composition import load
    from diffrestorer.config.degradations import DEGRADATIONS
    from diffrestorer.config.schema import Stage1Config
    from diffrestorer.inference.model_folder import save_model_folder
    from diffrestorer.models.pretrained import load_base
    from diffrestorer.models.restorer import build_restorer

    folder = tmp_path_factory.mktemp("random_model")
    config = load("train_stage1", Stage1Config, ["model=mini", "model.base=none"]).model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        restorer = build_restorer(config, *load_base(config)).eval()
        for parameter in restorer.parameters():
            if not parameter.any():  # what starts at zero, so that every path matters
                torch.nn.init.normal_(parameter, std=0.05)
        labels = torch.arange(len(DEGRADATIONS))
        restorer.prompt_processor.record_prototypes(
            torch.randn(len(labels), config.image_encoder["embed_dim"]), labels
        )
    save_model_folder(restorer, UniPCMultistepScheduler(**config.scheduler), folder, torch.float16)
    return folder


@pytest.fixture(scope="session")
def randomised() -> Callable[[Module], Module]:
    """A copy of a module whose zero-initialised (and all other) parameters carry some noise: trained, as it were."""
    import torch

    def randomise(module: Module) -> Module:
        module = copy.deepcopy(module)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return module

    return randomise
