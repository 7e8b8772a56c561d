"""Benchmarks are run by hand and seldom: each must still find what it imports."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

IMPORTS = """
import runpy, sys
sys.path[0] = sys.argv[1]
for file in sys.argv[2:]:
    try:
        runpy.run_path(file, run_name="benchmark")
    except Exception as error:
        print(f"{file}: {error!r}")
"""


@pytest.mark.soak
def test_every_benchmark_finds_what_it_imports(tmp_path: Path) -> None:
    """In a process of their own, which has the benchmarks' folder and not the tests'."""
    files = sorted(map(str, BENCHMARKS.glob("*.py")))
    command = [sys.executable, "-c", IMPORTS, str(BENCHMARKS), *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(files) > 20
    assert done.stdout == ""
