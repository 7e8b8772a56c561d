"""One stage-1 step of sd15 at its real size, with random weights, on the CPU: 20 GiB suffice."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
import torch
from diffrestorer.config.composition import load
from diffrestorer.config.schema import Stage1Config
from diffrestorer.data.pairs import SynthesisedPairs, collate_pairs
from diffrestorer.training.step_memory import count_memory, count_saved_bytes
from diffrestorer.training.stage1 import Stage1Task

config = load("train_stage1", Stage1Config, ["base=none", "data=photos", f"data.root={sys.argv[1]}", "data.size=256"])
pairs = SynthesisedPairs(config.data, 0, 1)
torch.manual_seed(0)
task = Stage1Task(config)
(optimizer,) = task.optimizers()
with count_saved_bytes(task) as saved:
    losses = task(collate_pairs([pairs[0, 0]]))
losses.total.backward()
optimizer.step()
assert losses.total.isfinite(), losses
print(count_memory(task, False, saved.total), file=sys.stderr)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.soak
def test_a_step_of_sd15_fits_into_20_gib(photos_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(photos_dir)],
        capture_output=True,
        text=True,
        check=False,
        timeout=3500,
    )
    assert done.returncode == 0, done.stderr
    assert 8 * 2**30 < int(done.stdout) < 20 * 2**30, done.stderr
