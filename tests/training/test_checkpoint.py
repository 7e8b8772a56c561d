"""Checkpoints: whole or not at all, verified, rotated, and everything needed to go on is in them."""

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import training_runs as runs
from accelerate import Accelerator
from torch import nn

from diffrestorer.training import checkpoint as checkpoint_module
from diffrestorer.training.averaging import WeightAverage
from diffrestorer.training.checkpoint import (
    CheckpointError,
    list_checkpoints,
    save_checkpoint,
    take_snapshot,
)
from diffrestorer.training.resuming import load_newest

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


@pytest.mark.parametrize("mask", [0o022, 0o077], ids=oct)
def test_files_have_the_permissions_of_new_ones(mask: int, tmp_path: Path) -> None:
    """safetensors writes 0600, whatever the process's mask says."""
    module, optimizer = network(0)
    before = os.umask(mask)
    try:
        save_checkpoint(tmp_path, take_snapshot(1, module, [optimizer]), keep=2)
    finally:
        os.umask(before)
    files = list((tmp_path / "step_1").iterdir())
    assert sum(file.suffix == ".safetensors" for file in files) > 0
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~mask}


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    module, optimizer = network(0)
    for step in (5, 10, 100):
        save_checkpoint(tmp_path, take_snapshot(step, module, [optimizer]), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_10", "step_100"]


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_later_ones_do_not_take_a_new_one_s_place(keep: int, tmp_path: Path) -> None:
    """A run that passed over step 20 goes on from step 10, and its next checkpoint is an earlier one."""
    module, optimizer = network(0)
    for step in (10, 20):
        save_checkpoint(tmp_path, take_snapshot(step, module, [optimizer]), keep=2)
    (tmp_path / "step_20" / "weights.safetensors").write_bytes(b"damaged")
    assert save_checkpoint(tmp_path, take_snapshot(15, module, [optimizer]), keep).is_dir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_10", "step_15"][-keep:]
    assert load_newest(tmp_path, module, [optimizer], LOG) == 15


def test_an_unfinished_one_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / ".step_7.partial").mkdir()
    assert load_newest(tmp_path, *[network(0)[0]], [], LOG) == 0


def test_a_damaged_one_is_passed_over_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_a_restored_run_holds_nothing_of_the_files(tmp_path: Path) -> None:
    """Weights, moments, counts and averages are copies: what was mapped may go, and files may be overwritten."""
    module, optimizer = network(0)
    average = WeightAverage(module, 0.9)
    train(module, optimizer, 2)
    average.update()
    folder = save_checkpoint(tmp_path, take_snapshot(2, module, [optimizer], average), keep=2)
    other, other_optimizer = network(0)
    other_average = WeightAverage(other, 0.9)
    assert load_newest(tmp_path, other, [other_optimizer], LOG, other_average) == 2
    for path in folder.glob("*.safetensors"):
        path.write_bytes(
            b"\xff" * path.stat().st_size
        )  # the same inode: a view of the mapping would see it
    pairs = [(module.state_dict(), other.state_dict()), (average.state(), other_average.state())]
    for index, entry in optimizer.state_dict()["state"].items():
        pairs.append((entry, other_optimizer.state_dict()["state"][index]))
    for expected, found in pairs:
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name


def _resume_as_a_rank(rank: int, port: int, folder: Path, out: Path) -> None:
    """A process of two on a node: resumes, and writes what it hashed, what it was told and its weights."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), LOCAL_WORLD_SIZE="2")
    hashed: list[str] = []
    digest = checkpoint_module._digest
    checkpoint_module._digest = lambda path: (
        hashed.append(f"{path.parent.name}/{path.name}"),
        digest(path),
    )[1]
    accelerator = Accelerator(cpu=True)
    module, optimizer = network(rank)
    try:
        told = str(load_newest(folder, module, [optimizer], LOG, accelerator=accelerator))
    except CheckpointError as error:
        told = str(error)
    weights = module.state_dict()["0.weight"].flatten().tolist()
    (out / str(rank)).write_text(json.dumps([sorted(hashed), told, weights]))


def resume_on_two(folder: Path, out: Path) -> list[list[Any]]:
    """What two processes of a node wrote."""
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        runs.context.Process(target=_resume_as_a_rank, args=(rank, port, folder, out))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(1800)
        assert process.exitcode == 0
    return [json.loads((out / str(rank)).read_text()) for rank in range(2)]


@pytest.mark.slow
def test_a_node_s_first_process_verifies_for_all(tmp_path: Path) -> None:
    """A damaged checkpoint is passed over by both, and refused by both where none is left."""
    folder = tmp_path / "checkpoints"
    module, optimizer = network(0)
    for step in (1, 2):
        train(module, optimizer, 1)
        save_checkpoint(folder, take_snapshot(step, module, [optimizer]), keep=2)
        if step == 1:
            expected = module.state_dict()["0.weight"].flatten().tolist()
    (folder / "step_2" / "weights.safetensors").write_bytes(b"")
    first, second = resume_on_two(folder, tmp_path / "sound")
    files = [
        "step_1/optimizer_0.safetensors",
        "step_1/weights.safetensors",
        "step_2/weights.safetensors",
    ]
    assert first == [files, "1", expected]
    assert second == [[], "1", expected]

    (folder / "step_1" / "state.json").write_text("{")
    first, second = resume_on_two(folder, tmp_path / "damaged")
    assert "no older checkpoint is left" in first[1]
    assert first[1] == second[1]
