r"""What a GPU proves and measures, at Stable Diffusion 1.5's widths with random weights, in about eight minutes.

Whoever has a GPU for fifteen minutes gives two commands, with `$OUT` a folder that outlives the machine. The first
proves and measures; the second trains mini on for seven minutes, image encoder and student, and packs models and newest
checkpoints (unpacked there, the same command goes on where it stopped):

    python benchmarks/gpu.py --minutes 8 --output "$OUT/gpu.json" --page "$OUT/performance.md"

    python scripts/train_mini.py root=PHOTOS minutes=7 output_dir=outputs/mini_gpu; \
        tar -czf "$OUT/mini.tar.gz" -C outputs/mini_gpu .

Where the package is not installed, `export PYTHONPATH=$PWD` comes first. Nothing is downloaded. At home
`cp "$OUT/gpu.json" benchmarks/results/` and `python benchmarks/gpu.py --page-only` write the section of
docs/performance.md.

The rows run in order of importance. The JSON is written after each, a row that would likely exceed the budget is not
started, and one that fails is recorded with its error (the exit status is then 1). Running again with `--rows` keeps
the other rows where card, versions and commit are the same. `--device cpu --tiny` walks the same code in three minutes
and writes into outputs/.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gpu_rows import compiling, learning, proofs, restoring
from gpu_rows.report import Rejected, Report
from gpu_rows.session import TINY, Session, Sizes
from gpu_rows.tables import page_section, short_table
from sections import PAGE, ROOT, write_section

from diffrestorer.config.checkout import git_commit

STARTED = time.monotonic()
PACKAGES = ("torch", "triton", "diffusers", "transformers", "accelerate", "open_clip_torch")


@dataclass(frozen=True)
class Row:
    """One row: its name, what runs it, and the seconds it is expected to take on an H100."""

    name: str
    run: Callable[[Session, Report], None]
    seconds: float


# In order of importance. `parity` and `tests` took this long on an H100 with 16 cores, most of it the CPU's side. The
# other seconds are estimates, from counted arithmetic and from what compiling takes elsewhere. Up to `cold start` they
# make eight minutes. The last three are started where the others were faster, or by `--rows`.
ROWS = (
    Row("parity", proofs.parity, 131),
    Row("tests", proofs.tests, 24),  # they start beside `parity`
    Row("machine", restoring.machine, 2),
    Row("latency", restoring.latency, 13),  # builds both pipelines
    Row("one step", restoring.one_step, 3),
    Row("throughput", restoring.throughput, 18),
    Row("stage 1", learning.stage1, 30),
    Row("decoder", learning.decoder, 25),
    Row("stage 1 compiled", learning.stage1_compiled, 50),
    Row("data wait", learning.data_wait, 8),
    Row("compiled", compiling.compiled, 48),
    Row("peer compiled", compiling.peer_compiled, 40),
    Row("tiled", restoring.tiled, 15),
    Row("cold start", compiling.cold_start, 30),
    Row("evaluation", restoring.evaluation, 15),
    Row("graphs", compiling.graphs, 28),
    Row("decoder compiled", learning.decoder_compiled, 28),
)


def main() -> int:
    """Run the chosen rows, save after each, print the table; return the exit status."""
    arguments = parse()
    if arguments.page_only:
        write_section(arguments.page, "gpu", page_section(json.loads(arguments.output.read_text())))
        return 0
    rows = chosen_rows(arguments.rows)
    device = torch.device(arguments.device)
    results = previous(arguments.output, environment(arguments))
    with tempfile.TemporaryDirectory() as folder:
        session = Session(device, TINY if arguments.tiny else Sizes(), Path(folder), arguments.student)
        try:
            run_rows(rows, session, results, arguments)
        finally:
            session.close()
    print(short_table(results))
    return int(any(results["rows"][row.name]["status"] == "failed" for row in rows))


def run_rows(
    rows: Sequence[Row], session: Session, results: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """Run row after row while the budget lasts, and save after each."""
    if not session.on_gpu:
        compiling.use_backend(session, "eager")  # captured, but no code is generated
    if any(row.name == "tests" for row in rows):
        proofs.start_tests(session)
    for row in rows:
        left = 60 * arguments.minutes - (time.monotonic() - STARTED)
        if row.seconds * (0.1 if arguments.tiny else 1) > left:
            results["rows"].setdefault(
                row.name, {"status": "not started", "left": round(left), "lines": []}
            )
            print(f"{row.name}: not started, {left:.0f} s are left of the budget", flush=True)
        else:
            results["rows"][row.name] = run_row(row, session)
        save(results, arguments)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(row.name for row in ROWS)
    parser.add_argument(
        "--rows", default="", help=f"of {names}; a comma between them, - for a space (default: all)"
    )
    parser.add_argument(
        "--minutes", type=float, default=8, help="budget, from the start of the process (default: 8)"
    )
    parser.add_argument("--device", default="cuda", help="(default: cuda)")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny widths and sizes: walk the code, measure nothing"
    )
    parser.add_argument("--student", help="model folder of a one-step student, for the row `one step`")
    parser.add_argument("--commit", help="as the JSON names it (default: the checkout's)")
    parser.add_argument(
        "--output", type=Path, help="JSON (default: benchmarks/results/gpu.json; tiny: outputs/)"
    )
    parser.add_argument(
        "--page", type=Path, help="page with the section (default: docs/performance.md; tiny: outputs/)"
    )
    parser.add_argument(
        "--page-only", action="store_true", help="run nothing: write the section from the JSON"
    )
    arguments = parser.parse_args()
    if (
        arguments.device.startswith("cuda")
        and not arguments.page_only
        and not torch.cuda.is_available()
    ):
        parser.error("there is no CUDA device; `--device cpu --tiny` walks the same code")
    if arguments.device == "cpu" and not arguments.tiny and not arguments.page_only:
        parser.error("a CPU takes hours at full width: add --tiny")
    results = (
        ROOT / "outputs" / "gpu_tiny.json"
        if arguments.tiny
        else ROOT / "benchmarks" / "results" / "gpu.json"
    )
    arguments.output = arguments.output or results
    arguments.page = arguments.page or (ROOT / "outputs" / "gpu_tiny.md" if arguments.tiny else PAGE)
    return arguments


def chosen_rows(names: str) -> Sequence[Row]:
    """Return the rows of a comma-separated list, in their own order.

    Raises:
        SystemExit: one of them does not exist.
    """
    wanted = [name.strip().replace("-", " ") for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in {row.name for row in ROWS}]:
        sys.exit(
            f"gpu.py: there is no row {unknown[0]!r}; choose from {', '.join(row.name for row in ROWS)}"
        )
    return [row for row in ROWS if not wanted or row.name in wanted]


def run_row(row: Row, session: Session) -> dict[str, Any]:
    """Run a row; return what it found, its status and its seconds. Errors are recorded, not raised."""
    print(f"{row.name} ...", flush=True)
    report, status, note, started = Report(), "done", "", time.monotonic()
    try:
        row.run(session, report)
        if broken := [what for what, _, _, holds in report.proofs if not holds]:
            status, note = "failed", f"out of bounds: {'; '.join(broken)}"
    except Rejected as reason:
        status, note = "skipped", str(reason)
    except torch.OutOfMemoryError as error:
        status, note = "out of memory", str(error).splitlines()[0]
    except Exception as error:  # whatever it is: the other rows go on
        status, note = "failed", f"{type(error).__name__}: {error}"
        traceback.print_exc()
    session.collect()
    seconds = round(time.monotonic() - started, 1)
    print(f"{row.name}: {status} in {seconds} s{f' ({note})' if note else ''}", flush=True)
    found = {"lines": report.lines, "proofs": report.proofs, "data": report.data}
    return {"status": status, "note": note, "seconds": seconds, "expected": row.seconds, **found}


def save(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Write the JSON and the page's section."""
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.output.with_name(arguments.output.name + ".partial")
    partial.write_text(json.dumps(results, indent=1, default=str) + "\n")
    partial.replace(arguments.output)
    write_section(arguments.page, "gpu", page_section(results))


def previous(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Return earlier results of the same card, versions and commit, to add to; else empty ones."""
    if path.is_file():
        results = json.loads(path.read_text())
        if results.get("environment") == found:
            return results
    return {"environment": found, "rows": {}}


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the numbers depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    card, driver = "none", "none"
    if arguments.device.startswith("cuda"):
        card = torch.cuda.get_device_name(arguments.device)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(
                query, capture_output=True, text=True, check=True
            ).stdout.splitlines()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            driver = "unknown"
    return {
        "card": card,
        "driver": driver,
        "cuda": torch.version.cuda,
        "widths": "tiny" if arguments.tiny else "sd15",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": arguments.commit or git_commit(),
    }


if __name__ == "__main__":
    sys.exit(main())
