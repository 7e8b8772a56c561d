"""The decoder stage's adversary: when it starts, and that a run without it has none."""

from pathlib import Path

import pytest
import torch

from diffrestorer.config.composition import load
from diffrestorer.config.schema import DataConfig, DecoderConfig, Stage1Config
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs, collate_pairs
from diffrestorer.training.decoder import DecoderTask
from diffrestorer.training.stage1 import Stage1Task


@pytest.fixture(scope="module")
def keys(tiny_overrides: list[str], photos_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("stage1")
    overrides = [*tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=32"]
    Stage1Task(load("train_stage1", Stage1Config, overrides)).save_model(folder / "model", torch.float32)
    return [*overrides, f"stage1={folder}", "discriminator_channels=8"]


def batch(photos_dir: Path, step: int) -> PairBatch:
    pairs = SynthesisedPairs(DataConfig("photos", str(photos_dir), 64, ["noise", "rain"]), 0, 2)
    return collate_pairs([pairs[step, position] for position in range(2)])


def test_the_adversary_waits_for_its_step(keys: list[str], photos_dir: Path) -> None:
    task = DecoderTask(load("train_decoder", DecoderConfig, [*keys, "discriminator_start=1", "lambda_adversarial=0.1"]))
    for step, weight in ((0, 0.0), (1, 0.1)):
        task.zero_grad()
        losses = task(batch(photos_dir, step))
        losses.total.backward()
        parts = {name: value.item() for name, value in losses.parts.items()}
        expected = parts["pixel"] + weight * parts["adversarial"] + (weight > 0) * parts["discriminator"]
        assert losses.total.item() == pytest.approx(expected, rel=1e-6)
        moves = any(p.grad.any() for p in task.discriminator.parameters())
        assert moves == (step == 1)


def test_without_its_weight_there_is_none(keys: list[str], photos_dir: Path) -> None:
    task = DecoderTask(load("train_decoder", DecoderConfig, [*keys, "lambda_adversarial=0"]))
    losses = task(batch(photos_dir, 0))
    assert losses.total.item() == losses.parts["pixel"].item()
    assert len(task.optimizers()) == 1
    assert not any("discriminator" in name for name in task.state_dict())
