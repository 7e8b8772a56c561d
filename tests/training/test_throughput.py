"""Operations are counted as torch counts them, recomputation apart, and counting changes nothing of a run."""

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import training_runs as runs
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffrestorer.config.composition import load
from diffrestorer.config.hardware_presets import HardwareConfig
from diffrestorer.config.schema import (
    BaselineConfig,
    DataConfig,
    DecoderConfig,
    Stage1Config,
    StudentConfig,
)
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs, collate_pairs
from diffrestorer.training.airnet_task import AirNetEncoderTask, AirNetTask
from diffrestorer.training.da_clip_task import ControllerTask
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.hardware import apply_hardware
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.student import StudentTask
from diffrestorer.training.task import Losses, Task, to_unit
from diffrestorer.training.throughput import count_operations, peak_tflops

CPU = torch.device("cpu")

AIRNET = [
    "method=airnet", "size=mini", "network={num_features: 4, num_groups: 1, num_blocks: 1, embedding_dim: 6}",
    "patch_size=32", "queue_length=16",
]  # fmt: skip

DA_CLIP = [
    "method=da_clip", "size=mini", "network={image_encoder: {vision_cfg: {image_size: 32}, embed_dim: 12}, "
    "features: 8, multipliers: [1, 2], attention_level: 1, num_steps: 4}", "clip=none",
]  # fmt: skip

STUDENT = ["lora_rank=2", "lambda_adversarial=0.5", "discriminator_channels=8"]


@pytest.fixture(scope="module")
def batch(photos_dir: Path) -> PairBatch:
    pairs = SynthesisedPairs(DataConfig("photos", str(photos_dir), 64, ["noise", "rain"]), 0, 2)
    return collate_pairs([pairs[0, position] for position in range(2)])


@pytest.fixture(scope="module")
def tasks(
    tiny_overrides: list[str], photos_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Task]:
    """Tasks by name. Shared: change a copy."""
    folder = tmp_path_factory.mktemp("stage1")
    data = ["data=photos", f"data.root={photos_dir}", "data.size=64"]
    keys = [*tiny_overrides, *data, "hardware=cpu"]
    torch.manual_seed(0)
    stage1 = Stage1Task(load("train_stage1", Stage1Config, keys))
    stage1.save_model(folder / "model", torch.float32)
    decoder = load(
        "train_decoder", DecoderConfig, [*keys, f"stage1={folder}", "lambda_adversarial=0.5"]
    )
    student = load("train_student", StudentConfig, [*keys, f"teacher={folder}", *STUDENT])

    def baseline(arguments: list[str]) -> BaselineConfig:
        more = [*data, "train.global_batch_size=2", "pretraining.max_steps=0"]
        return load("train_baseline", BaselineConfig, [*arguments, *more])

    return {
        "stage1": stage1,
        "decoder": DecoderTask(decoder),
        "student": StudentTask(student),
        "airnet's encoder": AirNetEncoderTask(baseline(AIRNET)),
        "airnet": AirNetTask(baseline(AIRNET)),
        "da_clip's controller": ControllerTask(baseline(DA_CLIP)),
    }


def torchs_count(task: Task, batch: PairBatch) -> int:
    """Every operation that runs, recomputation included."""
    with FlopCounterMode(display=False) as counter:
        task(batch).total.backward()
    return counter.get_total_flops()


class TwoLayers(Task):
    """A frozen convolution of 3x3 and one of 1x1 that trains, from 3 channels to 8 and to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(3, 8, 3, padding=1).requires_grad_(False)
        self.trained = nn.Conv2d(8, 5, 1)

    def forward(self, batch: PairBatch) -> Losses:
        """Return the mean of the second layer."""
        return Losses(self.trained(self.frozen(to_unit(batch.lq))).mean(), {})

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return none."""
        return []

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """Save nothing."""

    def sample(self, batch: PairBatch) -> list[Tensor]:
        """Return nothing."""
        return []


def test_the_count_has_a_closed_form(batch: PairBatch) -> None:
    """A multiplication and an addition per weight and pixel; twice for the layer whose weights want a gradient."""
    pixels = 2 * 64 * 64
    frozen, trained = 2 * pixels * 3 * 8 * 9, 2 * pixels * 8 * 5
    assert count_operations(TwoLayers(), batch) == frozen + 2 * trained


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stage1", "decoder", pytest.param("student", marks=pytest.mark.soak)])
def test_recomputation_is_not_counted(name: str, tasks: dict[str, Task], batch: PairBatch) -> None:
    kept, recomputed = copy.deepcopy(tasks[name]), copy.deepcopy(tasks[name])
    apply_hardware(kept, HardwareConfig(), CPU)
    apply_hardware(recomputed, HardwareConfig(checkpointing="blocks"), CPU)
    expected = torchs_count(kept, batch)
    assert count_operations(recomputed, batch) == expected
    assert torchs_count(recomputed, batch) > expected


def state_of(task: Task) -> dict[str, Any]:
    """Everything that a pass could change: tensors, gradients, generators."""
    tensors = {
        name: tensor.clone() for name, tensor in (*task.named_parameters(), *task.named_buffers())
    }
    gradients = {name: parameter.grad for name, parameter in task.named_parameters()}
    return {**tensors, "generator": torch.get_rng_state(), "gradients": gradients}


def assert_unchanged(task: Task, before: dict[str, Any]) -> None:
    after = state_of(task)
    assert after.keys() == before.keys()
    assert after.pop("gradients") == {name: None for name, _ in task.named_parameters()}
    changed = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    assert not changed


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["stage1", "decoder", "student", "airnet's encoder", "airnet", "da_clip's controller"]
)
def test_a_task_is_as_before(name: str, tasks: dict[str, Task], batch: PairBatch) -> None:
    task = copy.deepcopy(tasks[name])
    before = state_of(task)
    assert count_operations(task, batch) > 0
    assert_unchanged(task, before)
    if name.startswith("airnet"):
        task(batch)
        with pytest.raises(AssertionError):
            assert_unchanged(task, before)


def test_it_is_as_before_where_counting_fails(tasks: dict[str, Task], batch: PairBatch) -> None:
    """The queue has moved on by then, and a number was drawn."""

    def fail(*_: Any) -> None:
        torch.rand(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    task = copy.deepcopy(tasks["airnet"])
    task.register_forward_hook(fail)
    before = state_of(task)
    with pytest.raises(torch.OutOfMemoryError):
        count_operations(task, batch)
    assert_unchanged(task, before)


def learned(run: Path) -> dict[str, bytes]:
    """Losses, model, and tensors of the checkpoints, among them statistics and queues."""
    files = {"losses.csv": (run / "losses.csv").read_bytes(), **runs.files_of(run / "model")}
    for path in run.glob("checkpoints/*/*.safetensors"):
        files[str(path.relative_to(run))] = path.read_bytes()
    return files


Train = Callable[[str, list[str], Path], None]


def on_processes(count: int) -> Train:
    """A run of a script that logs every step and shares its batch of four among processes."""

    def train(script: str, arguments: list[str], output: Path) -> None:
        common = ["train.global_batch_size=4", "train.num_workers=0", "train.log_every=1"]
        command = [*arguments, *common, "train.max_steps=3", f"output_dir={output}"]
        if script.startswith("counted "):
            script, command = "../tests/counting_runs.py", [script.removeprefix("counted "), *command]
        if count > 1:
            runs.run_ranks(script, [command], output.parent / "log", count)
        else:
            runs.run(script, command, output.parent / "log")

    return train


def assert_counting_changes_nothing(train: Train, script: str, command: list[str], folder: Path) -> str:
    """Train without and with counting; return the log of the second run."""
    train(script, command, folder / "plain")
    train(f"counted {script}", command, folder / "counted")
    assert learned(folder / "counted") == learned(folder / "plain")
    assert "TFLOP" not in (folder / "plain" / "train.log").read_text()
    return (folder / "counted" / "train.log").read_text()


def assert_logged(log: str, processes: int) -> None:
    """Check every line of progress against the count, at the 0.1 TFLOP/s of `counting_runs.py`."""
    (per_sample,) = re.findall(r"(\S+) TFLOP per sample; peak of cpu in tf32: 0.1 TFLOP/s", log)
    speed = r"([\d.]+) samples/s  (\S+) TFLOP/s per GPU \((\S+)% of its peak\)"
    lines = re.findall(speed, log)
    assert len(lines) == 3, log
    for rate, tflops, percent in lines:
        expected = float(rate) * float(per_sample) / processes
        assert float(tflops) == pytest.approx(expected, rel=0.03)
        assert float(percent) == pytest.approx(100 * expected / 0.1, rel=0.03, abs=0.06)


@pytest.mark.soak
def test_the_stages_learn_the_same_while_they_are_counted(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    data = [*tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=64"]
    stages = {
        "stage1": ["train.hardware.checkpointing=blocks", "train.micro_batch_size=2"],
        "decoder": [f"stage1={tmp_path}/stage1/plain", "lambda_adversarial=0.1"],
        "student": [f"teacher={tmp_path}/decoder/plain", *STUDENT],
    }
    for stage, keys in stages.items():
        folder = tmp_path / stage
        folder.mkdir()
        command = [*data, *keys]
        log = assert_counting_changes_nothing(on_processes(1), f"train_{stage}.py", command, folder)
        assert_logged(log, 1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_airnet_learns_the_same_and_two_processes_do_not_wait_for_each_other(
    processes: int, photos_dir: Path, tmp_path: Path
) -> None:
    """One process counts. AirNet gathers keys from all of them, which ends its count and not the run."""
    command = [
        *AIRNET,
        "data=photos",
        f"data.root={photos_dir}",
        "data.size=64",
        "pretraining.max_steps=3",
    ]
    train = on_processes(processes)
    log = assert_counting_changes_nothing(train, "train_baseline.py", command, tmp_path)
    pretraining = [tmp_path / run / "pretraining" for run in ("plain", "counted")]
    assert learned(pretraining[1]) == learned(pretraining[0])
    if processes == 1:
        assert_logged(log, 1)
    else:
        assert "TFLOP/s are not counted: the forward pass exchanges tensors between processes" in log


@pytest.mark.soak
def test_two_processes_share_the_operations(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    command = [*tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=64"]
    log = assert_counting_changes_nothing(on_processes(2), "train_stage1.py", command, tmp_path)
    assert_logged(log, 2)


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA H100 80GB HBM3", "tf32", 494),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA H200 NVL", "bf16", 835),
        ("NVIDIA L4", "fp32", 30.3),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bf16", None),
        ("Tesla T4", "tf32", 8.1),
        ("Tesla V100-SXM2-32GB", "fp32", 15.7),
    ],
)
def test_peaks_are_those_of_the_card(name: str, precision: str, peak: float | None) -> None:
    assert peak_tflops(name, precision) == peak
