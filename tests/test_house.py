"""The habits of CONTRIBUTING.md that a program can check. Each failure names the file and the line."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "diffrestorer"

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def syntax_trees() -> dict[Path, ast.Module]:
    """Every Python file of the package, parsed."""
    files = sorted(PACKAGE.rglob("*.py"))
    assert files, f"no Python file in {PACKAGE}"
    return {file: ast.parse(file.read_text(encoding="utf-8"), filename=str(file)) for file in files}


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    """Every syntax node of the package beside its file."""
    for file, tree in syntax_trees().items():
        for node in ast.walk(tree):
            yield file, node


def place(file: Path, node: ast.AST) -> str:
    """`diffrestorer/x.py:12`."""
    return f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def refuse(offences: list[str], rule: str) -> None:
    """Fail with the rule and one line an offence."""
    if offences:
        pytest.fail(rule + "\n  " + "\n  ".join(offences), pytrace=False)


@pytest.mark.parametrize(
    "command", [("ruff", "check"), ("ruff", "format", "--check"), ("lint-imports",)], ids=str
)
def test_linters_find_nothing(command: tuple[str, ...]) -> None:
    """Ruff's rules, and the arrows between rooms: settings in pyproject.toml."""
    program = Path(sys.executable).with_name(command[0])
    answer = subprocess.run(
        [program, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_no_two_modules_share_a_name() -> None:
    names = [file.name for file in syntax_trees() if file.name != "__init__.py"]
    refuse(
        sorted({name for name in names if names.count(name) > 1}), "two modules of one name: rename one"
    )


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {file.parent for file in syntax_trees()}
    missing = [
        str(folder.relative_to(ROOT))
        for folder in sorted(folders)
        if not (folder / "__init__.py").exists()
    ]
    refuse(missing, "a folder of modules without __init__.py is left out of the wheel")


def test_files_are_short() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in syntax_trees()}
    offences = [
        f"{file.relative_to(ROOT)}: {n} lines" for file, n in lengths.items() if n > MAX_FILE_LINES
    ]
    refuse(offences, f"no file over {MAX_FILE_LINES} lines: split it where its two subjects meet")


def test_functions_are_short() -> None:
    offences = []
    for file, node in nodes():
        if isinstance(node, FunctionNode):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                offences.append(f"{place(file, node)}: {node.name} has {lines} lines")
    refuse(offences, f"no function over {MAX_FUNCTION_LINES} lines")


def test_import_path_is_left_alone() -> None:
    offences = [place(file, node) for file, node in nodes() if ast_text(node) == "sys.path"]
    refuse(offences, "sys.path is not ours to change: install the package (make test does)")


PICKLES_BY_A_LIST = "diffrestorer/models/weight_files.py"
"""Its reader of TorchScript archives refuses every name that is not on a short list; it has tests of attacks."""


def test_no_pickles() -> None:
    offences = []
    for file, node in nodes():
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        loads = isinstance(node, ast.Call) and ast_text(node.func) == "torch.load"
        safe = loads and any(
            w.arg == "weights_only" and ast.unparse(w.value) == "True" for w in node.keywords
        )
        if place(file, node).startswith(PICKLES_BY_A_LIST):
            continue
        if (loads and not safe) or {"pickle", "cPickle", "dill", "torch.load"} & set(modules):
            offences.append(place(file, node))
    refuse(
        offences, "no pickle: weights are safetensors, and foreign ones are read with weights_only=True"
    )


def test_nothing_is_left_to_do() -> None:
    offences = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in syntax_trees()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"\b(TODO|FIXME|XXX)\b", line)
    ]
    refuse(offences, "do it now or open an issue")


def public_definitions(
    body: list[ast.stmt], owner: str = ""
) -> Iterator[tuple[str, FunctionNode | ast.ClassDef]]:
    """Public functions and classes of a module, and public methods; a module's `forward` is covered by its class."""
    for node in body:
        if isinstance(node, FunctionNode | ast.ClassDef) and not node.name.startswith("_"):
            repeats = any(
                ast_text(mark).endswith((".setter", "overload")) for mark in node.decorator_list
            )
            if not repeats and not (owner and node.name == "forward"):
                yield owner + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{owner}{node.name}.")


def test_public_names_have_docstrings() -> None:
    offences = [
        f"{place(file, node)}: {name}"
        for file, tree in syntax_trees().items()
        for name, node in public_definitions(tree.body)
        if not ast.get_docstring(node)
    ]
    refuse(
        offences, "every public function and class says what it does: shapes, ranges, errors, source"
    )


def ast_text(node: ast.AST) -> str:
    """`torch.Tensor` for the node of that name, an empty string for anything that is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = ast_text(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def bare_tensors(annotation: ast.AST) -> Iterator[ast.AST]:
    """The tensors of an annotation that stand outside `Float[Tensor, "axes"]` and `dict[str, Tensor]` (state dicts)."""
    if ast_text(annotation) in ("Tensor", "torch.Tensor"):
        yield annotation
    elif isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            yield from bare_tensors(
                ast.parse(annotation.value, mode="eval").body
            )  # a quoted annotation
        except SyntaxError:
            return
    elif isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        first, *others = annotation.slice.elts
        with_axes = any(
            isinstance(other, ast.Constant) and isinstance(other.value, str) for other in others
        )
        by_name = ast_text(annotation.value) in ("dict", "Mapping") and ast_text(first) == "str"
        if by_name and ast_text(others[0]) in ("Tensor", "torch.Tensor"):
            return
        if not (with_axes and ast_text(first) in ("Tensor", "torch.Tensor")):
            for element in annotation.slice.elts:
                yield from bare_tensors(element)
    else:
        for child in ast.iter_child_nodes(annotation):
            yield from bare_tensors(child)


def annotations(node: ast.AST) -> list[ast.expr]:
    """The annotations that a function or a variable carries."""
    if isinstance(node, FunctionNode):
        return [node.returns] if node.returns else []
    if isinstance(node, ast.arg | ast.AnnAssign):
        return [node.annotation] if node.annotation else []
    return []


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ('Float[Tensor, "b 3 h w"]', 0),
        ('tuple[Float[Tensor, "b 3 h w"], Int[torch.Tensor, "b"] | None]', 0),
        ("dict[str, Tensor]", 0),
        ('list[Float[Tensor, "..."]]', 0),
        ("Tensor", 1),
        ("'torch.Tensor | None'", 1),
        ("list[Tensor]", 1),
        ("Callable[[Tensor], Tensor]", 2),
    ],
)
def test_bare_tensors_are_found(text: str, bare: int) -> None:
    assert len(list(bare_tensors(ast.parse(text, mode="eval").body))) == bare


def test_tensor_annotations_carry_axes() -> None:
    offences = [
        f"{place(file, node)}: {ast.unparse(annotation)}"
        for file, node in nodes()
        for annotation in annotations(node)
        if any(bare_tensors(annotation))
    ]
    refuse(
        offences,
        'a tensor\'s axes stand in its annotation, Float[Tensor, "b 3 h w"]; any shape is "..."',
    )


def test_wrong_shapes_are_refused() -> None:
    """The import hook of conftest.py is live: without it the annotations check nothing."""
    from diffrestorer.models.prompt_processor import VisualPrompts

    right = [torch.zeros(2, 768), torch.zeros(2, 1, 768), torch.zeros(2, 256), torch.zeros(2, 8)]
    VisualPrompts(*right)
    with pytest.raises(jaxtyping.TypeCheckError):
        VisualPrompts(*right[:3], torch.zeros(3, 8))


def test_files_name_no_registry_and_no_machine_path() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    # Character classes keep the patterns from finding themselves.
    registry = rb"https?://[^\s/]*(py[p]i|python[h]osted|download\.py[t]orch|ana[c]onda|deb\.[d]ebian|artifac[t]ory)"
    forbidden = re.compile(registry + rb"|/[w]ork/|\.\./[s]hared")
    offences = []
    for name in filter(None, listing.stdout.decode().split("\0")):
        file = ROOT / name
        content = file.read_bytes() if file.is_file() else b""
        if b"\0" in content[:8192]:
            continue  # pictures and weights
        for number, line in enumerate(content.splitlines(), start=1):
            if found := forbidden.search(line):
                offences.append(f"{name}:{number}: {found.group().decode(errors='replace')}")
    refuse(offences, "files name no package registry and no path of one machine")


def texts_of(tree: ast.Module) -> Iterator[ast.Constant]:
    """String constants that a user may read: all but docstrings."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
        ):
            yield node


def test_messages_name_commands_not_scripts() -> None:
    """Whoever installed a wheel has `diffrestorer prepare` and no scripts/prepare_data.py."""
    names = "|".join(path.stem for path in sorted((ROOT / "scripts").glob("*.py")))
    script = re.compile(rf"\bscripts/|\b(?:{names})\.py\b")
    found = [
        place(file, text)
        for file, tree in syntax_trees().items()
        for text in texts_of(tree)
        if script.search(str(text.value))
    ]
    assert found == []


def test_help_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "from diffrestorer.cli import main\n"
        "sys.argv = ['diffrestorer', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'diffusers', 'open_clip', 'gradio'} & set(sys.modules)\n"
        "assert not heavy, f'--help imports {heavy}'\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "restore" in answer.stdout
