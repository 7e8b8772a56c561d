"""A folder that prepare_data.py made is all that training needs."""

from pathlib import Path

import pytest
import training_runs as runs
from miniatures import make, photos


@pytest.mark.slow
def test_stage_1_trains_from_a_prepared_folder(tiny_overrides: list[str], tmp_path: Path) -> None:
    make("photos", photos(tmp_path / "photos", 1, 2, 3), tmp_path / "pairs", size=64, budget=None)
    arguments = [
        *tiny_overrides, "data=manifest", f"data.root={tmp_path / 'pairs'}", "data.size=64", "train.max_steps=3",
        "train.global_batch_size=2", "train.num_workers=0", "data.degradations=[noise,blur]",
        f"output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    runs.run("train_stage1.py", arguments, tmp_path / "log")
    assert len(runs.losses(tmp_path / "run")) == 3
    assert (tmp_path / "run" / "model" / "model_index.json").exists()
