"""The scripts as commands: `diffrestorer train stage1` is `scripts/train_stage1.py`, from the wheel as well.

A command is a root file of configs/, the dataclass of its configuration and a function. Networks and libraries are
imported by the function, so that a typo is refused at once.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from diffrestorer.cli.threads import leave_busy_cores
from diffrestorer.config.installation import (
    check_torchvision,
    explain_import_error,
    import_without_unused,
)


@dataclass(frozen=True)
class Command:
    """A script.

    Attributes:
        root: name of its root file in configs/.
        schema: module and class of its configuration.
        main: called with the configuration.
        about: what it does, for `--help`.
        extra: the optional dependencies that it needs.
        networks: whether it builds networks.
        flags: keys that may also be written `--key value`.
        switch: a key that may also be written `--key`.
        describe: returns the part of its `--help` that depends on the other arguments.
    """

    root: str
    schema: tuple[str, str]
    main: Callable[[Any], None]
    about: str
    extra: str = "train"
    networks: bool = True
    flags: tuple[str, ...] = ()
    switch: str = ""
    describe: Callable[[Sequence[str]], str] = lambda arguments: ""


def _train_base(config: Any) -> None:
    from diffrestorer.training.mini_base import train_base

    train_base(config)


def _train_stage1(config: Any) -> None:
    from diffrestorer.training.loop import train
    from diffrestorer.training.model_classes import with_classes
    from diffrestorer.training.stage1 import Stage1Task

    train(Stage1Task, with_classes(config), Path(config.output_dir))


def _train_decoder(config: Any) -> None:
    from diffrestorer.training.decoder_stage import DecoderTask
    from diffrestorer.training.loop import train
    from diffrestorer.training.model_classes import with_classes

    train(DecoderTask, with_classes(config), Path(config.output_dir))


def _train_student(config: Any) -> None:
    from diffrestorer.training.loop import train
    from diffrestorer.training.model_classes import with_classes
    from diffrestorer.training.student import StudentTask

    train(StudentTask, with_classes(config), Path(config.output_dir))


def _train_baseline(config: Any) -> None:
    from diffrestorer.training.baseline import train_baseline
    from diffrestorer.training.model_classes import with_classes

    train_baseline(with_classes(config))


def _train_mini(config: Any) -> None:
    from diffrestorer.training.recipe import train_mini

    train_mini(config)


def _evaluate(config: Any) -> None:
    from diffrestorer.evaluation.run import evaluate

    evaluate(config)


def _make_figures(config: Any) -> None:
    from diffrestorer.evaluation.figures.drawing import make_figure

    make_figure(config)


def _prepare(config: Any) -> None:
    from diffrestorer.preparation.prepare import prepare

    prepare(config)


def _check_data(config: Any) -> None:
    """Read the data that a training would have, and print the number of pairs of each class."""
    from diffrestorer.training.data_check import count_pairs
    from diffrestorer.training.model_classes import with_classes

    # The classes are those that the run itself would have.
    counts = count_pairs(with_classes(config), logging.getLogger(__name__))
    for name, number in counts.items():
        print(f"{name:16} {number:9,} pairs")
    print("every file can be read, and nothing was trained")


def _explain_set(arguments: Sequence[str]) -> str:
    from diffrestorer.preparation.catalog import explain

    return explain(arguments)


_TRAINING, _EVALUATING = "diffrestorer.config.schema", "diffrestorer.config.evaluating"

COMMANDS = {
    "train base": Command(
        "train_base",
        (_TRAINING, "BaseConfig"),
        _train_base,
        "mini's VAE, image encoder and UNet",
        switch="check",
    ),
    "train stage1": Command(
        "train_stage1",
        (_TRAINING, "Stage1Config"),
        _train_stage1,
        "prompts and control, the first stage",
        switch="check",
    ),
    "train decoder": Command(
        "train_decoder",
        (_TRAINING, "DecoderConfig"),
        _train_decoder,
        "the decoder, after stage 1",
        switch="check",
    ),
    "train student": Command(
        "train_student",
        (_TRAINING, "StudentConfig"),
        _train_student,
        "a student that restores in one step",
        switch="check",
    ),
    "train baseline": Command(
        "train_baseline",
        (_TRAINING, "BaselineConfig"),
        _train_baseline,
        "one of the compared methods",
        switch="check",
    ),
    "train mini": Command(
        "train_mini", (_TRAINING, "MiniConfig"), _train_mini, "mini in a given number of minutes"
    ),
    "evaluate": Command(
        "evaluate",
        (_EVALUATING, "EvaluateConfig"),
        _evaluate,
        "restore a suite with several methods and compare them",
        extra="eval",
        flags=("suite", "method"),
    ),
    "prepare": Command(
        "prepare_data",
        (_TRAINING, "PrepareConfig"),
        _prepare,
        "make training and test pairs of data sets or photos, or check them",
        networks=False,
        flags=("set", "root", "out"),
        switch="check",
        describe=_explain_set,
    ),
    "figures": Command(
        "make_figures",
        (_EVALUATING, "FiguresConfig"),
        _make_figures,
        "draw the paper's figures",
        extra="eval",
        networks=False,
    ),
}
"""Command, without the program's name -> script."""


def find_command(words: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """Return the command that a command line begins with, and the words behind it; None: it is no script."""
    for length in (1, 2):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    return None, words


def run_command(name: str) -> None:
    """Run a script on `sys.argv`.

    Exits with status 2 and one sentence where its command line is wrong or an extra is not installed.
    """
    command = COMMANDS[name]
    module, schema = command.schema
    leave_busy_cores()
    checks = name.startswith("train ") and command.switch == "check"

    # Without the extra there may be no Hydra, whose front tells what the rest refuses.
    try:
        from diffrestorer.config.composition import run
    except ModuleNotFoundError as error:
        sentence = explain_import_error(error, command.extra)
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {sentence}\n")
        sys.exit(2)

    def act(config: Any) -> None:
        check_torchvision()
        try:
            if checks and config.check:
                _check_data(config)
                return
            if command.networks:
                import_without_unused()
            command.main(config)
        except ImportError as error:
            raise ValueError(explain_import_error(error, command.extra)) from error

    run(
        command.root,
        getattr(import_module(module), schema),
        act,
        command.flags,
        command.switch,
        command.describe,
    )
