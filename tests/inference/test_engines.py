"""Engines: whatever runs the networks, the images are the same, and nothing in the loop waits for the device."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import jaxtyping
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch._dynamo.testing import CompileCounterWithBackend

from diffrestorer.cli.parser import ENGINES
from diffrestorer.inference.engines import openvino as engine_openvino
from diffrestorer.inference.engines.choice import EngineName
from diffrestorer.inference.engines.engine import Engine
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.inference.sampler import sampling_table
from diffrestorer.inference.stages import Stages

if TYPE_CHECKING:
    from diffrestorer.config.schema import ModelConfig
    from diffrestorer.models.restorer import Restorer

CPU = torch.device("cpu")


@pytest.fixture
def pipe(tiny_restorer: "Restorer", tiny_config: "ModelConfig", randomised: Callable) -> DiffRestorerPipeline:
    scheduler = UniPCMultistepScheduler(**tiny_config.scheduler)
    pipe = DiffRestorerPipeline(**randomised(tiny_restorer).components(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As users run it: a compiler does not see the tests' type checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def restore(pipe: DiffRestorerPipeline, *size: int, batch: int = 1, **options: Any) -> torch.Tensor:
    lq = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    return torch.stack(pipe(lq, 3, torch.Generator().manual_seed(0), output_type="pt", **options).images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_in_the_loop_waits_for_a_gpu(pipe: DiffRestorerPipeline) -> None:
    pipe.prepare("cuda")
    lq = torch.rand(1, 3, 64, 64, device="cuda", dtype=torch.bfloat16)
    condition = pipe.sample(lq, 2).condition
    table = sampling_table(pipe.scheduler, 4)
    predict = Stages(pipe.engine, 32).predictor(condition, table.timesteps)
    noise = torch.randn_like(condition.encoded.latents)
    table.sample(noise, predict)
    torch.cuda.set_sync_debug_mode("error")
    try:
        latents = noise
        for step in range(4):
            latents = predict(latents, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.soak
@pytest.mark.usefixtures("unchecked")
def test_the_step_is_compiled_once(pipe: DiffRestorerPipeline) -> None:
    """One graph for all steps and images of one size, without a break."""
    expected = restore(pipe, 32, 64), restore(pipe, 32, 64, batch=2)
    counter = CompileCounterWithBackend("aot_eager")
    pipe.engine = Engine(pipe.restorer, partial(torch.compile, backend=counter, fullgraph=True, dynamic=False))
    for _ in range(2):
        assert (restore(pipe, 32, 64) - expected[0]).abs().max() <= 1e-5
    assert counter.frame_count == 1
    assert (restore(pipe, 32, 64, batch=2) - expected[1]).abs().max() <= 1e-5


def test_channels_last_changes_nothing_and_bfloat16_little(pipe: DiffRestorerPipeline) -> None:
    expected = restore(pipe, 40, 50)
    pipe.restorer.to(memory_format=torch.channels_last)
    assert (restore(pipe, 40, 50) - expected).abs().max() <= 1e-4
    restored = restore(pipe.prepare("cpu", dtype=torch.bfloat16), 40, 50)
    assert restored.dtype == torch.float32
    assert 0 < (restored - expected).abs().mean() <= 0.02


def test_a_cpu_gets_float32(pipe: DiffRestorerPipeline) -> None:
    pipe.to(torch.bfloat16)
    assert pipe.prepare("cpu") is pipe
    assert {parameter.dtype for parameter in pipe.restorer.parameters()} == {torch.float32}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("sizes", [(5,), (6, 7)])
def test_group_norm_by_channels_is_group_norm(affine: bool, sizes: tuple[int, ...]) -> None:
    """At a mean far above the deviation too, where the mean of squares would lose all digits."""
    norm = torch.nn.GroupNorm(4, 12, eps=1e-6, affine=affine)
    if affine:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    x = 3 * torch.randn(2, 12, *sizes) + 100
    expected = norm.double()(x.double())
    assert (engine_openvino.group_norm(norm.float(), x) - expected).abs().max() <= 1e-4


@pytest.mark.soak
def test_openvino_restores_the_same(pipe: DiffRestorerPipeline) -> None:
    """Sizes, batches and options other than those it was traced with, the later ones by networks for any size."""
    pytest.importorskip("openvino")
    cases: list[tuple[tuple[int, int], dict[str, Any]]] = [
        ((33, 40), {}),
        ((33, 40), {"batch": 3}),
        ((90, 30), {}),
        ((64, 96), {"batch": 2, "fidelity": 0.3}),
        ((64, 64), {"decoder": "sd"}),
        ((150, 130), {"tile": 128}),
    ]
    expected = [restore(pipe, *size, **options) for size, options in cases]
    pipe.prepare("cpu", "openvino")
    for (size, options), eager in zip(cases, expected, strict=True):
        assert (restore(pipe, *size, **options) - eager).abs().max() <= 1e-4, (size, options)


def test_the_command_line_offers_the_engines_there_are() -> None:
    assert get_args(EngineName) == ENGINES


@pytest.mark.usefixtures("unchecked")
def test_engines_that_cannot_run_are_refused(pipe: DiffRestorerPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="engine must be one of eager, compile, graphs, openvino, not 'tensorrt'"):
        pipe.prepare("cpu", "tensorrt")
    with pytest.raises(ValueError, match="engine graphs runs on cuda devices, not on cpu"):
        pipe.prepare("cpu", "graphs")
    monkeypatch.setattr(engine_openvino, "openvino", None)
    with pytest.raises(ValueError, match=r"needs OpenVINO: pip install 'diffrestorer\[openvino\]'"):
        pipe.prepare("cpu", "openvino")
    assert restore(pipe, 16, 16).shape == (1, 3, 16, 16), "it is as it was"


def test_offloading_is_refused_in_a_sentence(pipe: DiffRestorerPipeline) -> None:
    for offload in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload, pipe.enable_group_offload):
        with pytest.raises(ValueError, match="offloading to the CPU is not supported"):
            offload()
