"""Every switch of `hardware=` leaves the losses and the gradients where they were, within its stated tolerance."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from soaking import some_now
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffrestorer.config.composition import load
from diffrestorer.config.hardware_presets import HardwareConfig
from diffrestorer.config.schema import DataConfig, DecoderConfig, Stage1Config
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs, collate_pairs
from diffrestorer.training import hardware as hardware_module
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.hardware import apply_hardware
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.step_memory import count_saved_bytes
from diffrestorer.training.task import Task

CPU = torch.device("cpu")
TOLERANCES = {
    "no sdpa": (HardwareConfig(sdpa=False, one_token_attention=False), 1e-5),
    "one token": (HardwareConfig(one_token_attention=True), 1e-5),
    "checkpointing": (HardwareConfig(checkpointing="blocks", one_token_attention=False), 1e-6),
}
"""Switch -> relative difference of losses and gradients in float32; docs/training.md states them."""


@pytest.fixture(scope="module")
def batch(photos_dir: Path) -> PairBatch:
    pairs = SynthesisedPairs(DataConfig("photos", str(photos_dir), 64, ["noise", "rain"]), 0, 2)
    return collate_pairs([pairs[0, position] for position in range(2)])


@pytest.fixture(scope="module")
def tasks(
    tiny_overrides: list[str],
    photos_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    randomised: Any,
) -> dict[str, Task]:
    """Both stages, with noise in what starts at zero: every block has a gradient.

    Not in the discriminator, where nothing does: its mean score would be a small difference of large numbers.
    """
    folder = tmp_path_factory.mktemp("stage1")
    torch.manual_seed(0)
    overrides = [*tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=32"]
    stage1 = randomised(Stage1Task(load("train_stage1", Stage1Config, overrides)))
    stage1.save_model(folder / "model", torch.float32)
    decoder = DecoderTask(load("train_decoder", DecoderConfig, [*overrides, f"stage1={folder}"]))
    decoder.restorer.decoder = randomised(decoder.restorer.decoder)
    return {"stage1": stage1, "decoder": decoder}


def losses_and_gradients(task: Task, batch: PairBatch) -> dict[str, Tensor]:
    task.zero_grad()
    losses = task(batch)
    losses.total.backward()
    gradients = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    return {"total": losses.total.detach(), **losses.parts, **gradients}


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative difference of a loss, or of all gradients as one vector (parts of it all but cancel)."""
    assert set(found) == set(expected)
    losses = [name for name in expected if expected[name].ndim == 0 and "." not in name]
    join = lambda values: torch.cat([values[name].flatten() for name in expected if name not in losses])  # noqa: E731
    differences = [
        (found[name] - expected[name]).abs() / expected[name].abs().clamp(min=1e-3) for name in losses
    ]
    gradient = (join(found) - join(expected)).norm() / join(expected).norm()
    return max(value.item() for value in (*differences, gradient))


@pytest.mark.parametrize("stage", ["stage1", "decoder"])
@pytest.mark.parametrize("switch", some_now(TOLERANCES, 2))
def test_a_switch_changes_no_loss_and_no_gradient(
    switch: str, stage: str, tasks: dict[str, Task], batch: PairBatch
) -> None:
    hardware, tolerance = TOLERANCES[switch]
    switched = copy.deepcopy(tasks[stage])
    apply_hardware(switched, hardware, CPU)
    expected = losses_and_gradients(tasks[stage], batch)
    assert relative(losses_and_gradients(switched, batch), expected) <= tolerance
    assert set(switched.state_dict()) == set(tasks[stage].state_dict()), "checkpoints fit either way"


def test_queries_and_keys_of_one_token_are_idle(tasks: dict[str, Task], batch: PairBatch) -> None:
    """Their gradients are there (several processes add up what they all have) and exactly zero."""
    task = copy.deepcopy(tasks["stage1"])
    apply_hardware(task, HardwareConfig(), CPU)
    gradients = losses_and_gradients(task, batch)
    idle = [name for name in gradients if "attn2.to_q" in name or "attn2.to_k" in name]
    assert len(idle) >= 4
    assert not any(gradients[name].any() for name in idle)
    assert all(gradients[name].any() for name in gradients if "attn2.to_v" in name)


@pytest.mark.parametrize("stage", ["stage1", "decoder"])
def test_channels_last_changes_no_loss(stage: str, tasks: dict[str, Task], batch: PairBatch) -> None:
    """Forward only: its backward pass needs a GPU, and a CPU is refused."""
    switched = copy.deepcopy(tasks[stage])
    with pytest.raises(
        ValueError, match=r"channels_last and compile_blocks are for GPUs.*take hardware=cpu"
    ):
        apply_hardware(switched, HardwareConfig(channels_last=True), CPU)
    apply_hardware(switched, HardwareConfig(channels_last=True), torch.device("cuda"))
    assert any(
        p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last)
        for p in switched.parameters()
    )
    with torch.no_grad():
        found, expected = switched(batch), tasks[stage](batch)
    for name, value in expected.parts.items():
        assert found.parts[name].item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize(("stage", "share"), [("stage1", 0.6), ("decoder", 0.75)])
def test_recomputation_keeps_less(
    stage: str, share: float, tasks: dict[str, Task], batch: PairBatch
) -> None:
    kept = {}
    for checkpointing in ("none", "blocks"):
        task = copy.deepcopy(tasks[stage])
        apply_hardware(task, HardwareConfig(checkpointing=checkpointing), CPU)
        with count_saved_bytes(task) as saved:
            task(batch)
        kept[checkpointing] = saved.total
    assert kept["blocks"] < share * kept["none"]


@pytest.mark.parametrize("stage", ["stage1", "decoder"])
def test_bf16_stays_near(stage: str, tasks: dict[str, Task], batch: PairBatch) -> None:
    """The one switch that rounds: three digits of every product."""
    expected = {name: value.item() for name, value in tasks[stage](batch).parts.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = {name: value.item() for name, value in tasks[stage](batch).parts.items()}
    assert found == pytest.approx(expected, rel=3e-2, abs=1e-2)


def test_fused_adamw_takes_the_same_steps(tasks: dict[str, Task], batch: PairBatch) -> None:
    plain, fused = (copy.deepcopy(tasks["stage1"]) for _ in range(2))
    for task, flag in ((plain, False), (fused, True)):
        task.config = replace(
            task.config, train=replace(task.config.train, hardware=HardwareConfig(fused_adamw=flag))
        )
    (optimizer,), (fused_optimizer,) = plain.optimizers(), fused.optimizers()
    assert fused_optimizer.defaults["fused"]
    assert not optimizer.defaults["fused"]
    for _ in range(3):
        losses_and_gradients(plain, batch)
        for parameter, other in zip(plain.parameters(), fused.parameters(), strict=True):
            other.grad = parameter.grad
        optimizer.step()
        fused_optimizer.step()
    moved = 0
    for (name, weight), other in zip(plain.named_parameters(), fused.parameters(), strict=True):
        before = tasks["stage1"].get_parameter(name)
        assert (weight - other).abs().max() <= 1e-2 * plain.config.train.lr, name
        moved += not torch.equal(weight, before)
    assert moved > 20


class HostReads(TorchDispatchMode):
    """Notes the operations that hand a tensor's value to Python: each waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", ["stage1", "decoder"])
def test_a_step_waits_for_no_value(stage: str, tasks: dict[str, Task], batch: PairBatch) -> None:
    with HostReads() as reads:
        tasks[stage](batch).total.backward()
    assert not reads.found
    with HostReads() as reads:
        torch.ones(1).item()
    assert reads.found, "the test sees them"


@pytest.mark.soak
def test_compiled_blocks_change_no_loss(
    tasks: dict[str, Task], batch: PairBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured as graphs and differentiated as such, but run by torch's own kernels: generated code needs a GPU."""
    monkeypatch.setattr(hardware_module, "COMPILER", "aot_eager")
    switched = copy.deepcopy(tasks["stage1"])
    with pytest.raises(ValueError, match="compile_blocks are for GPUs"):
        apply_hardware(switched, HardwareConfig(compile_blocks=True), CPU)
    apply_hardware(switched, HardwareConfig(compile_blocks=True), torch.device("cuda"))
    expected = losses_and_gradients(tasks["stage1"], batch)
    assert relative(losses_and_gradients(switched, batch), expected) <= 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
