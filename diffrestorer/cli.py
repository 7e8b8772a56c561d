"""The command line: `diffrestorer restore` and `diffrestorer detect`.

Results go to stdout, the rest to stderr. Exit status: 0 all done, 1 something failed (named on stderr) or nothing
to do, 2 wrong usage, 130 stopped. Whatever needs torch is imported when it is used: `--help` answers at once.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diffrestorer import __version__
from diffrestorer.data.images import FORMATS, ImageError, Photo, find_images, read_photo, write_photo
from diffrestorer.degradations import DEGRADATIONS
from diffrestorer.memory import free_memory

EXIT_FAILURES, EXIT_USAGE, EXIT_STOPPED = 1, 2, 130
LARGEST_PHOTO = 200_000_000  # pixels, width x height; a larger one is refused by its header
DECODE_BYTES = 64  # a pixel: its file, the decoded and the float image, with a margin
CANVAS_BYTES = 64  # a pixel, whatever the tiles; measured: 57
RESTORE_BYTES = 28  # a pixel and channel of the VAE's widest full-size features; measured: 23 (mini) to 26 (sd15)

_ABOUT = f"Restores photos degraded by {', '.join(DEGRADATIONS)} or several of these, without being told which."
_EPILOG = """\
examples:
  diffrestorer restore old.jpg -o restored        writes restored/old.png
  diffrestorer restore scans/ -o restored         scans/a/b.jpg becomes restored/a/b.png; again: only what is missing
  diffrestorer detect scans/                      what is wrong with each photo, in percent
"""
_ON_RESTORE = """\
examples:
  diffrestorer restore scans/ more/x.png -o restored --format jpg --overwrite
  diffrestorer restore scans/ -o restored --steps 10 --batch-size 4 --device cuda
  diffrestorer restore scans/ -o restored --model outputs/train_stage1 --json > restored.jsonl

The output has the size of the input, EXIF orientation applied, its colour profile and, except in jpg, its transparency;
a 16-bit photo becomes a 16-bit png. Two inputs with one output name keep their suffix (a.jpg.png). A file that can't be
restored is named with the reason and the rest go on; the exit status is then 1. The same photo, options and --seed give
the same result, alone or among others.
"""
_ON_DETECT = "examples:\n  diffrestorer detect old.jpg scans/\n  diffrestorer detect scans/ --json > detected.jsonl"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status; `--help`, `--version` and wrong options end in `SystemExit`."""
    run = _Run(_parser().parse_args(argv))
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, with nothing half done
    try:
        return _restore(run) if run.arguments.command == "restore" else _detect(run)
    except _StopError as error:
        run.say(f"diffrestorer: {error.args[0]}")
        return error.args[1]
    except KeyboardInterrupt:
        run.say(f"stopped; {run.tally['restored']} restored so far stand" if "output" in run.arguments else "stopped")
        return EXIT_STOPPED
    except BrokenPipeError:  # the reader of stdout has gone; keep Python from writing to it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURES
    finally:
        signal.signal(signal.SIGTERM, previous)


def _parser() -> argparse.ArgumentParser:
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser("diffrestorer", description=_ABOUT, epilog=_EPILOG, **layout)
    parser.add_argument("--version", action="version", version=f"diffrestorer {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    restore = commands.add_parser("restore", help="restore photos", description=_ABOUT, epilog=_ON_RESTORE, **layout)
    add = restore.add_argument
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for restored photos; made if missing")
    add("--steps", type=_number(int, 1, 1000), default=20, help="denoising steps: fewer are faster (default: 20)")
    add("--seed", type=_number(int, 0, 2**64 - 1), default=0, help="of each photo's starting noise (default: 0)")
    decoder_help = "refined takes detail from the degraded photo, sd is the VAE's own decoder (default: refined)"
    add("--decoder", choices=("refined", "sd"), default="refined", help=decoder_help)
    fidelity_help = "how much the refined decoder takes from the degraded photo, from 0 to 1 (default: 1.0)"
    add("--fidelity", type=_number(float, 0, 1), default=1.0, help=fidelity_help)
    batch_help = "photos of one size restored together: faster on a GPU, same results (default: 1)"
    add("--batch-size", type=_number(int, 1, 4096), default=1, help=batch_help)
    add("--format", choices=FORMATS, default="png", help="of the restored photos (default: png)")
    add("--overwrite", action="store_true", help="restore again what is in OUT already (default: skip it)")

    about = "Tells how probable each of the eight degradations is for each photo; restores nothing."
    detect = commands.add_parser("detect", help=about, description=about, epilog=_ON_DETECT, **layout)
    for command in (restore, detect):
        add = command.add_argument
        add("inputs", nargs="+", type=Path, metavar="INPUT", help="photos, and folders searched recursively")
        add("--model", default="mini", help="mini (bundled), a model or training folder, or a hub id (default: mini)")
        add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, ... (default: auto)")
        add("--json", action="store_true", help="one JSON object a file on stdout (default: text for people)")
    return parser


def _number(kind: type[int] | type[float], low: int, high: int) -> Callable[[str], int | float]:
    """An argparse type: a number from `low` to `high`."""

    def number(text: str) -> int | float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value

    return number


class _StopError(Exception):
    """What ends a command before it has done anything: one sentence, and the exit status."""


@dataclass(frozen=True)
class _Job:
    """A photo to read and the file to write (none for detect)."""

    input: Path
    output: Path | None = None


@dataclass
class _Run:
    """What one command has done so far, and how it says so."""

    arguments: argparse.Namespace
    tally: Counter[str] = field(default_factory=Counter)
    on_step: Callable[[int], object] | None = None
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def say(self, text: str) -> None:
        """A line on stderr, above the progress bar if there is one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def report(self, job: _Job, status: str, **more: Any) -> None:
        """Counts a file as restored, detected, skipped or failed (with a reason), and tells whoever needs to know."""
        self.tally[status] += 1
        if status == "failed":
            self.say(f"diffrestorer: {_printable(job.input)}: {more['reason']}")
        if self.arguments.json:
            output = {} if job.output is None else {"output": str(job.output)}
            print(json.dumps({"input": str(job.input), **output, "status": status, **more}), flush=True)


def _printable(path: Path) -> str:
    """A path as one line of valid text, whatever bytes are in it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


def _reason(error: Exception) -> str:
    """A failure as one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    full = isinstance(error, MemoryError) or "out of memory" in line.lower() or "can't allocate memory" in line
    return "there is not enough memory for it" if full else line


def _search(run: _Run, without: Path | None = None) -> list[tuple[Path, Path]]:
    """The photos of the INPUTs, each with its path below the folder it was found in; nothing inside `without`."""
    found: dict[tuple[str, Path], Path] = {}  # a photo reached twice under one name counts once
    for argument in run.arguments.inputs:
        if not os.path.isdir(argument):
            found.setdefault((os.path.realpath(argument), Path(argument.name)), argument)
            continue
        try:
            files = find_images(argument)
        except ImageError as error:
            run.report(_Job(argument), "failed", reason=str(error))
            continue
        # What an earlier run wrote is no input. (An INPUT that lies inside OUT is searched all the same.)
        skip = without if without is not None and without.is_relative_to(os.path.realpath(argument)) else None
        for file in files:
            if skip is None or not Path(os.path.realpath(file.parent)).is_relative_to(skip):
                found.setdefault((os.path.realpath(file), file.relative_to(argument)), file)
    if not found and not run.tally:
        raise _StopError("there are no images in INPUT: nothing to do", EXIT_FAILURES)
    return [(file, name) for (_, name), file in found.items()]


def _plan(run: _Run) -> list[_Job]:
    """What to restore and where to. Reports what is there as skipped, what can't have a place of its own as failed."""
    folder, suffix = run.arguments.output, f".{run.arguments.format}"
    real = Path(os.path.realpath(folder))
    for argument in run.arguments.inputs:
        if os.path.isdir(argument) and Path(os.path.realpath(argument)) == real:
            raise _StopError(f"{_printable(argument)} is INPUT and OUT; choose another folder for OUT", EXIT_USAGE)
    found = _search(run, real)
    names = Counter(name.with_suffix(suffix) for _, name in found)
    owners = {os.path.realpath(file): "an input" for file, _ in found}
    jobs = []
    for file, name in found:
        alone = names[name.with_suffix(suffix)] == 1
        output = folder / (name.with_suffix(suffix) if alone else name.with_name(name.name + suffix))
        job, place = _Job(file, output), os.path.realpath(output)
        if place in owners:
            run.report(job, "failed", reason=f"its output {_printable(output)} would replace {owners[place]}")
        elif os.path.exists(output) and not run.arguments.overwrite:
            run.report(job, "skipped", reason="already there")
        else:
            jobs.append(job)
        owners.setdefault(place, f"that of {_printable(file)}")
    return jobs


def _load(run: _Run) -> Any:
    """The DiffRestorerPipeline on its device; libraries keep quiet."""
    import torch
    from diffusers.utils import logging as diffusers_logging

    from diffrestorer.pipeline import DiffRestorerPipeline

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    device, model = run.arguments.device, run.arguments.model
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # torch raises several kinds, with hints for its developers
        raise _StopError(f"device {device!r} can't be used on this machine; try --device cpu", EXIT_USAGE) from error
    try:
        pipe = DiffRestorerPipeline.from_pretrained(model).to(device)
    except Exception as error:  # a ModelFolderError, or what only the loading of a whole model finds
        raise _StopError(f"the model {model!r} can't be loaded: {_reason(error)}", EXIT_USAGE) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _restore(run: _Run) -> int:
    """Restores photos of one size together, holding few of them, under a progress bar."""
    jobs, tally, folder = _plan(run), run.tally, run.arguments.output
    steps, batch_size = run.arguments.steps, run.arguments.batch_size
    if jobs:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()  # better known now than after the first photo
        except OSError as error:
            raise _StopError(f"can't write to {_printable(folder)} ({error.strerror})", EXIT_USAGE) from error
        pipe, before, plain = _load(run), tally.total(), not run.console.is_terminal
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, console=run.console, redirect_stdout=False, disable=plain) as progress:
            bar = progress.add_task("", total=len(jobs))
            run.on_step = lambda images: progress.advance(bar, images / steps)
            waiting: dict[tuple[int, ...], list[tuple[_Job, Photo]]] = {}
            for job in [*jobs, None]:
                if job is not None and (photo := _read(run, job)) is not None:
                    waiting.setdefault(photo.pixels.shape, []).append((job, photo))
                full = [shape for shape, group in waiting.items() if len(group) == batch_size]
                many = sum(map(len, waiting.values())) > 4 * batch_size
                for shape in list(waiting) if job is None else full or list(waiting)[:many]:
                    _restore_group(run, pipe, waiting.pop(shape))
                progress.update(bar, completed=tally.total() - before)
    run.say(f"restored {tally['restored']}, skipped {tally['skipped']} (already there), failed {tally['failed']}")
    return EXIT_FAILURES if tally["failed"] else 0


def _read(run: _Run, job: _Job) -> Photo | None:
    """The photo, or None after its failure is reported."""
    try:
        return read_photo(job.input, min(LARGEST_PHOTO, free_memory() // DECODE_BYTES))
    except ImageError as error:
        run.report(job, "failed", reason=str(error))
        return None


def _restore_group(run: _Run, pipe: Any, group: Sequence[tuple[_Job, Photo]]) -> None:
    """Restores and writes photos of one size: in one batch, or one by one where that fails."""
    from torch import Generator

    from diffrestorer.tiling import WHOLE_PIXELS

    options, pixels = run.arguments, [photo.pixels for _, photo in group]
    size = sum(image[..., 0].size for image in pixels)
    at_once = WHOLE_PIXELS if size > len(group) * WHOLE_PIXELS else size  # larger photos go tile by tile
    need = at_once * RESTORE_BYTES * pipe.vae.config.block_out_channels[1] + size * CANVAS_BYTES
    free = int(0.8 * free_memory())
    try:
        if pipe.device.type == "cpu" and need > free:  # a GPU says when it is full, here the system would kill
            raise ImageError(f"restoring it takes about {need / 1e6:.0f} MB of memory, {free / 1e6:.0f} MB are free")
        own = [Generator().manual_seed(options.seed) for _ in group]
        result = pipe(pixels, options.steps, own, options.decoder, options.fidelity, "np", on_step=run.on_step)
    except Exception as error:  # networks fail in many ways, for lack of memory above all
        reason = _reason(error)
    else:
        for (job, photo), image, row in zip(group, result.images, result.degradation_probabilities, strict=True):
            _write(run, job, photo, image, row.tolist())
        return
    if len(group) == 1:
        return run.report(group[0][0], "failed", reason=reason)
    for pair in group:
        _restore_group(run, pipe, [pair])


def _write(run: _Run, job: _Job, photo: Photo, image: np.ndarray, probabilities: list[float]) -> None:
    """Writes a restored image, floats (h, w, 3) in [0, 1], with the depth, alpha and profile of the input."""
    assert job.output is not None
    kind = photo.pixels.dtype
    try:
        if not np.isfinite(image).all():
            raise ImageError("the model turned it into invalid numbers")
        job.output.parent.mkdir(parents=True, exist_ok=True)
        pixels = (image * np.iinfo(kind).max).round().astype(kind)
        write_photo(job.output, replace(photo, pixels=pixels), run.arguments.format)
    except Exception as error:  # the disk, or an encoder
        run.report(job, "failed", reason=_reason(error))
    else:
        run.report(job, "restored", degradations=dict(zip(DEGRADATIONS, probabilities, strict=True)))


def _detect(run: _Run) -> int:
    """Tells the degradation probabilities of each photo."""
    jobs = [_Job(file) for file, _ in _search(run)]
    width = max((len(_printable(job.input)) for job in jobs), default=0)
    pipe: Any = _load(run) if jobs else None
    if jobs and not run.arguments.json:
        print("file".ljust(width), "most probable", *(name.rjust(9) for name in DEGRADATIONS))
    for job in jobs:
        if (photo := _read(run, job)) is None:
            continue
        try:
            row = pipe.detect(photo.pixels)[0].tolist()
        except Exception as error:  # as in restoring
            run.report(job, "failed", reason=_reason(error))
            continue
        probable = DEGRADATIONS[int(np.argmax(row))]
        run.report(job, "detected", degradation=probable, degradations=dict(zip(DEGRADATIONS, row, strict=True)))
        if not run.arguments.json:
            print(_printable(job.input).ljust(width), probable.ljust(13), *(f"{p:9.1%}" for p in row), flush=True)
    return EXIT_FAILURES if run.tally["failed"] else 0
