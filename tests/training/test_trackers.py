"""Trackers get configuration, learning rate, means of the losses and sheets; their files stay in output_dir."""

import csv
import json
import re
import statistics
import time
from pathlib import Path

import pytest
import training_runs as runs
import wandb_files
from tiny_runs import arguments as tiny_arguments
from tiny_runs import train_stage1
from training_runs import ROOT

from diffrestorer.training import throughput
from diffrestorer.training.kept_files import read_sealed
from diffrestorer.training.trackers import check_tracker


@pytest.fixture
def arguments(tiny_overrides: list[str], photos_dir: Path) -> list[str]:
    every_four = ["train.log_every=4", "train.sample_every=4", "train.checkpoint_every=4"]
    return tiny_arguments(tiny_overrides, photos_dir, *every_four, "train.warmup_steps=8")


@pytest.fixture(autouse=True)
def counts_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count as on a GPU whose peak is known."""
    monkeypatch.setattr(throughput, "COUNTED_ON", ("cpu",))
    monkeypatch.setitem(throughput.PEAKS, "cpu", (0.1, 0.1, 0.1))


def without_keys(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))


def test_without_a_key_one_sentence_before_anything_loads(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_keys(monkeypatch, tmp_path)
    with pytest.raises(
        ValueError, match=r"has no key .*WANDB_API_KEY.*train\.wandb_mode=offline"
    ) as caught:
        train_stage1([*arguments, "train.tracker=wandb"], tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_key_is_found_where_wandb_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_keys(monkeypatch, tmp_path)
    check_tracker("wandb", "offline")
    check_tracker("tensorboard", None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_tracker("wandb", None)
    monkeypatch.delenv("WANDB_MODE")
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine example.org login user password secret\n")
    netrc.chmod(0o600)
    with pytest.raises(ValueError, match="has no key"):
        check_tracker("wandb", "online")
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    check_tracker("wandb", "online")
    netrc.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    check_tracker("wandb", "online")


def documented() -> set[str]:
    """The keys of the table in docs/training.md, of a run of stage 1 with one group of parameters."""
    page = (ROOT / "docs" / "training.md").read_text()
    table = page[page.index("| key | value | at |") :].split("\n\n")[0]
    keys = {key for line in table.splitlines()[2:] for key in re.findall("`(.*?)`", line.split("|")[1])}

    # Keys of a stage's losses are listed as examples.
    losses = {"diff", "deg", "rec"}
    assert keys >= {"lr_1", "pixel", "perceptual", "validation/lpips", *losses}
    keys -= {"lr_1", "pixel", "perceptual", "validation/lpips", "validation/LOSS"}
    return keys | {f"validation/{name}" for name in losses}


def with_validation(arguments: list[str], photos: Path) -> list[str]:
    keys = ["train.validate_every=4", "train.validation_images=1", f"data.validation_root={photos}"]
    return [*arguments, *keys]


@pytest.mark.slow
def test_tensorboard_gets_all_of_it(arguments: list[str], photos_dir: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    command = [*with_validation(arguments, photos_dir), "train.tracker=tensorboard"]
    train_stage1(command, output)
    events = EventAccumulator(str(output / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {*tags["scalars"], *tags["images"], "config"} == documented()

    totals = [row["total"] for row in runs.losses(output)]
    found = {event.step: event.value for event in events.Scalars("total")}
    assert found == {
        4: pytest.approx(statistics.mean(totals[:4]), rel=1e-5),
        8: pytest.approx(statistics.mean(totals[4:]), rel=1e-5),
    }
    rates = {event.step: event.value for event in events.Scalars("lr")}
    assert rates == {4: pytest.approx(0.5e-5), 8: pytest.approx(1e-5)}
    for name in ("samples", "validation"):
        assert [event.step for event in events.Images(name)] == [4, 8]
    (text,) = events.Tensors("config/text_summary")
    assert b"warmup_steps: 8" in text.tensor_proto.string_val[0]

    # The log line has the same speed and memory, and validation.csv the same score.
    line = re.search(
        r"step 8/8 .* (\S+) samples/s  (\S+) TFLOP/s per GPU \((\S+)% of its peak\) .* (\S+) GiB peak",
        (output / "train.log").read_text(),
    )
    assert line
    names = ("samples_per_second", "tflops_per_gpu", "mfu_percent", "peak_memory_gib")
    last = [events.Scalars(name)[-1].value for name in names]
    logged = [float(group) for group in line.groups()]
    assert last == [
        pytest.approx(logged[0], abs=0.006),
        pytest.approx(logged[1], rel=0.01),
        pytest.approx(logged[2], abs=0.06),
        pytest.approx(logged[3], abs=0.006),
    ]
    with (output / "validation.csv").open(newline="") as file:
        scores = [float(row["psnr"]) for row in csv.DictReader(file)]
    assert [event.value for event in events.Scalars("validation/psnr")] == pytest.approx(scores)


@pytest.mark.soak
def test_wandb_gets_all_of_it_and_a_resumed_run_goes_on(
    arguments: list[str], photos_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline: the files of both starts, in output_dir, are of one run."""
    without_keys(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "run"
    command = [
        *with_validation(arguments, photos_dir), "train.tracker=wandb", "train.wandb_mode=offline",
    ]  # fmt: skip
    train_stage1([*command, "train.max_steps=4"], output)
    train_stage1(command, output)
    assert not (tmp_path / "wandb").exists()
    files = sorted((output / "wandb").glob("offline-run-*/run-*.wandb"))
    wandb_id = read_sealed(output / "tracker.json")["wandb_id"]
    assert [path.stem for path in files] == [f"run-{wandb_id}"] * 2

    # wandb's own process writes the file, and may still be at it.
    deadline = time.monotonic() + 1800
    while not all(wandb_files.is_complete(path) for path in files):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for path, step in zip(files, (4, 8), strict=True):
        rows = wandb_files.history(path)
        assert {key for row in rows for key in row} == documented() - {"config"} | {"step"}
        assert {row["step"] for row in rows} == {step}
        config = wandb_files.config(path)
        assert config["train"]["max_steps"] == step
        assert config["train"]["warmup_steps"] == 8
    assert list((output / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))
    assert json.loads((output / "environment.json").read_text())["num_processes"] == 1
