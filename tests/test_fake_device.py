"""Restoring and training steps on a fake GPU: one device, one way in and one way out, types as documented."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from fake_device import CUDA, DeviceTraffic, autocast, fake_cuda, layer_types
from soaking import some_now
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
)

from diffrestorer.config.composition import load
from diffrestorer.config.schema import (
    BaseConfig,
    DataConfig,
    DecoderConfig,
    Stage1Config,
    StudentConfig,
)
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs, collate_pairs
from diffrestorer.inference.choices import Tile
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.inference.unipc_table import sampling_table
from diffrestorer.models.components import COMPONENTS, build_image_encoder, save_component
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.mini_base import TASKS, UNetTask, VAETask
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.student import StudentTask
from diffrestorer.training.task import Task

STEPS = 2

EFFICIENTNET = "model.perceptual=efficientnet_lite0"


@pytest.fixture(scope="module")
def models(tiny_overrides: list[str], tiny_sd15_overrides: list[str]) -> dict[str, list[str]]:
    return {"mini": tiny_overrides, "sd15": tiny_sd15_overrides}


@pytest.fixture(scope="module")
def tasks(
    models: dict[str, list[str]], photos_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Task]:
    """Every stage by model and name, on the CPU. Shared: move a copy."""
    data = ["data=photos", f"data.root={photos_dir}", "data.size=64"]
    found: dict[tuple[str, str], Task] = {}
    for name, model in models.items():
        folder = tmp_path_factory.mktemp(name)
        stage1 = Stage1Task(load("train_stage1", Stage1Config, [*model, *data]))
        stage1.save_model(folder / "model", torch.float32)
        found[name, "stage1"] = stage1
        for z0 in ("hq", "sampled"):
            keys = [*model, *data, EFFICIENTNET, f"stage1={folder}", f"z0={z0}", f"z0_steps={STEPS}"]
            found[name, f"decoder z0={z0}"] = DecoderTask(load("train_decoder", DecoderConfig, keys))
        keys = [
            *model,
            *data,
            EFFICIENTNET,
            f"teacher={folder}",
            "lora_rank=2",
            "lambda_adversarial=0.5",
        ]
        found[name, "student"] = StudentTask(load("train_student", StudentConfig, keys))
    base = load("train_base", BaseConfig, [*models["mini"], *data[1:], f"output_dir={folder}/base"])
    vae = found["mini", "vae"] = VAETask(base)
    finished = {"vae": vae.vae, "image_encoder": build_image_encoder(base.model)}
    for part, component in finished.items():
        save_component(component, folder / "base" / part / "model" / part, torch.float32)
    found["mini", "unet"] = UNetTask(base)
    return found


@pytest.fixture(scope="module")
def batches(photos_dir: Path) -> list[PairBatch]:
    pairs = SynthesisedPairs(DataConfig("photos", str(photos_dir), 64, ["noise", "rain"]), 0, 2)
    return [collate_pairs([pairs[step, position] for position in range(2)]) for step in range(2)]


FAULTS: dict[str, Callable[[Tensor], object]] = {
    "copies": lambda on_gpu: torch.tensor([1.0, 2.0], device=on_gpu.device),
    "returns": lambda on_gpu: on_gpu.cpu(),
    "mixed": lambda on_gpu: on_gpu[torch.tensor([0, 1])],
    "products": lambda on_gpu: on_gpu[None] @ on_gpu[:, None],
}


@pytest.mark.parametrize("kind", FAULTS)
def test_each_kind_of_traffic_is_noted(kind: str) -> None:
    with fake_cuda():
        on_gpu = torch.ones(2, device=CUDA)
        with DeviceTraffic() as traffic:
            FAULTS[kind](on_gpu)
    noted = {name: len(getattr(traffic, name)) for name in FAULTS}
    assert noted == {name: int(name == kind) for name in FAULTS}
    assert all(operation.waits for operation in traffic.copies)


@pytest.mark.parametrize(
    "read", [lambda on_gpu: on_gpu[0].item(), Tensor.nonzero, lambda on_gpu: on_gpu[on_gpu > 0]]
)
def test_no_value_can_be_read(read: Callable[[Tensor], object]) -> None:
    with fake_cuda():
        on_gpu = torch.ones(2, device=CUDA)
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            read(on_gpu)


def test_tensors_on_two_devices_do_not_meet() -> None:
    with fake_cuda(), pytest.raises(FakeTensorDeviceMismatchError, match="two devices"):
        torch.ones(2, device=CUDA) + torch.ones(2)


def test_only_page_locked_memory_is_copied_without_waiting() -> None:
    with fake_cuda(), DeviceTraffic() as traffic:
        torch.ones(2).to(CUDA, non_blocking=True)
        torch.ones(2).pin_memory().to(CUDA)
        torch.ones(2).pin_memory().to(CUDA, non_blocking=True)
    assert [copied.waits for copied in traffic.copies] == [True, True, False]


def pipeline_of(stage1: Stage1Task) -> DiffRestorerPipeline:
    networks = copy.deepcopy(stage1.restorer).eval().to(memory_format=torch.channels_last)
    scheduler = UniPCMultistepScheduler(**stage1.config.model.scheduler)
    sampling_table(scheduler, STEPS)  # its numbers are computed on the host, once a process
    pipeline = DiffRestorerPipeline(**networks.components(), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("model", "tile"),
    [
        pytest.param("mini", "none", marks=pytest.mark.soak),
        pytest.param("mini", 256, marks=pytest.mark.slow),
        pytest.param("sd15", "none", marks=pytest.mark.soak),
        pytest.param("sd15", 256, marks=pytest.mark.soak),
    ],
)
def test_an_image_enters_a_gpu_once(model: str, tile: Tile, tasks: dict[tuple[str, str], Task]) -> None:
    """The image and its noise are copied before the networks start. From then on, the host waits for nothing."""
    pipeline = pipeline_of(tasks[model, "stage1"])
    with fake_cuda():
        # What `prepare("cuda")` does, in one move: torch moves a fake module no second time.
        pipeline.restorer.to(CUDA, torch.bfloat16)
        lq = torch.rand(1 if tile == 256 else 2, 3, 240, 500)
        pipeline.decode(pipeline.sample(lq, STEPS, tile=tile))  # the first image brings the constants

        with DeviceTraffic() as traffic, layer_types(pipeline.restorer.components()) as types:
            sampled = pipeline.sample(lq, STEPS, tile=tile)
            images = [pipeline.decode(sampled, decoder) for decoder in ("refined", "sd")]

    copies = [(copied.file, copied.busy) for copied in traffic.copies]
    expected = [("inference/component_pipeline.py", False), ("inference/sampler.py", False)]
    assert copies == expected, traffic.copies
    assert not traffic.returns + traffic.mixed
    assert all(
        (image.device, image.dtype, image.shape) == (CUDA, torch.float32, lq.shape) for image in images
    )
    assert types == {name: {torch.bfloat16} for name in COMPONENTS}
    steps = [
        product.dtype for product in traffic.products if product.file == "inference/unipc_table.py"
    ]
    assert steps == [torch.float32] * STEPS, "the sampler's state"


DRAWN = {
    "stage1": ["data/counter.py float32 (2, 4, 8, 8)", "data/counter.py int64 (2,)"],
    "decoder z0=hq": [],
    "decoder z0=sampled": ["data/counter.py float32 (2, 4, 8, 8)"],
    "student": [],
    "vae": ["data/counter.py bool (2,)", "data/counter.py float32 (2, 4, 8, 8)"],
    "unet": ["data/counter.py float32 (2, 4, 8, 8)", "data/counter.py int64 (2,)"],
}
"""Stage -> what a step draws on the host, by counter: noise, timesteps, which samples the VAE sees degraded."""


@pytest.mark.parametrize(
    ("model", "stage"),
    [
        *some_now((("mini", stage) for stage in DRAWN), 3),
        *(pytest.param("sd15", stage, marks=pytest.mark.soak) for stage in DRAWN if stage not in TASKS),
    ],
)
def test_a_training_step_waits_for_nothing(
    model: str, stage: str, tasks: dict[tuple[str, str], Task], batches: list[PairBatch]
) -> None:
    """The batch and what is drawn by counter come from page-locked memory. Losses are float32 under autocast."""
    task = copy.deepcopy(tasks[model, stage])
    if isinstance(task, DecoderTask):
        sampling_table(task.scheduler, STEPS)  # its numbers are computed on the host, once a process
    with fake_cuda(), autocast():
        task.to(CUDA)
        with DeviceTraffic():  # the first step brings the constants
            task(batches[0].to(CUDA))
        with DeviceTraffic() as traffic:
            losses = task(batches[1].pin_memory().to(CUDA))

    batch, drawn = traffic.copies[:3], traffic.copies[3:]
    assert {copied.file for copied in batch} == {"data/pairs.py"}, "lq, gt and label"
    shapes = [
        f"{copied.file} {str(copied.dtype).removeprefix('torch.')} {copied.shape}" for copied in drawn
    ]
    assert sorted(shapes) == sorted(DRAWN[stage]), drawn
    assert not [copied for copied in traffic.copies if copied.waits]
    assert not traffic.returns + traffic.mixed
    found = [losses.total, *losses.parts.values()]
    assert {(loss.device, loss.dtype) for loss in found} == {(CUDA, torch.float32)}
    layers = {
        product.dtype for product in traffic.products if product.file != "inference/unipc_table.py"
    }
    assert torch.bfloat16 in layers, "autocast is on"
    steps = [
        product.dtype for product in traffic.products if product.file == "inference/unipc_table.py"
    ]
    assert steps == [torch.float32] * (STEPS if stage == "decoder z0=sampled" else 0), (
        "the sampler's state"
    )
