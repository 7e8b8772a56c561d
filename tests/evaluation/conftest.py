"""A model of random weights, a finished run, and random weights for the metrics' networks."""

from pathlib import Path

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from evaluation_runs import quiet, settings
from random_metric_weights import write_random_weights

from diffrestorer.config.composition import load
from diffrestorer.config.schema import BaseConfig
from diffrestorer.evaluation.run import evaluate
from diffrestorer.inference.model_folder import save_model_folder
from diffrestorer.models.components import build_image_encoder, build_unet, build_vae
from diffrestorer.models.restorer import build_restorer


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of mini's classes with random weights."""
    config = load("train_base", BaseConfig).model
    torch.manual_seed(0)
    restorer = build_restorer(
        config, build_vae(config), build_image_encoder(config), build_unet(config)
    )
    folder = tmp_path_factory.mktemp("run") / "model"
    save_model_folder(restorer, UniPCMultistepScheduler(**config.scheduler), folder)
    return folder


@pytest.fixture(scope="session")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the demo with the three methods that are built in. Shared: change a copy."""
    folder = tmp_path_factory.mktemp("finished")
    evaluate(settings(folder, ["all"], model=str(model)), quiet())
    return folder


@pytest.fixture(scope="session")
def metric_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of FID, LPIPS, DISTS and NIQE."""
    folder = tmp_path_factory.mktemp("hub")
    write_random_weights(folder)
    return folder
