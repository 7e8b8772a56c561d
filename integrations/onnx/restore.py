"""Restore photos with an exported student.

    python restore.py restorer.onnx photo.jpg ... -o restored

Needs numpy, pillow and onnxruntime, and neither PyTorch nor diffrestorer. `diffrestorer export` writes restorer.onnx.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by ONNX Runtime when it is imported

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def pad(image: np.ndarray, multiple: int) -> np.ndarray:
    """Pad an image (h, w, 3) right and bottom by reflection to a multiple; a tiny one then repeats its edge."""
    for axis in (0, 1):
        missing = -image.shape[axis] % multiple
        reflected = min(missing, image.shape[axis] - 1)
        for amount, mode in ((reflected, "reflect"), (missing - reflected, "edge")):
            widths = [(0, 0)] * 3
            widths[axis] = (0, amount)
            image = np.pad(image, widths, mode=mode)
    return image


def restore(session: onnxruntime.InferenceSession, image: np.ndarray) -> np.ndarray:
    """Restore an image (h, w, 3) of uint8, of any size that fits into memory whole."""
    height, width = image.shape[:2]
    multiple = int(session.get_modelmeta().custom_metadata_map["multiple"])
    padded = pad(image, multiple).astype(np.float32).transpose(2, 0, 1)[None] / 255
    inputs = {"image": padded, "size": np.array([height, width], np.int64)}
    restored = session.run(["restored"], inputs)[0][0, :, :height, :width]
    return np.round(restored.transpose(1, 2, 0) * 255).astype(np.uint8)


def main() -> int:
    """Restore the photos of the command line as PNG; return 1 if one of them could not be read."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="restorer.onnx")
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for the restored photos"
    )
    arguments = parser.parse_args()

    # ONNX Runtime's errors have no class in common.
    try:
        session = onnxruntime.InferenceSession(arguments.model)
    except Exception as error:
        parser.error(f"{arguments.model} can't be loaded: {str(error).splitlines()[0]}")
    arguments.output.mkdir(parents=True, exist_ok=True)

    status = 0
    for path in arguments.photos:
        try:
            photo = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        except OSError as error:
            print(f"restore.py: {path}: {error}", file=sys.stderr)
            status = 1
            continue
        restored = restore(session, np.asarray(photo))
        Image.fromarray(restored).save(arguments.output / f"{path.stem}.png")
    return status


if __name__ == "__main__":
    sys.exit(main())
