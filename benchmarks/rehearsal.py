"""Rehearse a training run of the paper's model from end to end, before a cluster is rented for it.

    python benchmarks/rehearsal.py             # or: make rehearsal
    python benchmarks/rehearsal.py --tiny      # the same way with small networks: minutes, 3 GiB of memory

Stable Diffusion 1.5, CLIP and VGG-19 are written with random weights in their real names, shapes and layouts. Then the
real commands run one after the other at the real widths, each in processes of its own, as you would type them:

    prepare_data.py, train_stage1.py, SIGKILL in the middle, the same command again, train_decoder.py,
    diffrestorer restore, evaluate.py, train_student.py, diffrestorer restore in one step

A table says what each took: seconds, memory, disk, samples or images per second. What it shows is that this machine's
packages, driver, memory and disk carry the whole way; the images mean nothing. On a GPU it works at 512x512 with the
batches and presets of the real run, on a CPU at 64x64 with batches of two.

OUTPUT/rehearsal.json holds the numbers and OUTPUT/logs/ what each command wrote. Exit status 1: a stage failed; its
last lines are shown, and the next try keeps the files with random weights. Files of more than a few megabytes are
deleted as soon as no later stage needs them, unless --keep says otherwise.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rehearsal_stages import ROOT, Rehearsal, Stage, StageError
from watch import Watched, size_of, watch

from diffrestorer.inference.memory import free_memory

GB, GIB = 1e9, 2**30
DISK = {"full": 22 * GB, "full, kept": 46 * GB, "tiny": 2 * GB, "tiny, kept": 2 * GB}
"""Bytes at the fullest moment, by count: the decoder stage's model folder 6.6 GB, a checkpoint of the student 6.5 GB,
its model folder 6.6 GB, VGG-19 0.6 GB."""
MEMORY = {"full": 18 * GIB, "tiny": 3 * GIB}
"""Bytes of main memory at the fullest moment, by count: the student on a CPU holds weights 6.9, AdamW's state 4.0, the
copy of a checkpoint 6.0 and libraries 1 GiB."""
LAST_LINES = 15
"""Of a failed stage's log, that are shown."""


def main() -> None:
    """Rehearse as the command line says, and exit with status 1 if a stage fails."""
    arguments = parse()
    rehearsal = Rehearsal(
        arguments.output.resolve(), device(), arguments.tiny, arguments.size, arguments.steps
    )
    check_settings(rehearsal)
    check_room(rehearsal, arguments.keep)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # so that the stage under way is ended too

    rehearsal.begin()
    report = environment(rehearsal)
    for stage in rehearsal.stages():
        row = run(stage, rehearsal.output)
        report["stages"].append(row)
        save(report, rehearsal.output)
        if row["failure"]:
            print(
                f"\n{stage.name} failed: {row['failure']}\n{last_lines(rehearsal.output, stage)}",
                file=sys.stderr,
            )
            print(table(report["stages"]))
            sys.exit(1)
        for path in () if arguments.keep else stage.discard:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    print(table(report["stages"]))
    print(f"Everything ended well. Numbers: {rehearsal.output / 'rehearsal.json'}")


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    output = Path("outputs/rehearsal")
    parser.add_argument(
        "--output", type=Path, default=output, help="folder for everything (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, help="side of the images in pixels (default: 512 on a GPU, 64 on a CPU)"
    )
    parser.add_argument(
        "--steps", type=int, help="training steps of each stage (default: 20 on a GPU, 8 on a CPU)"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="small networks: walks the way, measures nothing real"
    )
    parser.add_argument("--keep", action="store_true", help="keep weights, checkpoints and models")
    return parser.parse_args()


def device() -> str:
    """Return the hardware preset that the training scripts would pick here: `cpu`, or one of a GPU."""
    # In a process of its own: asking a GPU takes memory on it until the end.
    program = "from diffrestorer.config.hardware_presets import detect_hardware; print(detect_hardware().preset)"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return answer.stdout.split()[-1]


def check_settings(rehearsal: Rehearsal) -> None:
    """Refuse sizes the networks do not take, too few steps, and a folder that holds something else."""
    if rehearsal.size % 64 or rehearsal.size < 64:
        sys.exit(
            f"--size {rehearsal.size}: take a multiple of 64, which the UNet halves three times at 1/8"
        )
    if rehearsal.steps < 4:
        sys.exit(
            f"--steps {rehearsal.steps}: take at least 4, so that there is a middle to be killed in"
        )
    if any(rehearsal.output.glob("*")) and not (rehearsal.output / "rehearsal.json").exists():
        sys.exit(f"--output {rehearsal.output}: holds files that are no rehearsal's; take a new folder")


def check_room(rehearsal: Rehearsal, keep: bool) -> None:
    """Say what disk and memory will be taken, and refuse where there is less."""
    kind = "tiny" if rehearsal.tiny else "full"
    disk, memory = DISK[kind + (", kept" if keep else "")], MEMORY[kind]
    folder = next(path for path in (rehearsal.output, *rehearsal.output.parents) if path.exists())
    free, have = shutil.disk_usage(folder).free + size_of(rehearsal.output), free_memory()
    print(f"Needs {disk / GB:.0f} GB of disk ({free / GB:.0f} free) and {memory / GIB:.0f} GiB of memory "
          f"({have / GIB:.0f} free). {rehearsal.describe()}", flush=True)  # fmt: skip
    if free < disk:
        sys.exit(f"not enough disk at {folder}: give --output on another one, or --tiny")
    if have < memory:
        sys.exit("not enough memory: end other programs, take a larger machine, or give --tiny")


def run(stage: Stage, output: Path) -> dict[str, Any]:
    """Run a stage's command and check what it made; return its row of the report."""
    print(f"\n{stage.name}\n  $ {shown(stage.command)}", flush=True)
    log = output / "logs" / f"{stage.file}.log"
    watched, failure, notes = watch(stage.command, log, output, ROOT, stage.kill_when), None, {}
    expected = -signal.SIGKILL if stage.killed else 0
    if watched.status != expected:
        failure = describe_status(watched, stage.killed)
    else:
        try:
            notes = stage.check(log.read_text(errors="replace"))
        except StageError as error:
            failure = str(error)
    row = {
        "stage": stage.name, "command": shown(stage.command), **asdict(watched), "failure": failure,
        "taken": {path.name: size_of(path) for path in stage.outputs}, **notes,
    }  # fmt: skip
    print(
        f"  {watched.seconds:.0f} s, {watched.memory / GIB:.1f} GiB" + ("" if failure else ", well"),
        flush=True,
    )
    return row


def shown(command: list[str]) -> str:
    """Return a command as one types it: programs of this environment by their names, paths below the checkout short."""
    words = [
        word.replace(f"{Path(sys.executable).parent}/", "").replace(f"{ROOT}/", "") for word in command
    ]
    return shlex.join(words)


def describe_status(watched: Watched, killed: bool) -> str:
    """Return what a wrong exit status means."""
    if killed:
        return f"it ended with status {watched.status} before it could be killed"
    if watched.status in (-signal.SIGKILL, 137):
        return "it was killed from outside (status SIGKILL): the system was out of memory, most likely"
    return f"exit status {watched.status}"


def last_lines(output: Path, stage: Stage) -> str:
    """Return the end of a stage's log, with its place."""
    log = output / "logs" / f"{stage.file}.log"
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return "\n".join([f"the end of {log}:", *(f"  | {line}" for line in lines)])


def environment(rehearsal: Rehearsal) -> dict[str, Any]:
    """Return the report's head: what the numbers depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "hardware": rehearsal.hardware,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "size": rehearsal.size,
        "steps": rehearsal.steps,
        "tiny": rehearsal.tiny,
        "versions": {
            name: version(name) for name in ("torch", "diffusers", "accelerate", "open_clip_torch")
        },
        "git_commit": commit.stdout.strip() or None,
        "stages": [],
    }


def save(report: dict[str, Any], output: Path) -> None:
    """Write the report as JSON."""
    (output / "rehearsal.json").write_text(json.dumps(report, indent=1) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the report as a table for people."""
    lines = [f"\n{'stage':24} {'seconds':>8} {'memory':>9} {'GPU':>9} {'speed':>16}  disk taken"]
    for row in rows:
        card = "-" if row["gpu_memory"] is None else f"{row['gpu_memory'] / GIB:.1f} GiB"
        taken = ", ".join(
            f"{name} {size / GB:.2f} GB" for name, size in row["taken"].items() if size >= 5e6
        )
        speed = row.get("speed") or "-"
        lines.append(f"{row['stage']:24} {row['seconds']:8.0f} {row['memory'] / GIB:5.1f} GiB {card:>9} {speed:>16}  "
                     f"{taken or '-'}")  # fmt: skip
        lines += [f"{'':24} {row['note']}"] if row.get("note") else []
    peaks = [max(row[key] for row in rows) for key in ("memory", "disk")]
    total = sum(row["seconds"] for row in rows)
    lines.append(
        f"{'all':24} {total:8.0f} {peaks[0] / GIB:5.1f} GiB {'':>26}  {peaks[1] / GB:.1f} GB at the fullest"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the next try keeps the files with random weights")
