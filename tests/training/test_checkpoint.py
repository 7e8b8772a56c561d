"""Checkpoints: whole or not at all, verified, rotated, and everything needed to go on is in them."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from diffrestorer.training.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_newest,
    save_checkpoint,
    take_snapshot,
)

LOG = logging.getLogger("test")


def network(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[2].requires_grad_(False)
    return module, torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        module(torch.full((2, 3), float(step)) + torch.arange(6.0).view(2, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_restored_run_goes_on_as_the_first(tmp_path: Path) -> None:
    module, optimizer = network(0)
    train(module, optimizer, 3)
    save_checkpoint(tmp_path, take_snapshot(3, module, [optimizer]), keep=2)
    other, other_optimizer = network(0)
    assert load_newest(tmp_path, other, [other_optimizer], LOG) == 3
    for run in ((module, optimizer), (other, other_optimizer)):
        train(*run, steps=2)
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_what_is_frozen_is_not_saved_and_buffers_are(tmp_path: Path) -> None:
    from safetensors import safe_open

    module, optimizer = network(0)
    save_checkpoint(tmp_path, take_snapshot(1, module, [optimizer]), keep=2)
    with safe_open(tmp_path / "step_1" / "weights.safetensors", "pt") as file:
        names = set(file.keys())
    assert "1.running_mean" in names
    assert not any(name.startswith("2.") for name in names)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    module, optimizer = network(0)
    for step in (5, 10, 100):
        save_checkpoint(tmp_path, take_snapshot(step, module, [optimizer]), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_10", "step_100"]


def test_an_unfinished_one_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / ".step_7.partial").mkdir()
    assert load_newest(tmp_path, *[network(0)[0]], [], LOG) == 0


def test_a_damaged_one_is_passed_over_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, optimizer = network(0)
    for step in (1, 2):
        save_checkpoint(tmp_path, take_snapshot(step, module, [optimizer]), keep=2)
    (tmp_path / "step_2" / "weights.safetensors").write_bytes(b"")
    assert load_newest(tmp_path, module, [optimizer], LOG) == 1
    assert "step_2 is damaged: weights.safetensors" in caplog.text
    (tmp_path / "step_1" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="no older checkpoint is left"):
        load_newest(tmp_path, module, [optimizer], LOG)


def test_another_model_is_refused(tmp_path: Path) -> None:
    module, optimizer = network(0)
    save_checkpoint(tmp_path, take_snapshot(1, module, [optimizer]), keep=2)
    other = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    with pytest.raises(CheckpointError, match=r"another model: \d+ tensors differ, first 0.bias"):
        load_newest(tmp_path, other, [torch.optim.AdamW(other.parameters())], LOG)
