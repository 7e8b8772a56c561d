"""Offloading to the CPU: networks come to the device when they run, and leave it again.

The CPU stands in for the GPU: the hooks are those of accelerate and diffusers, and every network, layer or group of
layers that they move is noted. A layer that runs while it is not on the stand-in fails the test.
"""

from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from diffusers import ModelMixin
from diffusers.hooks.group_offloading import ModuleGroup
from soaking import some_now
from torch import Tensor, nn

from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.components import COMPONENTS
from diffrestorer.models.restorer import Restorer

STEPS = 2
ORDER = [
    "image_encoder",
    "prompt_processor",
    "vae",
    "control_encoder",
    "control_network",
    "unet",
    "decoder",
]


@pytest.fixture(params=some_now(["sd15", "mini"], 1))
def pipe(
    request: pytest.FixtureRequest,
    tiny_restorer: Restorer,
    tiny_sd15_overrides: list[str],
    tiny_config: Any,
    randomised: Callable,
) -> DiffRestorerPipeline:
    """A pipeline of mini's networks, and one of Stable Diffusion's kind with CLIP's tower."""
    from diffusers import UniPCMultistepScheduler

    from diffrestorer.config.composition import load
    from diffrestorer.config.schema import Stage1Config
    from diffrestorer.models.pretrained import load_base
    from diffrestorer.models.restorer import build_restorer

    restorer, config = tiny_restorer, tiny_config
    if request.param == "sd15":
        config = load("train_stage1", Stage1Config, tiny_sd15_overrides).model
        restorer = build_restorer(config, *load_base(config)).eval()
    scheduler = UniPCMultistepScheduler(**config.scheduler)
    pipe = DiffRestorerPipeline(**randomised(restorer).components(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


CPU, STAND_IN = torch.device("cpu"), torch.device("cpu", 0)


def restore(pipe: DiffRestorerPipeline, size: tuple[int, int] = (40, 50), **options: Any) -> Tensor:
    lq = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    return pipe(lq, STEPS, torch.Generator().manual_seed(0), output_type="pt", **options).images[0]


def restore_all_ways(pipe: DiffRestorerPipeline) -> list[Tensor]:
    """Whole with either decoder, and by tiles."""
    tile = 4 * pipe._multiple
    return [restore(pipe), restore(pipe, decoder="sd"), restore(pipe, (tile + 20, 40), tile=tile)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for image, other in zip(found, expected, strict=True):
        torch.testing.assert_close(image, other, rtol=0, atol=1e-5)


class Located:
    """A parameter that says it lies where its network was last moved to."""

    def __init__(self, parameter: nn.Parameter, device: torch.device) -> None:
        self.parameter, self.device = parameter, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parameter, name)


class Whereabouts:
    """Where each network is, and every move of it.

    Attributes:
        moves: name and device of every network that came or went.
    """

    def __init__(self, pipe: DiffRestorerPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places = dict.fromkeys(COMPONENTS, CPU)
        self.moves: list[tuple[str, torch.device]] = []
        self.names = {id(getattr(pipe, name)): name for name in COMPONENTS}
        monkeypatch.setattr(
            ModelMixin, "to", lambda *args, **kwargs: self.move(*args, **kwargs)
        )  # of the class: accelerate takes the modules' own away
        for name in COMPONENTS:
            network = getattr(pipe, name)
            plain = network.parameters

            def parameters(name: str = name, plain: Callable = plain, recurse: bool = True) -> Any:
                return (Located(parameter, self.places[name]) for parameter in plain(recurse))

            def check(module: nn.Module, _: Any, name: str = name) -> None:
                assert self.places[name] == STAND_IN, f"{name} ran on the CPU"

            monkeypatch.setattr(network, "parameters", parameters)
            for module in network.modules():
                if not list(module.children()):
                    module.register_forward_pre_hook(check)

    def move(self, network: nn.Module, device: Any, *_: Any, **__: Any) -> nn.Module:
        """Note a move in place of `network.to(device)`."""
        name, target = self.names[id(network)], torch.device(device)
        if self.places[name] != target:
            self.moves.append((name, target))
        self.places[name] = target
        return network


def test_each_network_is_moved_once_per_image(
    pipe: DiffRestorerPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the GPU in the order in which they run, and back when the next one runs: not at every step."""
    expected = restore_all_ways(pipe)
    where = Whereabouts(pipe, monkeypatch)
    pipe.enable_model_cpu_offload(device="cpu")

    found = restore(pipe)

    assert [name for name, device in where.moves if device == STAND_IN] == ORDER
    before = where.moves[: where.moves.index(("decoder", STAND_IN))]
    left = {name for name, device in before if device == CPU}
    assert left == set(ORDER) - {"control_network", "decoder"}, (
        "all but the one that alternates with the UNet"
    )
    assert set(where.places.values()) == {CPU}, "in the end nothing is left there"
    torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-5)
    assert_same(restore_all_ways(pipe), expected)


def test_layers_are_offloaded_one_by_one(
    pipe: DiffRestorerPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between their runs the weights are nowhere but in accelerate's store: here the hooks really move them."""
    expected, plain = restore_all_ways(pipe), accelerate.cpu_offload
    # A parameter that moves from `cpu` to `cpu:0` would stop being one, which no GPU does.
    monkeypatch.setattr(
        accelerate, "cpu_offload", lambda module, device, **options: plain(module, CPU, **options)
    )
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert {parameter.device.type for parameter in pipe.unet.parameters()} == {"meta"}
    assert_same(restore_all_ways(pipe), expected)
    assert {parameter.device.type for parameter in pipe.decoder.parameters()} == {"meta"}


@pytest.mark.parametrize("offload_type", some_now(["block_level", "leaf_level"], 1))
def test_groups_of_layers_are_offloaded(
    offload_type: str, pipe: DiffRestorerPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = restore_all_ways(pipe)
    arrived: set[int] = set()

    def tensors(group: ModuleGroup) -> set[int]:
        return {id(tensor) for part in group.modules for tensor in part.parameters()} | set(
            map(id, group.parameters)
        )

    onload, offload = ModuleGroup.onload_, ModuleGroup.offload_

    def note_onload(group: ModuleGroup) -> None:
        arrived.update(tensors(group))
        onload(group)

    def note_offload(group: ModuleGroup) -> None:
        arrived.difference_update(tensors(group))
        offload(group)

    def check(module: nn.Module, forward: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            missing = [
                name
                for name, tensor in module.named_parameters(recurse=False)
                if id(tensor) not in arrived
            ]
            assert not missing, f"{type(module).__name__} ran without its {missing}"
            return forward(*args, **kwargs)

        return run

    # The checks go inside what diffusers puts around a layer.
    monkeypatch.setattr(ModuleGroup, "onload_", note_onload)
    monkeypatch.setattr(ModuleGroup, "offload_", note_offload)
    for name in COMPONENTS:
        for module in getattr(pipe, name).modules():
            if not list(module.children()):
                monkeypatch.setattr(module, "forward", check(module, module.forward))
    if offload_type == "leaf_level":
        arrived.update(map(id, pipe.image_encoder.parameters()))  # it stays on the device

    pipe.enable_group_offload(CPU, offload_type=offload_type, num_blocks_per_group=1)

    assert_same(restore_all_ways(pipe), expected)
