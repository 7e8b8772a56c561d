"""`train.scale`: as many samples as the paper's run, in fewer and larger steps."""

from pathlib import Path

import pytest

from diffrestorer.config.composition import load
from diffrestorer.config.scale import SCALES
from diffrestorer.config.schema import (
    BaselineConfig,
    DecoderConfig,
    RunConfig,
    Stage1Config,
    StudentConfig,
)
from diffrestorer.data.pairs import StepBatches

PAPER = {"train_stage1": (Stage1Config, 16), "train_decoder": (DecoderConfig, 4)}
"""Stage -> its config and the paper's batch."""


@pytest.mark.parametrize("root", PAPER)
@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_sees_as_many_samples(scale: str, root: str) -> None:
    schema, batch = PAPER[root]
    train = load(root, schema, [f"train.scale={scale}"]).train
    assert train.global_batch_size * train.max_steps == batch * 500_000
    assert train.lr == pytest.approx(1e-5 * (train.global_batch_size / batch) ** 0.5)
    assert train.warmup_steps < train.max_steps / 10


def test_the_paper_s_scale_is_the_default() -> None:
    for root, (schema, batch) in PAPER.items():
        train = load(root, schema, []).train
        assert (train.scale, train.global_batch_size, train.lr) == ("paper", batch, 1e-5)
        assert (train.max_steps, train.warmup_steps, train.ema_decay) == (500_000, 0, None)


def test_what_is_given_wins() -> None:
    words = ["train.scale=64gpu", "train.lr=3e-5", "train.max_steps=20", "train.ema_decay=null"]
    train = load("train_stage1", Stage1Config, words).train
    assert (train.global_batch_size, train.lr, train.max_steps, train.ema_decay) == (
        512,
        3e-5,
        20,
        None,
    )


@pytest.mark.parametrize(
    ("root", "schema", "words"),
    [
        ("train_student", StudentConfig, []),
        ("train_student", StudentConfig, ["model=mini"]),
        ("train_baseline", BaselineConfig, []),
    ],
)
def test_a_stage_without_a_rule_refuses_it(
    root: str, schema: type[RunConfig], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"train\.scale=8gpu changes nothing here: it is for stage 1"):
        load(root, schema, [*words, "train.scale=8gpu", f"output_dir={tmp_path}"])


def test_a_batch_too_small_for_the_processes_names_the_scales() -> None:
    with pytest.raises(ValueError, match=r"train\.scale=8gpu \(128 samples in stage 1\) or 64gpu"):
        StepBatches(0, 1, 16, 0, 64)
    batch = load("train_stage1", Stage1Config, ["train.scale=64gpu"]).train.global_batch_size
    assert len(list(StepBatches(0, 1, batch, 63, 64))) == 1
