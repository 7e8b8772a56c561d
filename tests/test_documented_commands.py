"""Every command that the documents show is one that the command line takes."""

import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from diffrestorer.cli.commands import COMMANDS, find_command
from diffrestorer.cli.parser import parse as parse_command
from diffrestorer.config.composition import load
from diffrestorer.config.overrides import parse, read_command_line

ROOT = Path(__file__).parents[1]
READ_FIRST = [
    ROOT / name for name in ("README.md", "docs/mini.md", "diffrestorer/weights/mini/README.md")
]
READ_LATER = {
    ROOT / "CONTRIBUTING.md",
    ROOT / "data/README.md",
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("diffrestorer/weights/*/README.md"),
    *ROOT.glob("diffrestorer/configs/**/*.yaml"),
} - {*READ_FIRST}
PAGES = [*READ_FIRST, *(pytest.param(page, marks=pytest.mark.soak) for page in sorted(READ_LATER))]

RECORDER = """
exec 3> calls
record() { printf '%s\\0' "$@" >&3; printf '\\n\\0' >&3; }
for program in python accelerate torchrun diffrestorer; do eval "$program() { record $program \\"\\$@\\"; }"; done
srun() { "$@"; }
enable -n kill
SLURM_CPUS_PER_TASK=4 SLURM_ARRAY_TASK_ID=0 MASTER_ADDR=HOST SLURM_NNODES=1 PATH=
"""
"""Shell in which the programs write down their arguments, and no other program exists."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_taken(page: Path, tmp_path: Path) -> None:
    # Commands that differ in a number alone are tried once.
    commands = {re.sub(r"\d+", "0", " ".join(words)): words for words in commands_of(page, tmp_path)}
    assert commands or page not in READ_FIRST

    refused = []
    for words in commands.values():
        try:
            check(words)
        except (ValueError, SystemExit) as error:
            refused.append(f"{' '.join(words)}: {error}")
    assert not refused, "\n".join(refused)


def test_pages_are_full_of_commands(tmp_path: Path) -> None:
    """A page whose commands were no longer found would pass above."""
    assert sum(len(commands_of(page, tmp_path)) for page in {*READ_FIRST, *READ_LATER}) > 150


def test_commands_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Text with `diffrestorer detect x.jpg` inside.\n\n"
        "    for seed in 1 2; do\n"
        "        python scripts/train_stage1.py seed=$seed \\\n"
        "            output_dir='a b' # a comment\n"
        "    done\n\n"
        "```bash\naccelerate launch -m diffrestorer train mini minutes=3\n```\n"
        "```\nrm -rf *; torchrun --nproc_per_node 2 scripts/train_student.py\n```\n"
    )
    assert commands_of(page, tmp_path) == [
        ["diffrestorer", "detect", "x.jpg"],
        ["python", "scripts/train_stage1.py", "seed=1", "output_dir=a b"],
        ["python", "scripts/train_stage1.py", "seed=2", "output_dir=a b"],
        ["accelerate", "launch", "-m", "diffrestorer", "train", "mini", "minutes=3"],
        ["torchrun", "--nproc_per_node", "2", "scripts/train_student.py"],
    ]


@pytest.mark.parametrize(
    "command",
    [
        "python scripts/train_stage1.py trian.max_steps=3",
        "python scripts/train_stage2.py",
        "accelerate launch scripts/train_mini.py stages.student=[patch=128,'x=1]",
        "diffrestorer restore x.jpg",
        "diffrestorer evaluate --suit all",
    ],
)
def test_a_wrong_command_is_noticed(command: str) -> None:
    with pytest.raises((ValueError, SystemExit)):
        check(command.split(" "))


def commands_of(page: Path, folder: Path) -> list[list[str]]:
    """Return the words of each command on a page, as its shell blocks and inline code make them."""
    text = page.read_text()
    if page.suffix == ".yaml":
        text = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#"))

    # Blocks are indented or fenced. One that is not shell ends in an error of its own.
    blocks = re.findall(r"`((?:python|accelerate|torchrun|diffrestorer) [^`]*)`", text)
    blocks += re.findall(r"(?:^ {3,}.*\n?(?:\n(?= {3}))?)+", text, re.MULTILINE)
    blocks += re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)

    found = []
    bash = shutil.which("bash")
    assert bash is not None
    for block in blocks:
        subprocess.run(
            [bash, "-c", RECORDER + block],
            cwd=folder,
            capture_output=True,
            timeout=1800,
            check=False,
        )
        calls = (folder / "calls").read_text().split("\n\0")[:-1]
        found += [call.split("\0")[:-1] for call in calls]
    return found


def check(words: list[str]) -> None:
    """Refuse a command line that its script or command would refuse.

    Raises:
        ValueError: of a script.
        SystemExit: of another command.
    """
    # What stands for more, and what is no command of this package's.
    text = " ".join(words)
    script = re.search(r"scripts/(\w+)\.py ?(.*)", text)
    if "..." in text or not (script or "diffrestorer" in words):
        return

    # A script by its file, or by its name as a command.
    if script:
        start = next(index for index, word in enumerate(words) if word.startswith("scripts/"))
        named = [entry for entry in COMMANDS.values() if entry.root == script[1]]
        if not named:
            raise ValueError(f"there is no script {script[1]}")
        command, rest = named[0], words[start + 1 :]
    else:
        name, rest = find_command(words[words.index("diffrestorer") + 1 :])
        if name is None:
            # A word alone is a command's name, not its use.
            if len(rest) > 1:
                parse_command(rest)
            return
        command = COMMANDS[name]
    if "--help" in rest:
        return

    # Every job of a sweep.
    schema = getattr(import_module(command.schema[0]), command.schema[1])
    line = read_command_line(rest, schema, command.flags, command.switch)
    jobs = [line.overrides]
    if line.multirun:
        own = [word for word in line.overrides if not word.startswith("hydra")]
        jobs = BasicSweeper.split_arguments(parse(own), max_batch_size=None)[0]
    for overrides in jobs:
        load(command.root, schema, overrides)
