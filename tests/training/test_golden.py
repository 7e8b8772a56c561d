"""The golden losses: 20 steps of every stage, recorded. A refactor leaves them untouched.

Across machines they agree to 1e-3; on one machine two runs agree bit for bit. After a change that moves them on
purpose: `pytest tests/training/test_golden.py --record-golden` records them anew, and the commit says why.
"""

import json
from pathlib import Path

import pytest
import training_runs as runs

GOLDEN = Path(__file__).with_name("golden.json")
STAGES = ("base/vae", "base/unet", "stage1", "decoder", "student")


def train_all_stages(folder: Path, overrides: list[str], photos: Path) -> dict[str, list[float]]:
    """Trains every stage of a tiny model for 20 steps, each from the one before; the total losses by stage."""
    common = [
        *overrides, f"data.root={photos}", "data.size=64", "train.max_steps=20", "train.global_batch_size=4",
        "train.num_workers=0", "train.log_every=20", "train.lr=1e-3",
    ]  # fmt: skip
    pairs = [*common, "data=photos"]
    log = folder / "log"
    runs.run("train_base.py", [*common, f"output_dir={folder}/base"], log)
    runs.run("train_stage1.py", [*pairs, f"base={folder}/base", f"output_dir={folder}/stage1"], log)
    runs.run(
        "train_decoder.py",
        [*pairs, f"stage1={folder}/stage1", "z0=sampled", f"output_dir={folder}/decoder"],
        log,
    )
    student = [
        "lambda_adversarial=0.1",
        "discriminator_channels=8",
        "lambda_distillation=1",
        "distillation_steps=2",
        "pixel_loss=psnr",
        "lambda_latent=0.1",
        "lambda_perceptual=0.1",
        "lambda_degradation=0",
    ]
    runs.run(
        "train_student.py",
        [*pairs, f"teacher={folder}/decoder", *student, f"output_dir={folder}/student"],
        log,
    )
    return {stage: [row["total"] for row in runs.losses(folder / stage)] for stage in STAGES}


@pytest.mark.slow
def test_losses_are_the_golden_ones(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = train_all_stages(tmp_path, tiny_overrides, photos_dir)
    if request.config.getoption("--record-golden"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    for stage, golden in json.loads(GOLDEN.read_text()).items():
        assert found[stage] == pytest.approx(golden, rel=1e-3), stage


@pytest.mark.soak
def test_two_runs_agree_bit_for_bit(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    first, second = (train_all_stages(folder, tiny_overrides, photos_dir) for folder in folders)
    assert first == second
