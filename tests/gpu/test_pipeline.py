"""Restoring on a GPU: what a CPU restores in float32, and bf16, compiled code and CUDA graphs near it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffrestorer.inference.pipeline import DiffRestorerPipeline

FLOAT32_BOUND = 1e-3
"""Of an image in [0, 1], of the float32 computed on two devices."""

BF16_BOUND = 0.02
"""Mean difference of an image in [0, 1] in bf16; the CPU's own bf16 is held to the same."""


def restore(pipe: DiffRestorerPipeline, *size: int, count: int = 1, **options: Any) -> torch.Tensor:
    lq = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    return torch.stack(pipe(lq, 3, generators, output_type="pt", **options).images).float().cpu()


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((40, 50), {}),
        ((64, 64), {"count": 3}),
        ((40, 50), {"decoder": "sd"}),
        ((40, 50), {"fidelity": 0.4}),
        ((200, 150), {"tile": 128}),
    ],
    ids=["refined", "batch", "sd", "fidelity", "tiles"],
)
def test_float32_is_the_cpu_s(
    size: tuple[int, int],
    options: dict[str, Any],
    pipe: DiffRestorerPipeline,
    device: torch.device,
    record_property: Callable,
) -> None:
    expected = restore(pipe.prepare("cpu"), *size, **options)
    found = restore(pipe.prepare(device, dtype=torch.float32), *size, **options)
    worst = (found - expected).abs().max().item()
    record_property("greatest difference from the CPU", f"{worst:.1e}")
    assert expected.std() > 0.01, "there is something to compare"
    assert worst <= FLOAT32_BOUND


def test_bf16_stays_near(
    pipe: DiffRestorerPipeline, device: torch.device, record_property: Callable
) -> None:
    expected = restore(pipe.prepare("cpu"), 40, 50)
    found = restore(pipe.prepare(device, dtype=torch.bfloat16), 40, 50)
    mean = (found - expected).abs().mean().item()
    record_property("mean difference from float32", f"{mean:.1e}")
    assert 0 < mean <= BF16_BOUND


def test_a_gpu_gets_bf16_and_channels_last(pipe: DiffRestorerPipeline, device: torch.device) -> None:
    pipe.prepare(device)
    if device.type == "cuda":
        weight = pipe.unet.conv_in.weight
        assert weight.dtype == torch.bfloat16
        assert weight.is_contiguous(memory_format=torch.channels_last)
    assert {parameter.device.type for parameter in pipe.restorer.parameters()} == {device.type}


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.usefixtures("unchecked")
@pytest.mark.timeout(600)
def test_compiled_networks_restore_the_same(
    mode: str,
    pipe: DiffRestorerPipeline,
    device: torch.device,
    record_property: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if device.type == "cpu":  # a walk without generated code
        plain = torch.compile
        monkeypatch.setattr(torch, "compile", lambda *args, **options: plain(*args, backend="eager"))
    expected = restore(pipe.prepare(device, dtype=torch.float32), 64, 64)
    for network in (pipe.unet, pipe.control_network):
        network.compile(mode=mode, dynamic=False)
    for _ in range(3):  # graphs are recorded at the second call and replayed at the third
        worst = (restore(pipe, 64, 64) - expected).abs().max().item()
        assert worst <= FLOAT32_BOUND
    record_property("greatest difference from eager code", f"{worst:.1e}")


def test_the_noise_is_the_generator_s_wherever_it_lives(
    pipe: DiffRestorerPipeline, device: torch.device
) -> None:
    pipe.prepare(device, dtype=torch.float32)
    assert torch.equal(restore(pipe, 40, 50), restore(pipe, 40, 50)), "one generator, one image"
    own = torch.Generator(device).manual_seed(0)
    images = pipe(torch.rand(1, 3, 40, 50), 2, own, output_type="pt").images
    assert images[0].isfinite().all()
