"""Whatever a user of diffusers does to a component takes effect, and a saved folder holds what runs."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.attention import OneTokenAttnProcessor
from diffrestorer.models.components import COMPONENTS

STEPS = 3


def restore(pipe: DiffRestorerPipeline, *size: int, **options: Any) -> Tensor:
    lq = torch.rand(3, *(size or (40, 50)), generator=torch.Generator().manual_seed(0))
    images = pipe(lq, STEPS, torch.Generator().manual_seed(0), output_type="pt", **options).images
    return images[0]


def saved(pipe: DiffRestorerPipeline, folder: Path) -> DiffRestorerPipeline:
    pipe.save_pretrained(folder)
    loaded = DiffRestorerPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize("name", COMPONENTS)
def test_an_assigned_network_runs_and_is_saved(
    name: str, pipe: DiffRestorerPipeline, randomised: Callable, tmp_path: Path
) -> None:
    before = restore(pipe)
    other = randomised(getattr(pipe, name))
    setattr(pipe, name, other)

    found = restore(pipe)

    assert (found - before).abs().max() > 1e-3
    expected = DiffRestorerPipeline(**pipe.components)
    expected.set_progress_bar_config(disable=True)
    torch.testing.assert_close(found, restore(expected), rtol=0, atol=5e-5)
    loaded = getattr(saved(pipe, tmp_path), name).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in other.state_dict().items())


def test_an_assigned_scheduler_runs_and_is_saved(pipe: DiffRestorerPipeline, tmp_path: Path) -> None:
    before = restore(pipe)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, solver_order=1)
    found = restore(pipe)
    assert (found - before).abs().max() > 1e-4
    torch.testing.assert_close(restore(saved(pipe, tmp_path)), found, rtol=0, atol=5e-5)


def test_components_are_held_once(pipe: DiffRestorerPipeline) -> None:
    """Nothing but the component's own attribute refers to a network."""
    held = [key for key, value in vars(pipe).items() if isinstance(value, nn.Module)]
    assert sorted(held) == sorted(COMPONENTS)
    assert all(getattr(pipe.restorer, name) is getattr(pipe, name) for name in COMPONENTS)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "in_place", [pytest.param(False, marks=pytest.mark.soak), True], ids=["assigned", "in place"]
)
def test_compiled_networks_run(in_place: bool, pipe: DiffRestorerPipeline, tmp_path: Path) -> None:
    """One graph of each network for all steps and images of one size; the folder is that of the plain network."""
    expected = restore(pipe)
    counter = CompileCounterWithBackend("eager")
    for name in ("unet", "control_network"):
        network = getattr(pipe, name)
        if in_place:
            network.compile(backend=counter, fullgraph=True)
        else:
            setattr(pipe, name, torch.compile(network, backend=counter, fullgraph=True))
    for _ in range(2):
        assert (restore(pipe) - expected).abs().max() <= 5e-5
    assert counter.frame_count == 2
    torch.testing.assert_close(restore(saved(pipe, tmp_path)), expected, rtol=0, atol=5e-5)


def test_hooks_run(pipe: DiffRestorerPipeline) -> None:
    before, calls = restore(pipe), []

    def halve(module: nn.Module, inputs: Any, output: Any) -> Any:
        calls.append(type(module).__name__)
        return tuple(value / 2 for value in output) if isinstance(output, tuple) else output / 2

    for name in ("unet", "control_encoder", "decoder"):
        hook = getattr(pipe, name).register_forward_hook(halve)
        assert (restore(pipe) - before).abs().max() > 1e-3, name
        hook.remove()
    assert calls == ["UNet2DConditionModel"] * STEPS + [
        type(part).__name__ for part in (pipe.control_encoder, pipe.decoder)
    ]
    assert torch.equal(restore(pipe), before)


def test_free_u_takes_effect(pipe: DiffRestorerPipeline) -> None:
    before = restore(pipe)
    pipe.unet.enable_freeu(s1=0.6, s2=0.4, b1=1.5, b2=1.6)
    assert (restore(pipe) - before).abs().max() > 1e-3
    pipe.unet.disable_freeu()
    assert torch.equal(restore(pipe), before)


class Counted(AttnProcessor):
    """Plain attention that counts its calls."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        return super().__call__(*args, **kwargs)


def test_attention_processors_run(pipe: DiffRestorerPipeline) -> None:
    """The user's are not replaced, with or without tiles, and attend to the one token as the shortcut does."""
    expected = restore(pipe), restore(pipe, 150, 130, tile=128)
    processors = [block.processor for block in pipe.unet.modules() if hasattr(block, "processor")]
    assert any(isinstance(processor, OneTokenAttnProcessor) for processor in processors)

    counted = Counted()
    pipe.unet.set_attn_processor(counted)
    found = restore(pipe), restore(pipe, 150, 130, tile=128)

    assert counted.calls >= STEPS * len(pipe.unet.attn_processors)
    for image, other in zip(found, expected, strict=True):
        torch.testing.assert_close(image, other, rtol=0, atol=5e-5)


def test_lora_adapters_run_and_are_saved_merged(pipe: DiffRestorerPipeline, tmp_path: Path) -> None:
    before, weights = restore(pipe), copy.deepcopy(pipe.unet.state_dict())
    pipe.unet.add_adapter(
        LoraConfig(r=2, init_lora_weights=False, target_modules=["to_k", "to_v", "conv1"])
    )
    adapted = restore(pipe)
    assert (adapted - before).abs().max() > 1e-4

    loaded = saved(pipe, tmp_path)

    torch.testing.assert_close(restore(loaded), adapted, rtol=0, atol=1e-4)
    assert set(loaded.unet.state_dict()) == set(weights), "a plain UNet"
    assert torch.equal(restore(pipe), adapted), "the pipeline's own UNet keeps its adapter"
    pipe.unet.disable_adapters()
    torch.testing.assert_close(restore(pipe), before, rtol=0, atol=5e-5)
