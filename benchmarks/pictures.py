"""Make the pictures in docs/ with the bundled weights, and record in docs/pictures.json which weights they show.

    python benchmarks/pictures.py                    # all that need nothing but this clone (and Chromium)
    python benchmarks/pictures.py tiles.png app.png  # these
    python benchmarks/pictures.py mini_figure10.png --data PREPARED     # test images of docs/mini.md

A test refuses a picture of other weights than those that ship.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RECORD = DOCS / "pictures.json"
WEIGHTS = ROOT / "diffrestorer" / "weights" / "mini"

WITHOUT_WEIGHTS = ("degradations.png",)
"""Pictures that no network has drawn."""

OTHER_WEIGHTS = ("student.jpg",)
"""Pictures of weights that do not ship; the page that shows one says how it was made."""

PICTURES = (
    "degradations.png",
    "tiles.png",
    "demo.jpg",
    "real.jpg",
    "report.png",
    "app.png",
    "mini_figure10.png",
)
DEMO_WIDTH = 1400

REAL = ("clock_motion.png", "page.png", "text.png")
"""Photos of scikit-image (CC0) that a camera itself spoilt."""
REAL_WIDTH = 384


def weights_digest() -> str:
    """Return the SHA-256 of the bundled tensors: names and contents of the files, by name."""
    digest = hashlib.sha256()
    for path in sorted(WEIGHTS.rglob("*.safetensors")):
        digest.update(path.relative_to(WEIGHTS).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(*command: str) -> None:
    """Run a Python file of this clone."""
    print(*command, flush=True)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, check=True
    )


def make(wanted: list[str], data: str | None, folder: Path) -> None:
    """Make pictures in docs/.

    Args:
        wanted: names.
        data: prepared test images for Figure 10.
        folder: for what is made on the way.
    """
    for name in ("degradations", "tiles"):
        if f"{name}.png" in wanted:
            run("scripts/make_figures.py", f"figure={name}")

    # The sheet and the page are of one evaluation.
    if {"demo.jpg", "report.png"} & set(wanted):
        run("scripts/evaluate.py", "--suite", "demo", f"output_dir={folder / 'demo'}")
    if "demo.jpg" in wanted:
        sheet = Image.open(folder / "demo" / "contact_sheet.png").convert("RGB")
        height = round(sheet.height * DEMO_WIDTH / sheet.width)
        smaller = sheet.resize((DEMO_WIDTH, height), Image.Resampling.LANCZOS)
        smaller.save(DOCS / "demo.jpg", quality=88)
    if "report.png" in wanted:
        run("tests/browser.py", str(folder / "demo" / "index.html"), "docs/report.png")

    if "real.jpg" in wanted:
        save_real(DOCS / "real.jpg")
    if "app.png" in wanted:
        run("tests/app_runs.py", "docs/app.png")
    if "mini_figure10.png" in wanted:
        run("scripts/make_figures.py", "figure=10", f"data.root={data}", f"output_dir={folder}")
        (folder / "figure10.png").replace(DOCS / "mini_figure10.png")


def save_real(path: Path) -> None:
    """Save a sheet of `REAL`: each photo, restored, and restored when the model is told of a blur."""
    import skimage

    from diffrestorer import DiffRestorerPipeline

    pipe = DiffRestorerPipeline.from_pretrained(WEIGHTS)
    rows = []
    for name in REAL:
        photo = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
        photo = photo.resize((REAL_WIDTH, round(photo.height * REAL_WIDTH / photo.width)))
        restored = [pipe(photo, degradation=told).images[0] for told in (None, "blur")]
        rows.append(np.concatenate([photo, *restored], axis=1))
    Image.fromarray(np.concatenate(rows)).save(path, quality=90)


def record(names: list[str]) -> None:
    """Write to docs/pictures.json which weights the pictures show now, and their checksums."""
    rows = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in names:
        weights = None if name in WITHOUT_WEIGHTS else weights_digest()
        rows[name] = {"sha256": file_digest(DOCS / name), "weights": weights}
    RECORD.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Make the pictures and record them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help=", ".join(PICTURES))
    parser.add_argument("--data", metavar="PREPARED", help="for mini_figure10.png")
    arguments = parser.parse_args()

    wanted = arguments.pictures or [
        name for name in PICTURES if arguments.data or "figure10" not in name
    ]
    unknown = set(wanted) - set(PICTURES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(PICTURES)}")
    if "mini_figure10.png" in wanted and not arguments.data:
        parser.error("mini_figure10.png needs --data PREPARED")

    with tempfile.TemporaryDirectory() as folder:
        make(wanted, arguments.data, Path(folder))
    record(wanted)


if __name__ == "__main__":
    main()
