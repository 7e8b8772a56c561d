"""The commands, their options and their help."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from diffrestorer import __version__
from diffrestorer.cli.commands import COMMANDS
from diffrestorer.config.degradations import CLEAN, DEGRADATIONS
from diffrestorer.data.images import FORMATS
from diffrestorer.inference.choices import NOT_CLEAR, THRESHOLD, Precision

AUTO = "auto"
"""The --format that follows each input."""

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
  diffrestorer train stage1 model=mini data=photos data.root=PHOTOS     trains a model; evaluate, prepare, figures
"""
_ON_RESTORE = """\
examples:
  diffrestorer restore scans/ more/x.png -o restored --format jpg --overwrite
  diffrestorer restore scans/ -o restored --steps 10 --batch-size 4 --device cuda
  diffrestorer restore scans/ -o restored --format auto           a JPEG stays a JPEG, a TIFF a TIFF
  diffrestorer restore scans/ -o restored --model outputs/train_stage1 --json > restored.jsonl
  torchrun --nproc_per_node 4 -m diffrestorer restore scans/ -o restored    on four GPUs (or accelerate launch -m ...)

The output has the size of the input, EXIF orientation applied, its colour profile, EXIF (camera, date, GPS), XMP and,
except in jpg, its transparency; a 16-bit photo becomes a 16-bit png or tif. Two inputs with one output name keep
their suffix (a.jpg.png). A file that can't be restored is named with the reason and the rest go on; the exit status is
then 1. Photos in formats that nothing here reads (raw, JPEG XL, HEIC without its extra) are counted. The same photo,
options and --seed give the same result, alone or among others, in one process or several. On a CPU, OMP_NUM_THREADS
sets the number of threads.
"""
_ON_APP = """\
Photos and results stay on this machine, in a temporary folder that is removed when it ends. --host 0.0.0.0 opens the
page to everybody who can reach this machine: put a server with passwords and https before it, and name the host that
browsers ask for (--allow-host photos.example.org). Requests for other hosts, or from other pages, are refused.
"""
_ON_STUDY = """\
examples:
  diffrestorer study make outputs/demo -o study     give people study/page, keep study/key.json
  diffrestorer study score study                    after their files were put into study/answers
"""
_ON_PUSH = """\
examples:
  diffrestorer push outputs/train_decoder me/sandstorms --license apache-2.0 --scores outputs/evaluate --dry-run
  HF_TOKEN=... diffrestorer push outputs/train_decoder me/sandstorms

A README.md that you wrote into the model folder keeps its text and its metadata, and gets those that it lacks.
"""
_ON_EXPORT = """\
examples:
  diffrestorer export outputs/train_student -o exported       writes exported/restorer.onnx
  python integrations/onnx/restore.py exported/restorer.onnx photo.jpg -o restored

The file restores a whole photo in one call, in float32, with neither PyTorch nor diffrestorer installed.
"""
_ON_DETECT = """\
examples:
  diffrestorer detect old.jpg scans/
  diffrestorer detect scans/ --json > detected.jsonl

A model that was trained without the class clean (mini has it) is often sure of a degradation where there is none.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command and its options; `--help`, `--version` and wrong options end in `SystemExit`."""
    layout: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
    parser = argparse.ArgumentParser("diffrestorer", description=_ABOUT, epilog=_EPILOG, **layout)
    parser.add_argument("--version", action="version", version=f"diffrestorer {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    restore = commands.add_parser(
        "restore", help="restore photos", description=_ABOUT, epilog=_ON_RESTORE, **layout
    )
    _add_restoring(restore)
    about = "Tells how probable each of the model's degradations is for each photo; restores nothing."
    detect = commands.add_parser("detect", help=about, description=about, epilog=_ON_DETECT, **layout)

    # Options that several commands have.
    for command in (restore, detect):
        add = command.add_argument
        add(
            "inputs",
            nargs="+",
            type=_path,
            metavar="INPUT",
            help="photos, and folders searched recursively",
        )
        add(
            "--json",
            action="store_true",
            help="one JSON object per file on stdout (default: text for people)",
        )
        threshold_help = (
            f"probability from which a degradation is clear; below it the answer is {NOT_CLEAR!r}, and the photo is "
            f"restored as a clean one by models that have learned clean photos (default: {THRESHOLD:g})"
        )
        add("--threshold", type=_number(float, 0, 1), default=THRESHOLD, help=threshold_help)
        _add_model(command)
    _add_compile(restore)
    _add_app(commands, layout)
    about = (
        "Asks people which of two restored photos is better: a page of blind pairs, then the ranking."
    )
    study = commands.add_parser("study", help=about, description=about, epilog=_ON_STUDY, **layout)
    _add_study(study.add_subparsers(dest="action", metavar="ACTION", required=True), layout)
    _add_push(commands, layout)
    _add_export(commands, layout)
    _add_scripts(commands, layout)
    return _with_late_inputs(parser, argv)


def _path(text: str) -> Path:
    """Read a path. An empty text, as of a variable that is not set, would be the current folder.

    Raises:
        argparse.ArgumentTypeError: the text is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a file or a folder ('.' is this folder)")
    return Path(text)


def _add_push(commands: Any, layout: dict[str, Any]) -> None:
    about = "Uploads a model folder to the Hugging Face hub, with a card that has its classes, licence and scores."
    push = commands.add_parser(
        "push", help="upload a model to the hub", description=about, epilog=_ON_PUSH, **layout
    )
    add = push.add_argument
    add("folder", metavar="FOLDER", help="model folder, or output folder of a training")
    add("repo", metavar="USER/NAME", help="where it goes; made if it is not there")
    add(
        "--license",
        help="identifier of the licence, such as apache-2.0 (default: the one in README.md, else other)",
    )
    scores_help = "output folder of diffrestorer evaluate, whose means go into the card"
    add("--scores", type=_path, metavar="DIR", help=scores_help)
    add("--private", action="store_true", help="make it private, if it is not there yet")
    add("--dry-run", action="store_true", help="print the card and the files, and upload nothing")


def _add_export(commands: Any, layout: dict[str, Any]) -> None:
    about = "Writes a one-step student as an ONNX file, which needs neither PyTorch nor diffrestorer to run."
    export = commands.add_parser(
        "export", help="write a student as ONNX", description=about, epilog=_ON_EXPORT, **layout
    )
    model_help = "model folder of a student, or output folder of its training"
    export.add_argument("model", metavar="MODEL_FOLDER", help=model_help)
    output_help = "folder for restorer.onnx; made if missing"
    export.add_argument("-o", dest="folder", type=_path, required=True, metavar="DIR", help=output_help)
    export.set_defaults(device="cpu", precision="float32", compile=False)


def _add_scripts(commands: Any, layout: dict[str, Any]) -> None:
    """List the scripts, whose own command lines are read elsewhere."""
    about = "Trains a model. Every STAGE explains itself with --help, and takes keys written key=value."
    stages = {name.partition(" ")[2]: entry.about for name, entry in COMMANDS.items() if " " in name}
    listing = "\n".join(f"  {stage:10} {entry}" for stage, entry in stages.items())
    train = commands.add_parser(
        "train", help="train a model", description=about, epilog=f"stages:\n{listing}", **layout
    )
    train.add_argument("stage", choices=stages, metavar="STAGE", help="one of those below")
    for name, entry in COMMANDS.items():
        if " " not in name:
            commands.add_parser(name, help=entry.about, **layout)


def _add_app(commands: Any, layout: dict[str, Any]) -> None:
    about = "Serves a web page: drop a photo, see what is wrong with it, restore, compare, download."
    app = commands.add_parser(
        "app", help="restore photos on a web page", description=about, epilog=_ON_APP, **layout
    )
    app.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only)",
    )
    app.add_argument("--port", type=_number(int, 1, 65535), default=7860, help="(default: 7860)")
    name_help = "a further host name of this machine that browsers may ask for, as behind a proxy; may be repeated"
    app.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=name_help)
    _add_model(app)
    _add_compile(app)


def _with_late_inputs(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Parse, and take INPUTs behind options too: argparse returns those as it does unknown options."""
    arguments, unknown = parser.parse_known_args(argv)
    plain = unknown.index("--") if "--" in unknown else len(unknown)
    mistyped = any(text.startswith("-") for text in unknown[:plain])
    if unknown and (mistyped or "inputs" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:
        arguments.inputs += [Path(text) for text in unknown[:plain] + unknown[plain + 1 :]]
    return arguments


def _add_study(actions: Any, layout: dict[str, Any]) -> None:
    """Add `study make` and `study score`."""
    about = "makes a page of blind pairs from evaluations"
    make = actions.add_parser("make", help=about, description=about, epilog=_ON_STUDY, **layout)
    make.add_argument(
        "runs", nargs="+", type=_path, metavar="RUN", help="output folders of `diffrestorer evaluate`"
    )
    make.add_argument(
        "-o", dest="study", type=_path, required=True, metavar="DIR", help="folder of the study"
    )
    make.add_argument(
        "--pairs", type=_number(int, 1, 1000), default=40, help="number of pairs (default: 40)"
    )
    make.add_argument(
        "--seed", type=_number(int, 0, 2**31 - 1), default=0, help="of choice and order (default: 0)"
    )
    about = "ranks the methods from the files in DIR/answers"
    score = actions.add_parser("score", help=about, description=about, epilog=_ON_STUDY, **layout)
    score.add_argument("study", type=_path, metavar="DIR", help="folder of the study")


def _add_restoring(parser: argparse.ArgumentParser) -> None:
    """Add the options of `restore`."""
    add = parser.add_argument
    add(
        "-o",
        "--output",
        type=_path,
        required=True,
        metavar="OUT",
        help="folder for restored photos; made if missing",
    )
    steps_help = "denoising steps: fewer are faster (default: as the model says, 20 or a student's one)"
    add("--steps", type=_number(int, 1, 1000), help=steps_help)
    add(
        "--seed",
        type=_number(int, 0, 2**64 - 1),
        default=0,
        help="of each photo's starting noise (default: 0)",
    )
    decoder_help = (
        "refined takes detail from the degraded photo, sd is the VAE's own decoder (default: refined)"
    )
    add("--decoder", choices=("refined", "sd"), default="refined", help=decoder_help)
    fidelity_help = (
        "how much the refined decoder takes from the degraded photo, from 0 to 1 (default: 1.0)"
    )
    add("--fidelity", type=_number(float, 0, 1), default=1.0, help=fidelity_help)
    names = ", ".join((*DEGRADATIONS, CLEAN))
    degradation_help = (
        f"what to remove, one of the model's classes (mini's: {names}; default: what it detects)"
    )
    add("--degradation", metavar="CLASS", help=degradation_help)
    tile_help = (
        "auto takes a photo of up to 1024x1024 pixels whole and larger ones by tiles, none takes any whole, a number "
        f"is the side of the largest tile, at least {SMALLEST_TILE} (default: auto)"
    )
    add("--tile", type=_tile, default="auto", metavar="auto|none|PIXELS", help=tile_help)
    batch_help = "photos of one size restored together: faster on a GPU, same results (default: 1)"
    add("--batch-size", type=_number(int, 1, 4096), default=1, help=batch_help)
    format_help = (
        "of the restored photos; auto is that of the input where it can be written (default: png)"
    )
    add("--format", choices=(*FORMATS, AUTO), default="png", help=format_help)
    skip_help = f"leave photos with {NOT_CLEAR} (--threshold) alone: no file is written for them"
    add("--skip-clean", action="store_true", help=skip_help)
    add(
        "--overwrite",
        action="store_true",
        help="restore again what is in OUT already (default: skip it)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the model and how it runs."""
    add = parser.add_argument
    add(
        "--model",
        default="mini",
        help="mini (bundled), a model or training folder, or a hub id (default: mini)",
    )
    add(
        "--device",
        default="auto",
        help="auto (a GPU if there is one), cpu, cuda, cuda:1, ... (default: auto)",
    )
    precision_help = (
        "what the networks compute in; auto takes bfloat16 on GPUs and on CPUs with AMX, where it is faster, and "
        "float32 elsewhere (default: auto)"
    )
    add("--precision", choices=get_args(Precision), default="auto", help=precision_help)
    parser.set_defaults(compile=False)


def _add_compile(parser: argparse.ArgumentParser) -> None:
    compile_help = "run the denoising networks through torch.compile: slow to start, pays for many photos of one size"
    parser.add_argument("--compile", action="store_true", help=compile_help)


def _number(kind: type[int] | type[float], low: int, high: int) -> Callable[[str], int | float]:
    """Return an argparse type: a number from `low` to `high`."""

    def number(text: str) -> int | float:
        """Convert a number that lies in the range."""
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value

    return number


def _tile(text: str) -> str | int:
    """Convert `auto`, `none` or a side in pixels: an argparse type."""
    if text in ("auto", "none"):
        return text
    if not text.isdecimal() or int(text) < SMALLEST_TILE:
        raise argparse.ArgumentTypeError(
            f"{text} is none of auto, none and a number of at least {SMALLEST_TILE}"
        )
    return int(text)
