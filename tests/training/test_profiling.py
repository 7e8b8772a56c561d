"""`train.profile` records one step, and changes nothing."""

import json
from pathlib import Path

import pytest
import training_runs as runs


@pytest.mark.soak
def test_the_step_is_recorded_with_its_micro_batches(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    command = [
        *tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=64", "train.max_steps=4",
        "train.global_batch_size=4", "train.micro_batch_size=2", "train.num_workers=0",
    ]  # fmt: skip
    plain, profiled, log = tmp_path / "plain", tmp_path / "profiled", tmp_path / "log"
    runs.run("train_stage1.py", [*command, f"output_dir={plain}"], log)
    runs.run("train_stage1.py", [*command, f"output_dir={profiled}", "train.profile=2"], log)

    assert sorted(path.name for path in (profiled / "profile").iterdir()) == [
        "step_2.json",
        "step_2.txt",
    ]
    events = json.loads((profiled / "profile" / "step_2.json").read_text())["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert sum("Optimizer.step" in name for name in names) == 1, "one step"
    assert names.count("autograd::engine::evaluate_function: MseLossBackward0") % 2 == 0, (
        "two micro batches"
    )
    assert "aten::convolution" in (profiled / "profile" / "step_2.txt").read_text()
    assert runs.losses(profiled) == runs.losses(plain)
    assert not (plain / "profile").exists()
