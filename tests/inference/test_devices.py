"""Device, precision and layout: what is chosen, and that it changes the images by no more than it may."""

from typing import Any

import pytest
import torch
from soaking import some_now
from torch import Tensor

from diffrestorer.cli.parser import parse
from diffrestorer.inference.devices import choose_dtype, find_device
from diffrestorer.inference.photos import load_pipeline
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.components import COMPONENTS
from diffrestorer.training.finished import load_to_train

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def restore(pipe: DiffRestorerPipeline) -> Tensor:
    lq = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    return pipe(lq, 3, torch.Generator().manual_seed(0), output_type="pt").images[0]


def test_channels_last_changes_nothing_and_bfloat16_little(pipe: DiffRestorerPipeline) -> None:
    expected = restore(pipe)

    assert (restore(pipe.prepare("cpu")) - expected).abs().max() <= 1e-4
    for network in pipe.restorer.components().values():
        weights = [weight for weight in network.parameters() if weight.ndim == 4]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)

    restored = restore(pipe.prepare("cpu", torch.bfloat16))
    assert restored.dtype == torch.float32
    assert 0 < (restored - expected).abs().mean() <= 0.02


def lies_channels_last(network: torch.nn.Module) -> list[bool]:
    """Return it for each kernel of several pixels and channels; the others lie both ways."""
    kernels = [weight for weight in network.parameters() if weight.ndim == 4]
    kernels = [kernel for kernel in kernels if kernel.shape[1] > 1 and kernel[0, 0].numel() > 1]
    return [kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels]


def test_loaded_networks_lie_channels_last_unless_they_train() -> None:
    """The layout is the fast one without `prepare`, too. What the caller hands over stays as it is."""
    trained = load_to_train("mini")
    loaded = DiffRestorerPipeline.from_pretrained("mini", unet=trained.unet)
    assert loaded.unet is trained.unet
    for network in (*trained.restorer.components().values(), loaded.unet):
        assert not any(lies_channels_last(network))
    for name in set(COMPONENTS) - {"unet"}:
        assert all(lies_channels_last(getattr(loaded, name)))


def test_a_cpu_gets_float32_unless_asked(
    pipe: DiffRestorerPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AMX, too: whoever calls from Python chooses."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    pipe.to(torch.bfloat16)
    assert pipe.prepare("cpu") is pipe
    assert {parameter.dtype for parameter in pipe.restorer.parameters()} == {torch.float32}


@pytest.mark.parametrize("amx", [False, True])
def test_auto_is_bfloat16_where_it_is_faster(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs AMX decides, AVX512-BF16 alone does not."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: amx)
    fast = torch.bfloat16 if amx else torch.float32
    assert choose_dtype("auto", CPU) == choose_dtype("auto", CUDA) == fast
    assert choose_dtype("float32", CPU) == torch.float32
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, name in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert find_device("auto").type == name
    assert find_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("command", some_now(["restore", "detect", "app"], 2))
def test_the_command_line_chooses_precision_and_compilation(
    command: str, random_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    compiled: list[str] = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda network: compiled.append(type(network).__name__)
    )
    inputs = {"restore": ["a.png", "-o", "out"], "detect": ["a.png"], "app": []}[command]
    compiles = [] if command == "detect" else ["--compile"]
    for words, dtype in (([], torch.bfloat16), (["--precision", "float32", *compiles], torch.float32)):
        arguments = parse([command, *inputs, *words])
        pipe = load_pipeline(str(random_model), "cpu", arguments.precision, arguments.compile)
        assert pipe.unet.dtype == dtype
    assert compiled == ["UNet2DConditionModel", "ControlNetwork"] * len(compiles)
