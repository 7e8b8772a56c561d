"""A sweep of a training script, in a process of its own: one model per job."""

from pathlib import Path

import pytest
import training_runs as runs


@pytest.mark.soak
def test_a_sweep_trains_a_model_per_job_and_goes_on(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    arguments = [
        "-m", *tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=64", "train.max_steps=2",
        "train.global_batch_size=2", "train.num_workers=0", f"output_dir={tmp_path / 'a sweep'}",
    ]  # fmt: skip
    log = tmp_path / "log"
    runs.run("train_stage1.py", [*arguments, "seed=1,2"], log)
    jobs = [tmp_path / "a sweep" / name for name in ("0", "1")]
    first = [runs.losses(job) for job in jobs]
    assert [len(rows) for rows in first] == [2, 2]
    assert first[0] != first[1], "another seed"
    assert all((job / "model" / "model_index.json").is_file() for job in jobs)

    # The same command finds two finished jobs and trains the third.
    runs.run("train_stage1.py", [*arguments, "seed=1,2,3"], log)
    assert [runs.losses(job) for job in jobs] == first
    assert len(runs.losses(tmp_path / "a sweep" / "2")) == 2
    assert {path.name for path in (tmp_path / "a sweep").iterdir()} == {"0", "1", "2", "multirun.yaml"}
