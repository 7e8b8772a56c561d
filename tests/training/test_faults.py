"""What a run does about the world: stop signals, a full disk, other data, little memory, any division of its batch."""

import csv
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_runs as runs
from torch import nn

from diffrestorer.config.hardware_presets import HardwareConfig
from diffrestorer.config.schema import TrainConfig
from diffrestorer.training.checkpoint import list_checkpoints, save_checkpoint, take_snapshot
from diffrestorer.training.resuming import load_newest
from diffrestorer.training.schedule import choose_micro_batch
from diffrestorer.training.step_memory import count_memory, count_saved_bytes, explain_out_of_memory

STEPS = 10


@pytest.fixture(scope="module")
def arguments(tiny_overrides: list[str], photos_dir: Path) -> list[str]:
    return [
        *tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=64", f"train.max_steps={STEPS}",
        "train.global_batch_size=4", "train.num_workers=0", "train.log_every=1", "train.checkpoint_every=4",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    runs.run("train_stage1.py", [*arguments, f"output_dir={output}"], output / "log")
    return output


def started(output: Path) -> bool:
    return (output / "losses.csv").exists() and len(runs.losses(output)) > 1


@pytest.mark.slow
def test_a_log_line_says_how_it_goes(uninterrupted: Path) -> None:
    text = (uninterrupted / "train.log").read_text()
    expected = re.search(r"memory expected for micro batches of 4: weights .* = ([\d.]+) GiB", text)
    measured = re.search(r"measured peak memory: ([\d.]+) GiB", text)
    assert expected
    assert measured
    assert 0 < float(expected[1]) < float(measured[1]) < 8
    heartbeat = r"step 3/10  total [\d.]+ .* [\d.]+ samples/s  0:\d\d:\d\d left  [\d.]+ GiB peak  [\d.]+% of the time"
    assert re.search(heartbeat, text)


@pytest.mark.slow
def test_micro_batches_average_and_validation_change_no_loss(
    arguments: list[str], uninterrupted: Path, photos_dir: Path, tmp_path: Path
) -> None:
    options = [
        "train.micro_batch_size=1", "train.ema_decay=0.9", "train.validate_every=5", "train.validation_images=3",
        f"data.validation_root={photos_dir}",
    ]  # fmt: skip
    output = tmp_path / "run"
    runs.run("train_stage1.py", [*arguments, *options, f"output_dir={output}"], tmp_path / "log")

    assert len(runs.losses(output)) == STEPS
    for divided, whole in zip(runs.losses(output), runs.losses(uninterrupted), strict=True):
        assert divided == pytest.approx(whole, rel=1e-5)
    with (output / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["5", "10"]
    assert all(3 < float(row["psnr"]) < 40 and float(row["diff"]) > 0 for row in rows)
    assert {path.name for path in (output / "validation").iterdir()} == {"step_5.png", "step_10.png"}
    weights = "control_encoder/diffusion_pytorch_model.safetensors"
    assert (
        runs.files_of(output / "model")[weights] != runs.files_of(uninterrupted / "model")[weights]
    ), "the average"


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.soak)])
def test_a_run_stops_when_asked_and_goes_on(
    sent: signal.Signals, arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "run", tmp_path / "log"
    command = [*arguments, f"output_dir={output}", "train.checkpoint_every=1000", "train.num_workers=1"]
    process = runs.start("train_stage1.py", command, log)
    runs.signal_when(process, output, started, sent, workers=True)
    assert process.exitcode == 75, log.read_text()
    assert f"({sent.name}): the same command goes on from there" in log.read_text()
    (checkpoint,) = list_checkpoints(output / "checkpoints")
    assert checkpoint.name == f"step_{len(runs.losses(output))}"
    assert not (output / "model").exists()

    runs.run("train_stage1.py", command, log)
    assert runs.files_of(output / "model") == runs.files_of(uninterrupted / "model")
    assert runs.losses(output) == runs.losses(uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "what"),
    [
        pytest.param(20_000, r"run could not be", marks=pytest.mark.soak),
        (400_000, r"step_10 could not be"),
    ],
)
def test_a_full_disk_stops_the_run_and_loses_nothing(
    limit: int, what: str, arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    """While the sheet of samples is written, and while the weights of a checkpoint are."""
    output, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(uninterrupted, output)
    for done in (output / "model", output / "samples", output / "checkpoints" / f"step_{STEPS}"):
        shutil.rmtree(done)
    before = runs.files_of(output / "checkpoints")
    command = [*arguments, f"output_dir={output}"]
    process = runs.start("train_stage1.py", command, log, file_limit=limit)
    process.join(1800)
    assert process.exitcode == 2, log.read_text()
    assert re.search(
        what + r" written \(.*File too large.*\); what was saved before is intact", log.read_text()
    )
    assert "Traceback" not in log.read_text()
    assert runs.files_of(output / "checkpoints") == before
    assert not [path for path in output.rglob(".*") if path.is_file()], "nothing half written is left"

    runs.run("train_stage1.py", command, log)
    assert runs.files_of(output / "model") == runs.files_of(uninterrupted / "model")


@pytest.mark.slow
def test_other_data_are_refused_unless_meant(
    arguments: list[str], uninterrupted: Path, photos_dir: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(photos_dir, tmp_path / "photos")
    shutil.copytree(uninterrupted, output)
    command = [*arguments, f"output_dir={output}", f"data.root={tmp_path}/photos"]
    runs.run("train_stage1.py", command, log)  # the same photos elsewhere are the same data
    (tmp_path / "photos" / "rocket.png").unlink()
    process = runs.start("train_stage1.py", command, log)
    process.join(1800)
    assert process.exitcode == 2
    assert "the training data are not those" in log.read_text()
    assert "train.allow_changed_data=true" in log.read_text()
    runs.run("train_stage1.py", [*command, "train.allow_changed_data=true"], log)
    assert "the training data changed since this run began" in log.read_text()


def test_memory_is_counted() -> None:
    linear = nn.Sequential(nn.Linear(8, 16, bias=False), nn.GELU(), nn.Linear(16, 4, bias=False))
    linear[0].requires_grad_(False)
    with count_saved_bytes(linear) as saved:
        linear(torch.randn(3, 8)).square().sum()
    # The frozen layer keeps nothing of its input. GELU keeps its input only if that needs a gradient: it does not.
    assert saved.total == 4 * (3 * 16 + 3 * 4)
    counted = count_memory(linear, averages=True, activations=saved.total)
    trained = 4 * 16 * 4
    assert (counted.weights, counted.gradients, counted.optimizer, counted.average) == (
        4 * 8 * 16 + trained, trained, 2 * trained, trained,
    )  # fmt: skip
    assert counted.total == sum(vars(counted).values())
    sharded = count_memory(linear, averages=True, activations=saved.total, shards=4)
    assert sharded == replace(counted, optimizer=2 * trained // 4)


@pytest.mark.parametrize(
    ("hardware", "micro_batch_size", "advice"),
    [
        (
            HardwareConfig("gpu80"),
            8,
            "take hardware=gpu40 or train.hardware.shard_optimizer=true or train.micro_batch_size=4 (now 8)",
        ),
        (HardwareConfig("gpu40", shard_optimizer=True), 1, "take hardware=gpu24"),
        (
            HardwareConfig("cpu", shard_optimizer=True),
            1,
            "take train.hardware.checkpointing=blocks",
        ),
        (
            HardwareConfig("gpu24", checkpointing="blocks", shard_optimizer=True),
            9,
            "take train.micro_batch_size=3 (now 9)",
        ),
        (
            HardwareConfig("gpu24", checkpointing="blocks", shard_optimizer=True),
            1,
            "take more processes (now 2), a smaller data.size",
        ),
    ],
)
def test_missing_memory_names_the_way_out(
    hardware: HardwareConfig, micro_batch_size: int, advice: str
) -> None:
    with (
        pytest.raises(ValueError, match=re.escape(advice)),
        explain_out_of_memory(hardware, micro_batch_size, 2),
    ):
        torch.empty(2**62, dtype=torch.uint8)


def test_other_failures_stay_what_they_are() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        explain_out_of_memory(HardwareConfig(), 1, 1),
    ):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_preset_s_micro_batch_divides_the_share() -> None:
    settings = TrainConfig(global_batch_size=12, hardware=HardwareConfig(max_micro_batch=4))
    assert [choose_micro_batch(settings, processes) for processes in (1, 2, 4, 6)] == [4, 3, 3, 2]
    assert choose_micro_batch(TrainConfig(global_batch_size=12), 1) is None
    assert choose_micro_batch(TrainConfig(micro_batch_size=5), 1) == 5, (
        "refused later, where it does not divide"
    )


def test_an_average_is_in_the_checkpoint_and_goes_on(tmp_path: Path) -> None:
    import logging

    from diffrestorer.training.averaging import WeightAverage

    def new() -> tuple[nn.Module, WeightAverage]:
        torch.manual_seed(0)
        module = nn.Linear(2, 2)
        module.bias.requires_grad_(False)
        return module, WeightAverage(module, 0.5)

    def change(module: nn.Module, average: WeightAverage, steps: range) -> None:
        for step in steps:
            with torch.no_grad():
                module.weight.fill_(float(step))
            average.update()

    module, average = new()
    change(module, average, range(3))
    save_checkpoint(tmp_path, take_snapshot(3, module, [], average), keep=1)
    other, other_average = new()
    assert load_newest(tmp_path, other, [], logging.getLogger("test"), other_average) == 3
    change(module, average, range(3, 5))
    change(other, other_average, range(3, 5))
    assert torch.equal(average.state()["weight"], other_average.state()["weight"])
    assert set(average.state()) == {"weight"}
    # Decays of updates 1 to 5: 0, 2/11, 3/12, 4/13, 5/14, all below 0.5.
    expected = 0.0
    for step, decay in enumerate((0, 2 / 11, 3 / 12, 4 / 13, 5 / 14)):
        expected = decay * expected + (1 - decay) * step
    assert average.state()["weight"][0, 0].item() == pytest.approx(expected)
    with average.in_place():
        assert module.weight[0, 0].item() == pytest.approx(expected)
    assert module.weight[0, 0].item() == 4.0
    with pytest.raises(ValueError, match=r"train\.ema_decay=1\.0 must lie between 0 and 1"):
        WeightAverage(module, 1.0)
