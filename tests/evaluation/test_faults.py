"""Stopped runs and shared work: kills, halves, several processes. The final tables are identical."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evaluation_runs import quiet, restored, settings

from diffrestorer.evaluation.run import evaluate

ROOT = Path(__file__).resolve().parents[2]
TABLES = (
    "scores.csv", "summary.csv", "table1.md", "table1.csv", "table1.tex", "table.md", "table.tex", "standings.csv",
    "standings.md", "standings.tex",
)  # fmt: skip

DECIMAL = r"[-+]?\d+\.\d+"


def command(folder: Path, model: Path) -> list[str]:
    keys = [
        "size=64",
        "images=2",
        "steps=1",
        "batch_size=1",
        "device=cpu",
        "metrics=[psnr,ssim]",
        f"model={model}",
    ]
    methods = "degraded,diff_restorer_sd,diff_restorer"
    return [
        "scripts/evaluate.py",
        "--suite",
        "mixed",
        "--method",
        methods,
        f"output_dir={folder}",
        *keys,
    ]


def check_tables(found: Path, expected: Path) -> None:
    """Assert that two runs wrote the same tables, up to what rounding in another process makes of their numbers.

    Some processors round sums by where they lie in memory, which may move a grey level of an image.
    """
    for name in TABLES:
        words, numbers = zip(*(_parts(folder, name) for folder in (found, expected)), strict=True)
        assert words[0] == words[1], name
        last_digit = 1e-4 if name in ("scores.csv", "summary.csv") else 0.011
        assert numbers[0] == pytest.approx(numbers[1], abs=last_digit), name


def _parts(folder: Path, name: str) -> tuple[list[str], list[float]]:
    """The text of a table, without the folder's own name, around its decimal numbers, and these."""
    text = (folder / name).read_text().replace(str(folder), "OUT")
    return re.split(DECIMAL, text), [float(number) for number in re.findall(DECIMAL, text)]


@pytest.mark.soak
def test_either_half_alone_gives_the_same_tables(model: Path, tmp_path: Path) -> None:
    keys = {"model": str(model), "suite": "mixed"}
    methods = ["degraded", "diff_restorer"]
    evaluate(settings(tmp_path / "whole", methods, **keys), quiet())
    assert evaluate(settings(tmp_path / "halves", methods, only="restore", **keys), quiet()) == []
    assert not (tmp_path / "halves" / "scores.csv").exists()
    evaluate(settings(tmp_path / "halves", methods, only="score", **keys), quiet())
    check_tables(tmp_path / "halves", tmp_path / "whole")
    assert json.loads((tmp_path / "halves" / "run.json").read_text())["methods"] == {}


def test_scoring_alone_needs_the_images(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"diff_restorer/blur\+noise/astronaut\.png is missing; restore first"
    ):
        evaluate(
            settings(tmp_path, ["diff_restorer"], model=str(model), suite="mixed", only="score"),
            quiet(),
        )


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run([sys.executable, *command(folder, model)])
    return folder


def run(line: list[str]) -> None:
    answer = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.soak
def test_kill_and_resume_give_the_same_tables(whole: Path, model: Path, tmp_path: Path) -> None:
    """SIGKILL while restoring, and while scoring; then to the end."""
    for sign in ("restored/*/*/*.png", "scores/*.jsonl"):
        process = subprocess.Popen(
            [sys.executable, *command(tmp_path, model)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not any(tmp_path.glob(sign)):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it ended before it was killed at {sign}"
        assert not (tmp_path / "scores.csv").exists()
    run([sys.executable, *command(tmp_path, model)])
    check_tables(tmp_path, whole)
    made = json.loads((tmp_path / "run.json").read_text())["methods"]["diff_restorer"]
    assert (made["kept"], made["restored"]) == (8, 0)


@pytest.mark.soak
def test_two_processes_share_the_work_and_give_the_same_tables(
    whole: Path, model: Path, tmp_path: Path
) -> None:
    """On the device that the machine has: left to itself, Accelerate ignores torchrun's ranks where there is no GPU."""
    words = [word for word in command(tmp_path, model) if word != "device=cpu"]
    run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *words])
    check_tables(tmp_path, whole)
    made = json.loads((tmp_path / "run.json").read_text())
    assert made["processes"] == 2
    assert made["methods"]["diff_restorer"]["restored"] == 8
    names = [sorted(restored(folder)) for folder in (whole, tmp_path)]
    assert names[0] == names[1]
    kept = [len((tmp_path / "scores" / f"{rank}.jsonl").read_text().split()) for rank in (0, 1)]
    assert min(kept) > 0, "each process scored some"


@pytest.mark.soak
def test_jobs_of_a_sweep_restore_into_one_folder(whole: Path, model: Path, tmp_path: Path) -> None:
    """A method per job, beside another process that restores one of them too; then one run scores them all."""
    words = [
        word for word in command(tmp_path, model) if not word.startswith(("--method", "degraded,"))
    ]
    sweep = ["-m", "hydra.sweep.subdir=.", "method=[diff_restorer_sd],[diff_restorer]"]
    jobs = [
        subprocess.Popen(
            [sys.executable, *words, "only=restore", *more], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for more in (sweep, ["method=[diff_restorer]"])
    ]
    for job in jobs:
        assert job.wait() == 0, job.stderr.read() if job.stderr else ""
    assert not (tmp_path / "scores.csv").exists()
    assert {path.name for path in (tmp_path / "restored").iterdir()} >= {
        "diff_restorer",
        "diff_restorer_sd",
    }
    run([sys.executable, *command(tmp_path, model)])
    check_tables(tmp_path, whole)
    made = json.loads((tmp_path / "run.json").read_text())["methods"]
    assert all(made[name]["restored"] == 0 for name in ("diff_restorer", "diff_restorer_sd"))
