"""The notebook of the documentation runs from its first cell to its last."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "restore.ipynb"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs() -> None:
    """They are megabytes, and belong to one machine."""
    notebook = read()
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.soak
def test_it_runs(tmp_path: Path) -> None:
    # In an empty folder: it takes its photo from the package.
    notebook = read()
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()

    # Each cell that ends in an image shows one, and the probabilities are printed.
    shown = [cell for cell in notebook.cells if "image/png" in str(cell.get("outputs"))]
    assert len(shown) == 3
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert printed.count("%") == 3
