"""Trackers get configuration, learning rate, means of the losses and sheets; their files stay in output_dir."""

import json
import statistics
import time
from pathlib import Path

import pytest
import training_runs as runs
from tiny_runs import arguments as tiny_arguments
from tiny_runs import train_stage1

from diffrestorer.training.kept_files import read_sealed
from diffrestorer.training.trackers import check_tracker


@pytest.fixture
def arguments(tiny_overrides: list[str], photos_dir: Path) -> list[str]:
    every_four = ["train.log_every=4", "train.sample_every=4", "train.checkpoint_every=4"]
    return tiny_arguments(tiny_overrides, photos_dir, *every_four, "train.warmup_steps=8")


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


@pytest.mark.slow
def test_tensorboard_gets_all_of_it(arguments: list[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    train_stage1([*arguments, "train.tracker=tensorboard"], output)
    events = EventAccumulator(str(output / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    totals = [row["total"] for row in runs.losses(output)]
    found = {event.step: event.value for event in events.Scalars("total")}
    assert found == {
        4: pytest.approx(statistics.mean(totals[:4]), rel=1e-5),
        8: pytest.approx(statistics.mean(totals[4:]), rel=1e-5),
    }
    rates = {event.step: event.value for event in events.Scalars("lr")}
    assert rates == {4: pytest.approx(0.5e-5), 8: pytest.approx(1e-5)}
    assert [event.step for event in events.Images("samples")] == [4, 8]
    (text,) = events.Tensors("config/text_summary")
    assert b"warmup_steps: 8" in text.tensor_proto.string_val[0]


@pytest.mark.slow
def test_wandb_gets_all_of_it_and_a_resumed_run_goes_on(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline: the files of both starts, in output_dir, are of one run."""
    without_keys(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "run"
    offline = ["train.tracker=wandb", "train.wandb_mode=offline"]
    train_stage1([*arguments, *offline, "train.max_steps=4"], output)
    train_stage1([*arguments, *offline], output)
    assert not (tmp_path / "wandb").exists()
    files = sorted((output / "wandb").glob("offline-run-*/run-*.wandb"))
    wandb_id = read_sealed(output / "tracker.json")["wandb_id"]
    assert [path.stem for path in files] == [f"run-{wandb_id}"] * 2

    # wandb's own process writes the file, and may still be at it.
    names = (b"warmup_steps", b"samples", b"total", b"lr", b"media/images")
    deadline = time.monotonic() + 1800
    while not all(name in files[1].read_bytes() for name in names):
        assert time.monotonic() < deadline, files[1].read_bytes()
        time.sleep(0.1)
    assert list((output / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))
    assert json.loads((output / "environment.json").read_text())["num_processes"] == 1
