"""Degradations from a user's Python file: what it may be, what it is given, and the sentences about what it is not."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from miniatures import scene

from diffrestorer.config.schema import DataConfig
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.own_synthesis import load_synthesis
from diffrestorer.data.pairs import SynthesisedPairs
from diffrestorer.data.prepared import open_pairs
from diffrestorer.data.synthesis import degrade

FILE = """
from dataclasses import dataclass
import numpy as np
from numpy import flip

@dataclass
class Dust:
    weight: float = 0.5

def fog(image, rng):
    image[:] = np.rint(Dust().weight * image)  # its own copy
    return image + rng.integers(0, 9, image.shape, dtype=np.uint8)

def noise(image, rng):
    return 255 - image

def _helper(image):
    return image
"""


@pytest.fixture
def module(tmp_path: Path) -> str:
    path = tmp_path / "my_degradations.py"
    path.write_text(FILE)
    return str(path)


def test_functions_make_pairs_under_the_counters(photos_dir: Path, module: str) -> None:
    classes = ["noise", "fog", "clean"]
    config = replace(
        DataConfig("photos", str(photos_dir), 32), classes=classes, synthesis_module=module
    )
    pairs = open_pairs(config, 3, 2)
    assert isinstance(pairs, SynthesisedPairs)
    seen = set()
    for key in ((step, position) for step in range(6) for position in range(2)):
        pair, again = pairs[key], open_pairs(config, 3, 2)[key]
        assert np.array_equal(pair.lq, again.lq)
        name = classes[pair.label]
        seen.add(name)
        rng = counter_rng(3, "degradation", *key)
        expected = {
            "noise": 255 - pair.gt,
            "fog": np.rint(0.5 * pair.gt).astype(np.uint8)
            + rng.integers(0, 9, pair.gt.shape, dtype=np.uint8),
            "clean": pair.gt,
        }
        assert np.array_equal(pair.lq, expected[name]), "a function wins over a built-in class"
    assert seen == set(classes)


def test_only_functions_of_the_file_named_like_classes_count(module: str) -> None:
    own = load_synthesis(module, ["noise", "fog", "flip", "Dust", "_helper"])
    assert sorted(own.functions) == ["fog", "noise"]
    assert own.sha256 == hashlib.sha256(FILE.encode()).hexdigest()
    assert "fog" not in load_synthesis(None, ["fog"])
    image = scene(1)
    before = image.copy()
    own.degrade(image, "fog", counter_rng(0, "x"))
    assert np.array_equal(image, before), "the function got a copy"


def test_other_classes_stay_as_they_are(photos_dir: Path, module: str) -> None:
    config = replace(
        DataConfig("photos", str(photos_dir), 32), classes=["blur", "fog"], synthesis_module=module
    )
    pairs = SynthesisedPairs(config, 0, 1)
    key = next((step, 0) for step in range(8) if pairs.source(step, 0)[1] == "blur")
    pair = pairs[key]
    assert np.array_equal(pair.lq, degrade(pair.gt, "blur", counter_rng(0, "degradation", *key)))
    changed = Path(module)
    before = pairs.fingerprint()
    changed.write_text(FILE.replace("0.5", "0.6"))
    assert SynthesisedPairs(config, 0, 1).fingerprint() != before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return image.astype('float32')",
            r"fog\(\) in .*my\.py returned float32 \(48, 56, 3\), not uint8",
        ),
        ("return image[:9]", r"returned uint8 \(9, 56, 3\), not uint8 \(48, 56, 3\)"),
        ("pass", r"returned NoneType, not uint8"),
        ("import sys; sys.exit()", r"failed \(SystemExit: \)"),
        ("return image + missing", r"failed \(NameError: name 'missing' is not defined\); mend"),
    ],
)
def test_what_a_function_returns_is_checked(body: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "my.py"
    path.write_text(f"def fog(image, rng):\n    {body}\n")
    own = load_synthesis(str(path), ["fog"])
    with pytest.raises(ValueError, match=message):
        own.degrade(scene(1), "fog", counter_rng(0, "x"))


def test_an_unusable_file_is_one_sentence(photos_dir: Path, tmp_path: Path) -> None:
    def refused(
        match: str, text: str | None, data: str = "photos", classes: tuple[str, ...] = ("fog",)
    ) -> None:
        path = tmp_path / "my.py"
        if text is not None:
            path.write_text(text)
        config = DataConfig(data, str(photos_dir), 32)
        with pytest.raises(ValueError, match=match) as caught:
            open_pairs(replace(config, classes=list(classes), synthesis_module=str(path)), 0, 1)
        assert "\n" not in str(caught.value)

    refused(r"my\.py is not a Python file", None)
    refused("cannot be loaded: SyntaxError", "def fog(image, rng:\n")
    refused("cannot be loaded: ModuleNotFoundError", "import nothing_like_this\n")
    refused("cannot be loaded: SystemExit: 0", "import sys\nsys.exit(0)\n")
    refused(r"has the functions \[fgo\], none of which .* which are fog$", "def fgo(i, r): return i\n")
    refused("photos can't be given sand: .*FILE.py that makes it", FILE, classes=("fog", "sand"))
    refused("pairs of your own are degraded already", FILE, data="pairs")
    refused("give it with data=photos", FILE, data="manifest")
