"""torchrun starts a run again after a process of it died, and passes on a scheduler's signal: nothing is lost."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import training_runs as runs

STEPS, EVERY = 12, 4

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def worker(launcher: psutil.Process, rank: int) -> psutil.Process | None:
    """Returns the launcher's process of a rank, as soon as there is one."""
    for child in launcher.children():
        try:
            if child.environ().get("RANK") == str(rank):
                return child
        except psutil.Error:
            continue
    return None


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_replaced_and_changes_nothing(
    rank: int, tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    command = [
        *tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=64", f"train.max_steps={STEPS}",
        "train.global_batch_size=2", "train.num_workers=0", "train.log_every=1", f"train.checkpoint_every={EVERY}",
    ]  # fmt: skip
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    runs.run_with_torchrun("train_stage1.py", [*command, f"output_dir={whole}"], num_processes=2)

    script = [str(runs.ROOT / "scripts" / "train_stage1.py"), *command, f"output_dir={killed}"]
    with log.open("w") as output:
        launcher = subprocess.Popen(
            [*TORCHRUN, "--max-restarts=1", *script],
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 1800
        while not (killed / "checkpoints" / f"step_{EVERY}").is_dir():
            assert launcher.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        victim = worker(psutil.Process(launcher.pid), rank)
        assert victim is not None
        victim.kill()
        assert launcher.wait(120) == 0, log.read_text()

    starts = [
        line for line in (killed / "train.log").read_text().splitlines() if "2 process(es)" in line
    ]
    assert len(starts) == 2, "it was started again"
    assert runs.losses(killed) == runs.losses(whole)
    assert runs.files_of(killed / "model") == runs.files_of(whole / "model")


@pytest.mark.soak
def test_a_scheduler_s_signal_to_the_launcher_ends_the_run_with_a_checkpoint(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    """SIGUSR1 with what the SLURM jobs of docs/training.md export. Without it torchrun dies and the run goes on."""
    page = (runs.ROOT / "docs" / "training.md").read_text()
    exported = dict(re.findall(r"(PET_\w+)=(\S+)", page))
    assert set(exported) == {"PET_SIGNALS_TO_HANDLE", "PET_SHUTDOWN_TIMEOUT"}
    folder, log = tmp_path / "run", tmp_path / "log"
    command = [
        *tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=64", "train.max_steps=100000",
        "train.global_batch_size=2", "train.num_workers=0", "train.log_every=1", f"output_dir={folder}",
    ]  # fmt: skip
    script = str(runs.ROOT / "scripts" / "train_stage1.py")
    with log.open("w") as output:
        process = subprocess.Popen(
            [*TORCHRUN, script, *command],
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1", **exported},
        )
        deadline = time.monotonic() + 1800
        while not (folder / "losses.csv").is_file() or len(runs.losses(folder)) < 3:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGUSR1)
        process.wait(300)

    assert not psutil.wait_procs(workers, timeout=60)[1], "nobody is left alone"
    (checkpoint,) = (folder / "checkpoints").glob("step_*")
    assert int(checkpoint.name.partition("_")[2]) >= 3
    assert not (folder / "model").exists()
