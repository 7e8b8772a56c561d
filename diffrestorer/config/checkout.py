"""The checkout that this package runs from."""

import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """Return the commit of the checkout this package runs from; None where it runs from an installed copy."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    answer = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() if answer.returncode == 0 else None
