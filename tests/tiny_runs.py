"""Tiny training runs within the test's own process, and what may happen to their folders."""

import random
import shutil
from pathlib import Path

from diffrestorer.config.composition import load
from diffrestorer.config.schema import Stage1Config
from diffrestorer.training.loop import train
from diffrestorer.training.stage1 import Stage1Task

DAMAGES = ("removed", "emptied", "cut", "flipped", "overwritten", "appended", "replaced by a folder")


def arguments(tiny_overrides: list[str], photos: Path, *more: str) -> list[str]:
    """The command line of a run of eight steps with a checkpoint after every second one."""
    return [
        *tiny_overrides, "data=photos", f"data.root={photos}", "data.size=32", "train.max_steps=8",
        "train.global_batch_size=2", "train.num_workers=0", "train.log_every=1", "train.checkpoint_every=2",
        "train.sample_every=1000", *more,
    ]  # fmt: skip


def train_stage1(command: list[str], output: Path) -> None:
    """Train in this process."""
    train(Stage1Task, load("train_stage1", Stage1Config, [*command, f"output_dir={output}"]), output)


def small_files(output: Path) -> list[Path]:
    """Every file of a run but its weights, by name."""
    files = [path for path in output.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    return sorted(path for path in files if "model" not in path.relative_to(output).parts)


def damage(path: Path, chance: random.Random, kind: str | None = None) -> str:
    """Damage a file as disks, kills and editors do, one of `DAMAGES` or any; returns how."""
    data = bytearray(path.read_bytes())
    kind = kind or chance.choice(DAMAGES)
    place = chance.randrange(len(data)) if data else 0
    if kind == "removed":
        path.unlink()
    elif kind == "replaced by a folder":
        path.unlink()
        path.mkdir()
    else:
        if kind == "emptied":
            data = bytearray()
        elif kind == "cut":
            del data[place:]
        elif kind == "flipped" and data:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == "overwritten":
            length = min(len(data) - place, chance.randrange(1, 64))
            data[place : place + length] = chance.randbytes(length)
        elif kind == "appended":
            data += chance.randbytes(chance.randrange(1, 64))
        path.write_bytes(bytes(data))
    return kind


def copy_run(source: Path, target: Path) -> Path:
    """A copy of a run's folder, in place of an earlier one."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
