"""Compiled blocks stay compiled: at sd15's depth every call of every step, whatever happens before and between them."""

from pathlib import Path

import pytest
from compiled_runs import Counts, count_calls

STAGE1_CALLS = 77
"""UNet 22 + 16 (residual, transformer blocks), control network 10 + 7, VAE encoder 10, control encoder 8, decoder 4."""

DECODER_CALLS = 37
"""VAE encoder 10, twice; decoder 14 and 3 in its DRBs."""


def assert_steps_are_compiled(counts: Counts) -> None:
    """Check that every step runs as many blocks, all of them compiled, and that only the first one adds graphs."""
    print(counts)  # pytest -s shows them
    calls = counts["step 1"]["calls"]
    for moment, found in counts.items():
        expected = {"calls": calls, "compiled": calls} if moment.startswith("step") else {"compiled": 0}
        assert {name: found[name] for name in expected} == expected, moment
        graphs = 0 if moment == "operations" else counts["step 1"]["graphs"]
        assert found["graphs"] == graphs, f"{moment} added graphs"
        assert found["calls"] > 0, moment


@pytest.mark.soak
@pytest.mark.parametrize(("stage", "calls"), [("stage1", STAGE1_CALLS), ("decoder", DECODER_CALLS)])
def test_all_calls_of_a_step_are_compiled(
    stage: str, calls: int, photos_dir: Path, tmp_path: Path
) -> None:
    counts = count_calls(stage, "none", False, photos_dir, tmp_path)
    assert_steps_are_compiled(counts)
    assert counts["step 1"]["calls"] == calls
    assert counts["step 1"]["graphs"] < calls, "blocks of one shape share a graph"


@pytest.mark.soak
def test_so_are_those_of_distributed_steps_that_recompute(photos_dir: Path, tmp_path: Path) -> None:
    """The VAE encoder's blocks and a few of the mid blocks' run once, all others twice."""
    counts = count_calls("stage1", "blocks", True, photos_dir, tmp_path)
    assert_steps_are_compiled(counts)
    assert STAGE1_CALLS + 60 <= counts["step 1"]["calls"] <= STAGE1_CALLS + 67
