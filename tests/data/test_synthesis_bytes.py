"""With default parameters every class and mixture gives the bytes it has always given: trained weights rest on them.

`synthesis_bytes.json` holds checksums of outputs, and of what OpenCV and NumPy make of a few plain operations: a
processor without AVX2 and FMA rounds these differently, and nothing can be said about our bytes there. After a
deliberate change of a default: `pytest tests/data/test_synthesis_bytes.py --record-golden`.
"""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.data.synthesis import degrade

CHECKSUMS = Path(__file__).with_name("synthesis_bytes.json")
CROPS = {"160x120": np.s_[40:160, 180:340], "256x256": np.s_[:256, 100:356]}
SEEDS = range(4)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def checksums(name: str) -> list[str]:
    """Of the outputs, and of what the generator gives next."""
    found = []
    for crop in CROPS.values():
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            degraded = degrade(np.ascontiguousarray(skimage.data.astronaut()[crop]), name, rng)
            found.append(digest(degraded.tobytes() + rng.bytes(8)))
    return found


def arithmetic() -> str:
    """A checksum of the libraries' own float operations and JPEG codec."""
    rng = np.random.default_rng(0)
    image = rng.random((64, 64, 3), dtype=np.float32)
    rows, columns = np.mgrid[0:64, 0:64].astype(np.float32) * np.float32(0.97)
    results = [
        np.exp(-image),
        np.arctan2(image, image[::-1]),
        np.cos(image),
        np.hypot(image, image[::-1]),
        cv2.GaussianBlur(image, (0, 0), 1.7),
        cv2.filter2D(image, -1, rng.random((15, 15), dtype=np.float32)),
        cv2.remap(image, columns, rows, cv2.INTER_LINEAR),
        cv2.imdecode(cv2.imencode(".jpg", (image * 255).astype(np.uint8))[1], cv2.IMREAD_COLOR),
    ]
    return digest(b"".join(result.tobytes() for result in results))


@pytest.mark.parametrize("name", [*DEGRADATIONS, *MIXTURES])
def test_bytes_are_those_recorded(name: str, request: pytest.FixtureRequest) -> None:
    recorded = json.loads(CHECKSUMS.read_text())
    if request.config.getoption("--record-golden"):
        CHECKSUMS.write_text(
            json.dumps({**recorded, "arithmetic": arithmetic(), name: checksums(name)}, indent=1) + "\n"
        )
    elif recorded["arithmetic"] != arithmetic():
        pytest.skip("OpenCV or NumPy computes otherwise here than where the checksums were recorded")
    else:
        assert checksums(name) == recorded[name]
