"""The paper's equations and named blocks: each stands at exactly one place of the code, on a line `Paper: ...`."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "diffrestorer"
NAMED = (*(f"Eq. {number}" for number in range(1, 9)), "DMB", "DRB", "CD")
NAME = re.compile(r"\bEqs?\. \d+|\b(?:DMB|DRB|CD)\b")


def paper_lines(file: Path) -> list[tuple[str, str]]:
    """(place, text) of each docstring line of a file that begins with `Paper:`."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            owner = getattr(node, "name", "module")
            for line in (ast.get_docstring(node) or "").splitlines():
                if line.strip().startswith("Paper:"):
                    found.append((f"{file.relative_to(PACKAGE.parent)}: {owner}", line.strip()))
    return found


def test_each_equation_and_block_has_one_place() -> None:
    places = defaultdict(list)
    for file in sorted(PACKAGE.rglob("*.py")):
        for place, line in paper_lines(file):
            names = NAME.findall(line)
            assert names, f"{place}: {line!r} names no equation and no block"
            for name in names:
                places[name].append(place)
    missing = [f"{name} stands nowhere" for name in NAMED if not places[name]]
    twice = [
        f"{name} stands {len(p)} times: {'; '.join(p)}" for name, p in places.items() if len(p) > 1
    ]
    unknown = [
        f"{name} is not in the paper: {'; '.join(p)}" for name, p in places.items() if name not in NAMED
    ]
    if offences := missing + twice + unknown:
        pytest.fail(
            "a docstring line `Paper: Eq. 3, DMB` is the map\n  " + "\n  ".join(offences), pytrace=False
        )


def test_the_map_leads_to_the_right_code() -> None:
    """A few that could be swapped unnoticed."""
    by_name = {
        name: place.split(": ")[1]
        for file in PACKAGE.rglob("*.py")
        for place, line in paper_lines(file)
        for name in NAME.findall(line)
    }
    assert by_name["Eq. 1"] == "degradation_similarity"
    assert by_name["Eq. 2"] == "PromptProcessor"
    assert by_name["Eq. 3"] == by_name["DMB"] == "DegradationModulationBlock"
    assert by_name["Eq. 4"] == "reconstruction_loss"
    assert by_name["Eq. 5"] == by_name["DRB"] == "DegradationAwareRefinementBlock"
    assert by_name["Eq. 6"] == "diffusion_loss"
    assert by_name["Eq. 7"] == "stage1_loss"
    assert by_name["Eq. 8"] == "decoder_loss"
    assert by_name["CD"] == "ControlDecoder"
