"""Write a benchmark's own section of docs/performance.md, between two marks."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"


def write_section(path: Path, name: str, text: str) -> None:
    """Put a text between the marks of its section in a page, which is made where it is missing.

    Args:
        name: of the benchmark: `benchmarks/NAME.py` writes the section.
    """
    begin, end = f"<!-- {name}: written by benchmarks/{name}.py -->", f"<!-- {name}: end -->"
    page = path.read_text() if path.exists() else "# Performance\n\nMeasured, each by its command.\n"
    section = f"{begin}\n{text}\n{end}"

    if begin in page:
        before, rest = page.split(begin, 1)
        page = before + section + rest.split(end, 1)[1]
    else:
        page = f"{page.rstrip()}\n\n## {name.capitalize()}\n\n{section}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
