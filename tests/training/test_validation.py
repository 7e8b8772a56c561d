"""Validation changes nothing that is learned: each task's forward pass, and whole runs of the compared methods."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import training_runs as runs
from soaking import some_now
from tiny_baselines import TINY, tiny
from torch import Tensor, nn

from diffrestorer.baselines.da_clip.controller import MAX_LOGIT_SCALE
from diffrestorer.config.composition import load
from diffrestorer.config.schema import (
    BaseConfig,
    BaselineConfig,
    DataConfig,
    DecoderConfig,
    Stage1Config,
    StudentConfig,
)
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs
from diffrestorer.models.components import build_image_encoder, save_component
from diffrestorer.training.baseline import FIRST_PHASES, PHASES, train_baseline
from diffrestorer.training.baseline_task import RegressionTask
from diffrestorer.training.da_clip_task import ControllerTask
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.encoder_tuning import ImageEncoderTask, fitted_folder
from diffrestorer.training.exhibits import Exhibits
from diffrestorer.training.mini_base import UNetTask, VAETask
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.student import StudentTask
from diffrestorer.training.task import Task, to_unit

PRETRAINING = [f"{method} pretraining" for method in FIRST_PHASES]
STAGES = ("stage1", "decoder", "student", "vae", "image_encoder", "unet")

NUM_PHOTOS = 3
"""Photos of a validation: neither the queue's length nor two processes can be divided by it."""


@pytest.fixture(scope="module")
def stages(
    tiny_overrides: list[str], photos_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Task]:
    """The tasks of our own model and of mini's base. Shared: none of the tests may change them."""
    folder = tmp_path_factory.mktemp("stages")
    data = [f"data.root={photos_dir}", "data.size=64"]
    keys = [*tiny_overrides, "data=photos", *data]
    stage1 = Stage1Task(load("train_stage1", Stage1Config, keys))
    stage1.save_model(folder / "model", torch.float32)
    found: dict[str, Task] = {"stage1": stage1}
    found["decoder"] = DecoderTask(load("train_decoder", DecoderConfig, [*keys, f"stage1={folder}"]))
    student = [f"teacher={folder}", "lora_rank=2", "lambda_adversarial=0.5", "discriminator_channels=8"]
    found["student"] = StudentTask(load("train_student", StudentConfig, [*keys, *student]))

    # The UNet needs the two other parts, and the image encoder its own from before.
    base = load("train_base", BaseConfig, [*tiny_overrides, *data, f"output_dir={folder}"])
    found["vae"] = vae = VAETask(base)
    save_component(vae.vae, folder / "vae" / "model" / "vae", torch.float32)
    for part in (folder / "image_encoder", fitted_folder(base)):
        image_encoder = build_image_encoder(base.model)
        save_component(image_encoder, part / "model" / "image_encoder", torch.float32)
    found["image_encoder"] = ImageEncoderTask(base)
    found["unet"] = UNetTask(base)
    return found


def build_baseline_task(name: str) -> Task:
    """The task of a method, or of its first phase, whose weights and copies of weights all differ."""
    method, _, first_phase = name.partition(" ")
    config = load("train_baseline", BaselineConfig, tiny(method, "pretraining.max_steps=0"))
    torch.manual_seed(0)
    task = (FIRST_PHASES if first_phase else PHASES).get(method, RegressionTask)(config)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        if isinstance(task, ControllerTask):
            task.model.controller.logit_scale.fill_(MAX_LOGIT_SCALE + 1)
    return task


@pytest.fixture
def task(name: str, stages: dict[str, Task]) -> Task:
    return stages[name] if name in stages else build_baseline_task(name)


@pytest.fixture
def batch() -> PairBatch:
    """Three pairs of noise."""
    generator = torch.Generator().manual_seed(0)
    lq, gt = (
        torch.randint(256, (NUM_PHOTOS, 3, 64, 64), dtype=torch.uint8, generator=generator)
        for _ in range(2)
    )
    return PairBatch(lq, gt, torch.arange(NUM_PHOTOS), 0, tuple(range(NUM_PHOTOS)))


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every exchange between processes fail that the package imports from Accelerate."""

    def refuse(*arguments: object) -> None:
        raise RuntimeError("an exchange between processes")

    for name, module in list(sys.modules.items()):
        if not name.startswith("diffrestorer."):
            continue
        for attribute, value in list(vars(module).items()):
            if getattr(value, "__module__", None) == "accelerate.utils.operations":
                monkeypatch.setattr(module, attribute, refuse)


def state(task: Task) -> dict[str, Tensor]:
    """Copies of every parameter and buffer, and the state of the generator."""
    tensors = {**dict(task.named_parameters()), **dict(task.named_buffers())}
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    return {**copies, "generator": torch.random.get_rng_state()}


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("name", some_now([*TINY, *PRETRAINING, *STAGES], 5))
def test_a_forward_pass_outside_training_changes_nothing(task: Task, batch: PairBatch) -> None:
    """Nor does it exchange anything between processes, which may have different numbers of batches."""
    before = state(task)
    modes = [(module, module.training) for module in task.modules()]
    task.eval()
    with torch.no_grad():
        losses, again = task(batch), task(batch)
        task.restore(batch)
    for module, training in modes:
        module.training = training

    assert torch.isfinite(losses.total)
    assert torch.equal(losses.total, again.total)
    after = state(task)
    assert [key for key, value in before.items() if not torch.equal(value, after[key])] == []


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("name", ["airnet", *PRETRAINING])
def test_an_exchange_in_training_would_be_noticed(task: Task, batch: PairBatch) -> None:
    with pytest.raises(RuntimeError, match="an exchange between processes"):
        task(batch)


class Dropping(Task):
    """A task whose sheets draw from the global generator while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.frozen = nn.Dropout(), nn.Dropout().eval()

    def sample(self, batch: PairBatch) -> list[Tensor]:
        return [self.frozen(self.dropout(to_unit(batch.lq)))]


def test_sheets_draw_nothing(photos_dir: Path, tmp_path: Path) -> None:
    task = Dropping()
    pairs = SynthesisedPairs(DataConfig("photos", str(photos_dir), 32, ["noise"]), 0, 2)
    exhibits = SimpleNamespace(task=task, pairs=pairs, num_samples=2, output_dir=tmp_path, tracker=None)
    before = torch.get_rng_state()
    Exhibits.save_samples(exhibits, torch.device("cpu"), 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert (task.dropout.training, task.frozen.training) == (True, False), "as they were"


def phases(method: str) -> list[str]:
    """The folders of a method's phases, in that of the run."""
    return ["pretraining", "."] if method in FIRST_PHASES else ["."]


def commands(method: str, photos: Path, folder: Path) -> list[list[str]]:
    """A run without validation, into FOLDER/METHOD/without, and one with it at every step, into FOLDER/METHOD/with."""
    validated = [
        f"data.validation_root={photos}", "train.validate_every=1", f"train.validation_images={NUM_PHOTOS}",
    ]  # fmt: skip
    return [
        tiny(method, f"data.root={photos}", f"output_dir={folder}/{method}/without"),
        tiny(method, f"data.root={photos}", f"output_dir={folder}/{method}/with", *validated),
    ]


def check_runs(method: str, folder: Path) -> None:
    """Assert that both runs learned the same, and that one was validated."""
    with_validation, without = folder / method / "with", folder / method / "without"
    for phase in phases(method):
        assert len(validations(with_validation / phase)) == 2
        losses = [(run / phase / "losses.csv").read_bytes() for run in (with_validation, without)]
        assert losses[0] == losses[1], phase
        models = [runs.files_of(run / phase / "model") for run in (with_validation, without)]
        assert models[0] == models[1], phase


def validations(run: Path) -> Sequence[dict[str, str]]:
    with (run / "validation.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("method", some_now(TINY, 1))
def test_a_run_with_validation_learns_the_same(method: str, photos_dir: Path, tmp_path: Path) -> None:
    for arguments in commands(method, photos_dir, tmp_path):
        train_baseline(load("train_baseline", BaselineConfig, arguments))
    check_runs(method, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("method", FIRST_PHASES)
def test_processes_may_have_different_numbers_of_batches(
    method: str, photos_dir: Path, tmp_path: Path
) -> None:
    """One of two processes has the only batch. The other must neither wait for it nor learn something else."""
    both = commands(method, photos_dir, tmp_path)
    runs.run_ranks("train_baseline.py", both, tmp_path / "log", 2)
    check_runs(method, tmp_path)
