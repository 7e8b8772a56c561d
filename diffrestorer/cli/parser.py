"""What may be typed: the commands, their options and their help."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffrestorer import __version__
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.data.images import FORMATS

ENGINES = ("eager", "compile", "graphs", "openvino")
"""As `diffrestorer.inference.engines.choice.EngineName`, which can't be imported without torch."""

SMALLEST_TILE = 256
"""Pixels; what the UNet of Stable Diffusion needs."""

_ABOUT = (
    f"Restores photos degraded by {', '.join(DEGRADATIONS)} or several of these, or by what a --model of your own was "
    "trained on, without being told which."
)
_EPILOG = """\
examples:
  diffrestorer restore old.jpg -o restored        writes restored/old.png
  diffrestorer restore scans/ -o restored         scans/a/b.jpg becomes restored/a/b.png; again: only what is missing
  diffrestorer detect scans/                      what is wrong with each photo, in percent
  diffrestorer app                                the same on a web page
"""
_ON_RESTORE = """\
examples:
  diffrestorer restore scans/ more/x.png -o restored --format jpg --overwrite
  diffrestorer restore scans/ -o restored --steps 10 --batch-size 4 --device cuda
  diffrestorer restore scans/ -o restored --model outputs/train_stage1 --json > restored.jsonl
  torchrun --nproc_per_node 4 -m diffrestorer restore scans/ -o restored    on four GPUs (or accelerate launch -m ...)

The output has the size of the input, EXIF orientation applied, its colour profile and, except in jpg, its transparency;
a 16-bit photo becomes a 16-bit png. Two inputs with one output name keep their suffix (a.jpg.png). A file that can't be
restored is named with the reason and the rest go on; the exit status is then 1. The same photo, options and --seed give
the same result, alone or among others, in one process or several.
"""
_ON_APP = """\
Photos and results stay on this machine, in a temporary folder that is removed when it ends. --host 0.0.0.0 opens the
page to everybody who can reach this machine: put a server with passwords and https before it.
"""
_ON_STUDY = """\
examples:
  diffrestorer study make outputs/demo -o study     give people study/page, keep study/key.json
  diffrestorer study score study                    after their files were put into study/answers
"""
_ON_DETECT = "examples:\n  diffrestorer detect old.jpg scans/\n  diffrestorer detect scans/ --json > detected.jsonl"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command and its options; `--help`, `--version` and wrong options end in `SystemExit`."""
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser("diffrestorer", description=_ABOUT, epilog=_EPILOG, **layout)
    parser.add_argument("--version", action="version", version=f"diffrestorer {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    restore = commands.add_parser("restore", help="restore photos", description=_ABOUT, epilog=_ON_RESTORE, **layout)
    _add_restoring(restore)
    about = "Tells how probable each of the model's degradations is for each photo; restores nothing."
    detect = commands.add_parser("detect", help=about, description=about, epilog=_ON_DETECT, **layout)
    for command in (restore, detect):
        add = command.add_argument
        add("inputs", nargs="+", type=Path, metavar="INPUT", help="photos, and folders searched recursively")
        add("--json", action="store_true", help="one JSON object a file on stdout (default: text for people)")
        _add_model(command)
    about = "Serves a web page: drop a photo, see what is wrong with it, restore, compare, download."
    app = commands.add_parser("app", help="restore photos on a web page", description=about, epilog=_ON_APP, **layout)
    app.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    app.add_argument("--port", type=_number(int, 1, 65535), default=7860, help="(default: 7860)")
    _add_model(app)
    about = "Asks people which of two restored photos is better: a page of blind pairs, then the ranking."
    study = commands.add_parser("study", help=about, description=about, epilog=_ON_STUDY, **layout)
    _add_study(study.add_subparsers(dest="action", metavar="ACTION", required=True), layout)
    return parser.parse_args(argv)


def _add_study(actions: Any, layout: dict[str, Any]) -> None:
    """Add `study make` and `study score`."""
    about = "makes a page of blind pairs from evaluations"
    make = actions.add_parser("make", help=about, description=about, epilog=_ON_STUDY, **layout)
    make.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folders of scripts/evaluate.py")
    make.add_argument("-o", dest="study", type=Path, required=True, metavar="DIR", help="folder of the study")
    make.add_argument("--pairs", type=_number(int, 1, 1000), default=40, help="number of pairs (default: 40)")
    make.add_argument("--seed", type=_number(int, 0, 2**31 - 1), default=0, help="of choice and order (default: 0)")
    about = "ranks the methods from the files in DIR/answers"
    score = actions.add_parser("score", help=about, description=about, epilog=_ON_STUDY, **layout)
    score.add_argument("study", type=Path, metavar="DIR", help="folder of the study")


def _add_restoring(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for restored photos; made if missing")
    steps_help = "denoising steps: fewer are faster (default: as the model says, 20 or a student's one)"
    add("--steps", type=_number(int, 1, 1000), help=steps_help)
    add("--seed", type=_number(int, 0, 2**64 - 1), default=0, help="of each photo's starting noise (default: 0)")
    decoder_help = "refined takes detail from the degraded photo, sd is the VAE's own decoder (default: refined)"
    add("--decoder", choices=("refined", "sd"), default="refined", help=decoder_help)
    fidelity_help = "how much the refined decoder takes from the degraded photo, from 0 to 1 (default: 1.0)"
    add("--fidelity", type=_number(float, 0, 1), default=1.0, help=fidelity_help)
    degradation_help = (
        f"what to remove, one of the model's classes (mini's: {', '.join(DEGRADATIONS)}; default: what it detects)"
    )
    add("--degradation", metavar="CLASS", help=degradation_help)
    tile_help = (
        "auto takes a photo of up to 1024x1024 pixels whole and larger ones by tiles, none takes any whole, a number "
        f"is the side of the largest tile, at least {SMALLEST_TILE} (default: auto)"
    )
    add("--tile", type=_tile, default="auto", metavar="auto|none|PIXELS", help=tile_help)
    batch_help = "photos of one size restored together: faster on a GPU, same results (default: 1)"
    add("--batch-size", type=_number(int, 1, 4096), default=1, help=batch_help)
    add("--format", choices=FORMATS, default="png", help="of the restored photos (default: png)")
    add("--overwrite", action="store_true", help="restore again what is in OUT already (default: skip it)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="mini", help="mini (bundled), a model or training folder, or a hub id (default: mini)")
    add("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, ... (default: auto)")
    engine_help = (
        "eager is PyTorch as it is, compile and graphs (GPUs) pay for many photos of one size, openvino is for CPUs "
        "(default: eager)"
    )
    add("--engine", choices=ENGINES, default="eager", help=engine_help)


def _number(kind: type[int] | type[float], low: int, high: int) -> Callable[[str], int | float]:
    """An argparse type: a number from `low` to `high`."""

    def number(text: str) -> int | float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value

    return number


def _tile(text: str) -> str | int:
    """An argparse type: `auto`, `none` or a side in pixels."""
    if text in ("auto", "none"):
        return text
    if not text.isdecimal() or int(text) < SMALLEST_TILE:
        raise argparse.ArgumentTypeError(f"{text} is none of auto, none and a number of at least {SMALLEST_TILE}")
    return int(text)
