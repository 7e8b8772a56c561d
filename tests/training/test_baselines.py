"""Training of the compared methods: every parameter learns, two processes equal one, a run goes on where it stopped."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_runs as runs
from fake_device import CUDA, DeviceTraffic, fake_cuda
from soaking import some_now
from tiny_baselines import TINY, tiny
from torch import Tensor

from diffrestorer.config.composition import load
from diffrestorer.config.schema import BaselineConfig, Stage1Config
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs, collate_pairs
from diffrestorer.models.pretrained import load_base
from diffrestorer.training.baseline import FIRST_PHASES, PHASES
from diffrestorer.training.baseline_task import BaselineTask, RegressionTask
from diffrestorer.training.da_clip_task import ControllerTask
from diffrestorer.training.losses import psnr_loss
from diffrestorer.training.schedule import learning_rate_factor
from diffrestorer.training.task import Task, to_unit

GOLDEN = Path(__file__).with_name("golden_baselines.json")
"""Recorded by --record-golden, as golden.json is."""


def build(method: str, first_phase: bool = False) -> Task:
    config = load("train_baseline", BaselineConfig, tiny(method, "pretraining.max_steps=0"))
    torch.manual_seed(0)
    return (FIRST_PHASES if first_phase else PHASES).get(method, RegressionTask)(config)


def batch(step: int = 0, positions: Sequence[int] = (0, 1)) -> PairBatch:
    generator = torch.Generator().manual_seed(step)
    lq, gt = (
        torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator) for _ in range(2)
    )
    chosen = list(positions)
    return PairBatch(lq[chosen], gt[chosen], torch.arange(4)[chosen], step, tuple(positions))


@pytest.mark.parametrize(
    ("method", "first_phase"),
    some_now([*((method, False) for method in TINY), *((method, True) for method in FIRST_PHASES)], 4),
)
def test_every_trainable_parameter_gets_a_gradient(method: str, first_phase: bool) -> None:
    task = build(method, first_phase)
    losses = task(batch())
    assert torch.isfinite(losses.total)
    losses.total.backward()
    (optimizer,) = task.optimizers()
    optimised = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = {
        name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad
    }
    assert {id(parameter) for parameter in optimised} == {
        id(parameter) for parameter in trained.values()
    }
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []
    assert [
        name
        for name, parameter in task.named_parameters()
        if name not in trained and parameter.grad is not None
    ] == []


@pytest.mark.parametrize(
    ("method", "first_phase"),
    some_now([*((m, False) for m in TINY), *((m, True) for m in FIRST_PHASES)], 4),
)
def test_a_step_on_a_gpu_waits_for_nothing(method: str, first_phase: bool) -> None:
    task = build(method, first_phase)
    with fake_cuda():
        task.to(CUDA)
        with DeviceTraffic():  # the first step brings the constants
            task(batch(0).to(CUDA))
        with DeviceTraffic() as traffic:
            task(batch(1).pin_memory().to(CUDA))
    assert not [copied for copied in traffic.copies if copied.waits]
    assert not traffic.returns + traffic.mixed
    assert traffic.products


def test_what_is_drawn_depends_on_step_and_position_alone() -> None:
    task = build("da_clip")
    with torch.no_grad():
        both, again = task(batch(3)).total, task(batch(3)).total
        each = [task(batch(3, [position])).total for position in (0, 1)]
    assert torch.equal(both, again)
    torch.testing.assert_close(torch.stack(each).mean(), both)


def test_airnets_first_phase_moves_the_encoder_its_copy_and_the_queue() -> None:
    task = build("airnet", first_phase=True)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    (optimizer,) = task.optimizers()
    for step in range(2):
        task(batch(step)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {
        name.split(".")[1]
        for name, value in task.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"encoder", "key_encoder", "keys", "position"}
    assert int(task.queue.position) == 4  # type: ignore[union-attr]


def test_da_clip_of_mini_starts_from_the_tower_of_minis_base() -> None:
    """That is ImageNet's, where the tower of `mini` itself has learned degradations."""
    config = load("train_baseline", BaselineConfig, ["method=da_clip", "size=mini", "data=photos"])
    controller = ControllerTask(config).model.controller
    _, clip, _ = load_base(load("train_stage1", Stage1Config, ["model=mini"]).model)
    images = clip.prepare(to_unit(batch().lq))
    with torch.no_grad():
        own = controller.clip.visual.trunk.forward_features(images)
        tower = clip.visual.tower
        torch.testing.assert_close(own, tower.forward_features(images))
        content, degradation = controller(to_unit(batch().lq))
    assert torch.equal(content, degradation), "the controls start at zero, the copy at the tower"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=airnet", "patch_size=72"], "patch_size=72 must fit into the crop"),
        (["method=airnet", "window_size=31"], "patch_size=32 must fit into the window, window_size=31"),
        (["method=airnet", "queue_length=15"], "queue_length=15 must be a multiple"),
        (
            ["method=airnet", "train.hardware.shard_optimizer=true"],
            "shard_optimizer=true is not for AirNet",
        ),
        (
            ["method=transweather", "perceptual=vgg16", "perceptual_weights=nowhere.pth"],
            "is no file; it is torchvision's",
        ),
    ],
)
def test_what_does_not_fit_is_refused(overrides: list[str], message: str) -> None:
    method = overrides[0].split("=")[1]
    config = load(
        "train_baseline", BaselineConfig, [*tiny(method, "pretraining.max_steps=0"), *overrides]
    )
    with pytest.raises(ValueError, match=message):
        PHASES.get(method, RegressionTask)(config)


def train_all(photos: Path, folder: Path, num_processes: int) -> dict[str, list[float]]:
    """Trains all methods for four steps; the total losses by phase."""
    commands = [
        tiny(m, "train.max_steps=4", f"data.root={photos}", f"output_dir={folder}/{m}") for m in TINY
    ]
    folder.mkdir()
    runs.run_ranks("train_baseline.py", commands, folder / "log", num_processes)
    for method in TINY:
        environment = json.loads((folder / method / "environment.json").read_text())
        assert environment["num_processes"] == num_processes
    phases = [*TINY, *(f"{method}/pretraining" for method in FIRST_PHASES)]
    return {phase: [row["total"] for row in runs.losses(folder / phase)] for phase in phases}


@pytest.mark.slow
def test_losses_are_the_golden_ones(
    photos_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    losses = train_all(photos_dir, tmp_path / "one", 1)
    if request.config.getoption("--record-golden"):
        GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert losses.keys() == golden.keys()
    for phase, found in losses.items():
        assert found == pytest.approx(golden[phase], rel=1e-3), phase


@pytest.mark.soak
def test_two_processes_learn_as_one(photos_dir: Path, tmp_path: Path) -> None:
    """And DDP misses no parameter. AirNet's BatchNorm makes its losses depend on the split; the others' do not."""
    losses = train_all(photos_dir, tmp_path / "one", 1)
    for phase, two in train_all(photos_dir, tmp_path / "two", 2).items():
        assert len(two) == (2 if phase.endswith("pretraining") else 4)
        assert all(math.isfinite(loss) for loss in two)
        if not phase.startswith("airnet"):
            assert two == pytest.approx(losses[phase], rel=1e-4, abs=1e-6), phase


@pytest.mark.soak
@pytest.mark.parametrize("method", ["airnet", "promptir"])
def test_a_stopped_run_ends_like_one_that_was_not(
    method: str, photos_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    arguments = tiny(
        method,
        f"data.root={photos_dir}",
        f"output_dir={output}",
        "train.max_steps=4",
        "train.checkpoint_every=2",
    )
    runs.run("train_baseline.py", arguments, tmp_path / "log")
    model, losses = runs.files_of(output / "model"), runs.losses(output)
    shutil.rmtree(output / "model")
    shutil.rmtree(output / "checkpoints" / "step_4")
    runs.run("train_baseline.py", arguments, tmp_path / "log")
    assert runs.files_of(output / "model") == model
    assert runs.losses(output) == losses


def four_pairs(method: str, photos_dir: Path, steps: int) -> tuple[BaselineTask, PairBatch]:
    """A mini method by its recipe, without a first phase, and four pairs of 64x64 to learn by heart."""
    overrides = [
        f"method={method}", "size=mini", "pretraining.max_steps=0", "clip=none", "data=photos", "data.size=64",
        f"data.root={photos_dir}", "patch_size=64", "queue_length=8", "lambda_contrastive=0.0",
        "data.degradations=[haze,low_light,rain,jpeg]", f"train.max_steps={steps}",
    ]  # fmt: skip
    config = load("train_baseline", BaselineConfig, overrides)
    pairs = SynthesisedPairs(config.data, config.seed, 4)
    torch.manual_seed(0)
    task = PHASES.get(method, RegressionTask)(config)
    assert isinstance(task, BaselineTask)
    return task, collate_pairs([pairs[0, position] for position in range(4)])


def learn(task: BaselineTask, pairs: PairBatch) -> Iterator[float]:
    """The loss of each step of the recipe on the same pairs."""
    settings = task.config.train
    (optimizer,) = task.optimizers()
    for step in range(settings.max_steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * learning_rate_factor(step, settings)
        loss = task(replace(pairs, step=step)).total
        loss.backward()
        if settings.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(task.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def mean_psnr(restored: Tensor, gt: Tensor) -> float:
    return -psnr_loss(restored, to_unit(gt)).item()


@pytest.mark.soak
@pytest.mark.parametrize("method", TINY)
def test_mini_learns_four_pairs_by_heart(method: str, photos_dir: Path) -> None:
    """More than 30 dB on the four pairs it saw; a network that can't learn them can't learn anything."""
    task, pairs = four_pairs(method, photos_dir, 1000 if method == "airnet" else 4000)
    before = after = mean_psnr(to_unit(pairs.lq), pairs.gt)
    for step, _ in enumerate(learn(task, pairs)):
        if step % 100 == 99:
            after = mean_psnr(task.restore(pairs), pairs.gt)
            if after > 30:
                break
    assert before < 25
    assert after > 30, f"{before:.1f} dB before, {after:.1f} dB after {step + 1} steps"
