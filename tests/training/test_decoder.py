"""The decoder stage: its adversary, which may wait or be absent, and the networks it loads and saves."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, SchedulerMixin
from soaking import some_now
from training_runs import files_of

from diffrestorer.config.composition import load
from diffrestorer.config.schema import DataConfig, DecoderConfig, Stage1Config
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs, collate_pairs
from diffrestorer.inference.one_step import OneStepScheduler
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.components import COMPONENTS, WEIGHTS_NAME, ModelFolderError
from diffrestorer.training.checkpoint import trained_state
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.stage1 import Stage1Task


@pytest.fixture(scope="module")
def keys(
    tiny_overrides: list[str], photos_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    folder = tmp_path_factory.mktemp("stage1")
    overrides = [*tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=32"]
    Stage1Task(load("train_stage1", Stage1Config, overrides)).save_model(
        folder / "model", torch.float32
    )
    return [*overrides, f"stage1={folder}", "discriminator_channels=8"]


def batch(photos_dir: Path, step: int) -> PairBatch:
    pairs = SynthesisedPairs(DataConfig("photos", str(photos_dir), 64, ["noise", "rain"]), 0, 2)
    return collate_pairs([pairs[step, position] for position in range(2)])


def test_the_adversary_waits_for_its_step(keys: list[str], photos_dir: Path) -> None:
    task = DecoderTask(
        load("train_decoder", DecoderConfig, [*keys, "discriminator_start=1", "lambda_adversarial=0.1"])
    )
    for step, weight in ((0, 0.0), (1, 0.1)):
        task.zero_grad()
        losses = task(batch(photos_dir, step))
        losses.total.backward()
        parts = {name: value.item() for name, value in losses.parts.items()}
        expected = (
            parts["pixel"] + weight * parts["adversarial"] + (weight > 0) * parts["discriminator"]
        )
        assert losses.total.item() == pytest.approx(expected, rel=1e-6)
        moves = any(p.grad.any() for p in task.discriminator.parameters())
        assert moves == (step == 1)


def test_without_its_weight_there_is_none(keys: list[str], photos_dir: Path) -> None:
    task = DecoderTask(load("train_decoder", DecoderConfig, [*keys, "lambda_adversarial=0"]))
    losses = task(batch(photos_dir, 0))
    assert losses.total.item() == losses.parts["pixel"].item()
    assert len(task.optimizers()) == 1
    assert not any("discriminator" in name for name in task.state_dict())


SAMPLING = {"unet", "control_encoder", "control_network"}


def tasks(keys: list[str]) -> tuple[DecoderTask, DecoderTask]:
    """A run on encoded latents and one on sampled latents, with the same decoder, which has been trained somewhat."""
    hq, sampled = (
        DecoderTask(load("train_decoder", DecoderConfig, [*keys, f"z0={z0}"]))
        for z0 in ("hq", "sampled")
    )
    with torch.no_grad():
        for parameter in sampled.restorer.decoder.parameters():
            parameter.add_(0.01)
    hq.restorer.decoder.load_state_dict(sampled.restorer.decoder.state_dict())
    return hq, sampled


def test_what_samples_latents_stays_on_the_disk_where_none_are_sampled(keys: list[str]) -> None:
    hq, sampled = tasks(keys)
    assert set(sampled.restorer.components()) - set(hq.restorer.components()) == SAMPLING
    assert not any(
        name.split(".")[1] in SAMPLING for name, _ in hq.named_parameters() if "restorer" in name
    )
    trained = [name for name, parameter in sampled.named_parameters() if parameter.requires_grad]
    assert [name for name, parameter in hq.named_parameters() if parameter.requires_grad] == trained
    assert set(trained_state(hq)) == set(trained_state(sampled)), (
        "a checkpoint of either fits the other"
    )


@pytest.mark.parametrize("dtype", some_now([torch.float16, torch.float32], 1))
def test_the_model_is_whole_all_the_same(dtype: torch.dtype, keys: list[str], tmp_path: Path) -> None:
    """Byte for byte what a run saves that holds all networks."""
    hq, sampled = tasks(keys)
    hq.save_model(tmp_path / "hq", dtype)
    sampled.save_model(tmp_path / "sampled", dtype)
    found = files_of(tmp_path / "hq")
    assert found == files_of(tmp_path / "sampled")
    assert {f"{name}/config.json" for name in COMPONENTS} < set(found)
    DiffRestorerPipeline.from_pretrained(tmp_path / "hq")


def test_networks_left_on_the_disk_are_checked_at_the_start(keys: list[str], tmp_path: Path) -> None:
    (stage1,) = [key.removeprefix("stage1=") for key in keys if key.startswith("stage1=")]
    shutil.copytree(stage1, tmp_path / "copy")
    file = tmp_path / "copy" / "model" / "unet" / WEIGHTS_NAME
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ModelFolderError, match=f"{file} is damaged or truncated"):
        DecoderTask(load("train_decoder", DecoderConfig, [*keys, f"stage1={tmp_path}/copy"]))


def stage1_with(scheduler: SchedulerMixin, keys: list[str], folder: Path) -> Path:
    """The model of `keys` with another scheduler."""
    (stage1,) = [key.removeprefix("stage1=") for key in keys if key.startswith("stage1=")]
    pipe = DiffRestorerPipeline.from_pretrained(stage1)
    pipe.scheduler = scheduler
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("scheduler", "z0"),
    some_now(
        product(
            [
                OneStepScheduler(prediction_type="sample", tau=150),
                DDIMScheduler(prediction_type="sample"),
            ],
            ["hq", "sampled"],
        ),
        2,
    ),
)
def test_the_model_s_scheduler_stays(
    scheduler: SchedulerMixin, z0: str, keys: list[str], tmp_path: Path
) -> None:
    """A new decoder of a student still restores in one step."""
    stage1 = stage1_with(scheduler, keys, tmp_path / "stage1")
    task = DecoderTask(load("train_decoder", DecoderConfig, [*keys, f"stage1={stage1}", f"z0={z0}"]))
    task.save_model(tmp_path / "model", torch.float32)
    found = DiffRestorerPipeline.from_pretrained(tmp_path / "model").scheduler
    assert type(found) is type(scheduler)
    assert {key: found.config[key] for key in scheduler.config if not key.startswith("_")} == {
        key: value for key, value in scheduler.config.items() if not key.startswith("_")
    }


def test_an_unknown_scheduler_is_refused(keys: list[str], tmp_path: Path) -> None:
    stage1 = stage1_with(OneStepScheduler(prediction_type="sample"), keys, tmp_path / "stage1")
    file = stage1 / "scheduler" / "scheduler_config.json"
    for name in ("MyScheduler", "UNet2DConditionModel", None):
        file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": name}))
        with pytest.raises(ModelFolderError, match=f"its scheduler is a {name}, which is neither"):
            DecoderTask(load("train_decoder", DecoderConfig, [*keys, f"stage1={stage1}", "z0=hq"]))
