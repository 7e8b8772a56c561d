"""Restore photos with an exported student.

    python restore.py restorer.onnx photo.jpg ... -o restored

Needs numpy, pillow and onnxruntime, and neither PyTorch nor diffrestorer. `diffrestorer export` writes restorer.onnx.
Photos have one picture of 8 bits per channel; others are refused.
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


def read(path: Path) -> np.ndarray:
    """Read a photo as uint8 (h, w, 3), upright; refuse what would lose pictures or depth."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with Image.open(path) as image:
        # The second picture of a phone's MPO is a preview.
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise ValueError("it holds several pictures: save the one to restore")
        if image.mode[0] in "IF" or ";16" in str([tile[3] for tile in image.tile]):
            raise ValueError("it has more than 8 bits per channel: save it with 8")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def restore(session: onnxruntime.InferenceSession, multiple: int, image: np.ndarray) -> np.ndarray:
    """Restore an image (h, w, 3) of uint8, of any size that fits into memory whole."""
    height, width = image.shape[:2]
    padded = pad(image, multiple).astype(np.float32).transpose(2, 0, 1)[None] / 255
    inputs = {"image": padded, "size": np.array([height, width], np.int64)}
    restored = session.run(["restored"], inputs)[0][0, :, :height, :width]
    return np.round(restored.transpose(1, 2, 0) * 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (h, w, 3) as a PNG that appears whole or not at all."""
    partial = path.with_name(f".restore-{os.getpid()}.tmp")
    try:
        Image.fromarray(pixels).save(partial, "PNG")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def reason(error: Exception) -> str:
    """Return an error's first line; some have none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def main() -> int:
    """Restore the photos of the command line as PNG; return 1 if one of them could not be restored."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="restorer.onnx")
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="another folder")
    arguments = parser.parse_args()
    model, output = arguments.model, arguments.output

    # The errors of ONNX Runtime and of Pillow have no class in common.
    try:
        session = onnxruntime.InferenceSession(model)
        multiple = int(session.get_modelmeta().custom_metadata_map.get("multiple", 0))
        if multiple < 1:
            raise ValueError("its metadata has no multiple, so diffrestorer did not export it")
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{output} can't be written: {error.strerror}")
    except Exception as error:
        parser.error(f"{model} can't be loaded: {reason(error)}")

    # A result must replace neither an original nor another result.
    originals = [*arguments.photos, *map(os.path.realpath, arguments.photos)]
    if os.path.realpath(output) in [os.path.realpath(os.path.dirname(file)) for file in originals]:
        parser.error(f"{output} holds photos to restore: choose another folder")
    sources: dict[str, Path] = {}
    status = 0
    for path in arguments.photos:
        try:
            if (first := sources.setdefault(path.stem.lower(), path)) is not path:
                raise ValueError(f"{first} has the same name: give them different folders")
            write(output / f"{path.stem}.png", restore(session, multiple, read(path)))
        except Exception as error:
            print(f"restore.py: {path}: {reason(error)}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
