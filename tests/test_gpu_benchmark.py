"""benchmarks/gpu.py walks on a CPU: rows are saved one by one, one that fails leaves the others, runs add up."""

import json
from pathlib import Path

import pytest
import training_runs as runs


def run(tmp_path: Path, *arguments: str) -> tuple[int | None, dict[str, dict], str]:
    """The exit status, the rows of the JSON, and what was printed."""
    output, log = tmp_path / "gpu.json", tmp_path / "log"
    command = [
        "--device", "cpu", "--tiny", "--minutes", "60", "--output", str(output), "--page", str(tmp_path / "page.md"),
        *arguments,
    ]  # fmt: skip
    process = runs.start("../benchmarks/gpu.py", command, log)
    process.join(1800)
    assert output.is_file(), log.read_text()
    return process.exitcode, json.loads(output.read_text())["rows"], log.read_text()


@pytest.mark.soak
def test_rows_are_saved_and_a_failed_one_can_be_run_again(tmp_path: Path) -> None:
    status, rows, printed = run(
        tmp_path, "--rows", "machine,one-step,data wait,graphs", "--student", str(tmp_path / "nothing")
    )
    found = {name: row["status"] for name, row in rows.items()}
    assert found == {"machine": "done", "one step": "failed", "data wait": "done", "graphs": "skipped"}
    assert status == 1
    assert "ModelFolderError" in rows["one step"]["note"]
    assert rows["graphs"]["note"] == "CUDA graphs need a GPU"
    assert rows["machine"]["data"]["matrix_flops_per_second"] > 1e6
    assert 0 <= rows["data wait"]["data"]["share"] < 1
    assert "== one step (failed" in printed

    status, again, _ = run(tmp_path, "--rows", "one step")
    assert status == 0
    assert again["one step"]["status"] == "done"
    assert again["machine"] == rows["machine"], "the rows before are kept"
    page = (tmp_path / "page.md").read_text()
    assert page.count("<!-- gpu: written by benchmarks/gpu.py -->") == 1
    assert "| one step | one step of today's sampler" in page
