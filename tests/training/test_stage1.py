"""Stage 1's first steps: what starts at zero opens step by step, and nothing stays without a gradient."""

from pathlib import Path

import pytest
import torch

from diffrestorer.config.composition import load
from diffrestorer.config.schema import DataConfig, Stage1Config
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs, collate_pairs
from diffrestorer.training.stage1 import Stage1Task

OF_SEVERAL_TOKENS = (".attn2.to_q.", ".attn2.to_k.", ".norm2.")
"""What only matters to cross-attention over several tokens: over one its gradient is exactly zero."""


@pytest.fixture
def task(tiny_overrides: list[str], photos_dir: Path) -> Stage1Task:
    torch.manual_seed(0)
    overrides = [
        *tiny_overrides,
        "data=photos",
        f"data.root={photos_dir}",
        "data.size=64",
        "train.lr=1e-3",
    ]
    return Stage1Task(load("train_stage1", Stage1Config, overrides))


@pytest.fixture
def batch(photos_dir: Path) -> PairBatch:
    pairs = SynthesisedPairs(DataConfig("photos", str(photos_dir), 64, ["noise", "rain"]), 0, 2)
    return collate_pairs([pairs[0, position] for position in range(2)])


def without_gradient(task: Stage1Task) -> set[str]:
    trained = {
        name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad
    }
    assert all(parameter.grad is not None for parameter in trained.values()), (
        "DDP waits for every gradient"
    )
    attention = {name for name in trained if any(part in name for part in OF_SEVERAL_TOKENS)}
    return {name for name, parameter in trained.items() if not parameter.grad.any()} - attention


def test_every_trained_parameter_gets_a_gradient_after_one_step(
    task: Stage1Task, batch: PairBatch
) -> None:
    (optimizer,) = task.optimizers()
    task(batch).total.backward()
    blocked = {name for name in without_gradient(task) if "controlnet_" not in name}
    assert {name.split(".")[1] for name in blocked} == {"control_network"}, (
        "its output convolutions start at zero"
    )
    optimizer.step()
    optimizer.zero_grad()
    task(batch).total.backward()
    assert not without_gradient(task)


def test_the_control_encoder_learns_by_reconstruction_first(task: Stage1Task, batch: PairBatch) -> None:
    """L_diff reaches it once both convolutions in between, the control network's first and last, are no longer zero."""
    (optimizer,) = task.optimizers()
    encoder = list(task.restorer.control_encoder.parameters())
    reached = []
    for _ in range(3):
        losses = task(batch)
        gradients = torch.autograd.grad(losses.parts["diff"], encoder, retain_graph=True)
        reached.append(any(bool(gradient.any()) for gradient in gradients))
        losses.total.backward()
        assert all(parameter.grad.any() for parameter in encoder)
        optimizer.step()
        optimizer.zero_grad()
    assert reached == [False, False, True]
