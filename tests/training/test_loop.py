"""The loop's own parts: learning rates by step, and a loss that is not finite."""

from pathlib import Path

import pytest
import training_runs as runs

from diffrestorer.config.schema import TrainConfig
from diffrestorer.training.schedule import learning_rate_factor


def test_learning_rate_by_step() -> None:
    constant = TrainConfig(max_steps=100, warmup_steps=10)
    assert [learning_rate_factor(step, constant) for step in (0, 4, 9, 10, 99)] == [
        0.1,
        0.5,
        1.0,
        1.0,
        1.0,
    ]
    cosine = TrainConfig(max_steps=110, warmup_steps=10, lr_schedule="cosine")
    assert [learning_rate_factor(step, cosine) for step in (9, 10, 60)] == pytest.approx(
        [1.0, 1.0, 0.5]
    )
    assert learning_rate_factor(110, cosine) == pytest.approx(0.0)
    held = TrainConfig(max_steps=100, lr_schedule="cosine", lr_hold=0.5)
    assert [learning_rate_factor(step, held) for step in (0, 49, 75, 100)] == pytest.approx(
        [1.0, 1.0, 0.5, 0.0]
    )
    steps = TrainConfig(max_steps=100, lr_schedule="steps", lr_milestones={0.6: 0.25, 0.4: 0.5})
    assert [learning_rate_factor(step, steps) for step in (0, 39, 40, 59, 60, 99)] == [
        1.0,
        1.0,
        0.5,
        0.5,
        0.25,
        0.25,
    ]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_its_batch(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    arguments = [
        *tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=64", "train.max_steps=6", "train.lr=1e30",
        "train.global_batch_size=2", "train.num_workers=0", "train.log_every=6", f"output_dir={tmp_path}/run",
    ]  # fmt: skip
    process = runs.start("train_stage1.py", arguments, tmp_path / "log")
    process.join(1800)
    text = (tmp_path / "log").read_text()
    assert process.exitcode not in (0, None)
    assert "loss is not finite at step" in text
    assert ".png (" in text
    assert "Traceback" not in text
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.soak
def test_the_parts_of_the_base_follow_one_another_on_two_processes(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    arguments = [
        *tiny_overrides, f"data.root={photos_dir}", "data.size=64", "train.max_steps=2", "train.global_batch_size=4",
        "train.num_workers=0", f"output_dir={tmp_path}",
    ]  # fmt: skip
    runs.run_ranks("train_base.py", [arguments], tmp_path / "log", num_processes=2)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "image_encoder",
        "unet",
        "vae",
    ]
    assert all(len(runs.losses(tmp_path / part)) == 2 for part in ("vae", "unet"))
