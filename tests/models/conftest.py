"""Tiny networks of Stable Diffusion's kind, and an empty cache of Hugging Face's hub."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from diffrestorer.config.composition import load
from diffrestorer.config.schema import ModelConfig, Stage1Config
from diffrestorer.models.components import build_image_encoder, build_unet, build_vae


@pytest.fixture(scope="module")
def config(tiny_sd15_overrides: list[str]) -> ModelConfig:
    """Stable Diffusion's architecture at tiny widths, with two layers a block as the real one."""
    more = ["model.vae.layers_per_block=2", "model.unet.layers_per_block=2", "model.clip=openai"]
    return load("train_stage1", Stage1Config, [*tiny_sd15_overrides, *more]).model


@pytest.fixture(scope="module")
def networks(config: ModelConfig) -> dict[str, Any]:
    """VAE, UNet and image encoder whose numbers are those of half precision."""
    torch.manual_seed(1)
    found = {"vae": build_vae(config), "unet": build_unet(config), "clip": build_image_encoder(config)}
    for network in found.values():
        network.load_state_dict({name: value.half() for name, value in network.state_dict().items()})
    return found


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face's hub, offline."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache
