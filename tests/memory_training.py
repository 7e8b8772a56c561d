"""Stage 1 from `memory://`, which lives in one process: `memory_training.py FOLDER ARGUMENTS` copies a folder there."""

import runpy
import sys
from pathlib import Path

import fsspec

URL = "memory://prepared"

if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    files = fsspec.filesystem("memory")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        files.pipe_file(f"prepared/{file.relative_to(folder).as_posix()}", file.read_bytes())
    script = Path(__file__).resolve().parents[1] / "scripts" / "train_stage1.py"
    runpy.run_path(str(script), run_name="__main__")
