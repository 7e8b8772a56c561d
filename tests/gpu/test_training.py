"""Training on a GPU: losses and gradients of a CPU in float32; layouts, compiled blocks and bf16 near them."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffrestorer.config.hardware_presets import HardwareConfig
from diffrestorer.data.pairs import PairBatch
from diffrestorer.training.hardware import apply_hardware
from diffrestorer.training.task import Task
from diffrestorer.training.throughput import count_operations

FLOAT32_BOUND = 1e-3
"""Relative, of losses and of the gradient as one vector."""

STAGES = ("stage1", "decoder")


def losses_and_gradient(task: Task, batch: PairBatch) -> tuple[dict[str, float], Tensor]:
    task.zero_grad(set_to_none=True)
    losses = task(batch)
    losses.total.backward()
    gradient = torch.cat(
        [p.grad.flatten().float().cpu() for p in task.parameters() if p.grad is not None]
    )
    return {name: value.item() for name, value in losses.parts.items()}, gradient


def worst_difference(
    found: tuple[dict[str, float], Tensor], expected: tuple[dict[str, float], Tensor]
) -> float:
    losses = [
        abs(found[0][name] - value) / max(abs(value), 1e-3) for name, value in expected[0].items()
    ]
    return max(*losses, ((found[1] - expected[1]).norm() / expected[1].norm()).item())


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_is_the_cpu_s(
    stage: str,
    tasks: dict[str, Task],
    batch: PairBatch,
    on_device: Callable,
    device: torch.device,
    record_property: Any,
) -> None:
    expected = losses_and_gradient(copy.deepcopy(tasks[stage]), batch)
    found = losses_and_gradient(on_device(tasks[stage]), batch.to(device))
    worst = worst_difference(found, expected)
    record_property("greatest relative difference of losses and gradient", f"{worst:.1e}")
    assert worst <= FLOAT32_BOUND


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "switches",
    [
        pytest.param({"channels_last": True}, id="channels_last"),
        pytest.param({"checkpointing": "blocks"}, id="checkpointing"),
        pytest.param(
            {"channels_last": True, "compile_blocks": True}, id="compiled", marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
@pytest.mark.timeout(900)
def test_a_switch_changes_no_loss_and_no_gradient(
    switches: dict[str, Any],
    stage: str,
    tasks: dict[str, Task],
    batch: PairBatch,
    on_device: Callable,
    device: torch.device,
    record_property: Any,
) -> None:
    """channels_last with its backward pass too, which a CPU is refused."""
    if device.type == "cpu" and "channels_last" in switches:
        pytest.skip("refused on a CPU")
    task = on_device(tasks[stage])
    expected = losses_and_gradient(task, batch.to(device))
    apply_hardware(task, HardwareConfig(**switches), device)
    worst = worst_difference(losses_and_gradient(task, batch.to(device)), expected)
    record_property("greatest relative difference of losses and gradient", f"{worst:.1e}")
    assert worst <= FLOAT32_BOUND


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_stays_near(
    stage: str,
    tasks: dict[str, Task],
    batch: PairBatch,
    on_device: Callable,
    device: torch.device,
    record_property: Any,
) -> None:
    """The bound is that of a CPU's bf16: three digits of every product."""
    task = on_device(tasks[stage])
    expected, _ = losses_and_gradient(task, batch.to(device))
    with torch.autocast(device.type, torch.bfloat16):
        found = {name: value.item() for name, value in task(batch.to(device)).parts.items()}
    record_property(
        "losses", " ".join(f"{name} {found[name]:.4f}/{value:.4f}" for name, value in expected.items())
    )
    assert found == pytest.approx(expected, rel=3e-2, abs=1e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_fused_adamw_steps_as_the_cpu_s(
    stage: str, tasks: dict[str, Task], batch: PairBatch, on_device: Callable, device: torch.device
) -> None:
    """Three steps of the task's own optimisers: the first loss of the fourth is the CPU's."""

    def fourth_loss(task: Task, batch: PairBatch, fused: bool) -> float:
        config = task.config  # type: ignore[attr-defined]
        train = replace(config.train, hardware=HardwareConfig(fused_adamw=fused), lr=1e-4)
        task.config = replace(config, train=train)  # type: ignore[assignment]
        for _ in range(3):
            losses_and_gradient(task, batch)
            for optimizer in task.optimizers():
                optimizer.step()
        return task(batch).total.item()

    expected = fourth_loss(copy.deepcopy(tasks[stage]), batch, False)
    start = copy.deepcopy(tasks[stage])(batch).total.item()
    found = fourth_loss(on_device(tasks[stage]), batch.to(device), True)
    assert abs(expected - start) > 1e-5, "the steps moved something"
    assert found == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.usefixtures("unchecked")
def test_operations_are_those_of_the_cpu(
    stage: str, tasks: dict[str, Task], batch: PairBatch, on_device: Callable, device: torch.device
) -> None:
    """Attention has other kernels there. Blocks that are compiled and recomputed count once, and compile later."""
    expected = count_operations(copy.deepcopy(tasks[stage]), batch)
    task = on_device(tasks[stage])
    compiled = device.type != "cpu"
    apply_hardware(task, HardwareConfig(compile_blocks=compiled, checkpointing="blocks"), device)
    before = torch.get_rng_state(), [parameter.grad for parameter in task.parameters()]
    assert count_operations(task, batch.to(device)) == pytest.approx(expected, rel=0.02)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert [parameter.grad for parameter in task.parameters()] == before[1]
