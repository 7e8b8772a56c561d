"""The pictures in docs/ show the weights that ship."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("pictures", ROOT / "benchmarks" / "pictures.py")
assert SPEC is not None
assert SPEC.loader is not None
pictures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pictures)

ADVICE = "make it again: python benchmarks/pictures.py"


def test_every_picture_of_the_documentation_is_recorded() -> None:
    there = {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".jpg")}
    rows = json.loads(pictures.RECORD.read_text())
    assert set(rows) == set(pictures.PICTURES)
    assert there == {*rows, *pictures.OTHER_WEIGHTS}


def test_pictures_are_of_the_shipped_weights() -> None:
    expected = pictures.weights_digest()
    for name, row in json.loads(pictures.RECORD.read_text()).items():
        assert row["sha256"] == pictures.file_digest(ROOT / "docs" / name), f"{name}: {ADVICE} {name}"
        if name in pictures.WITHOUT_WEIGHTS:
            assert row["weights"] is None
        else:
            assert row["weights"] == expected, f"{name} shows other weights; {ADVICE} {name}"
