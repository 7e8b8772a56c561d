"""Degradations of a user's own: functions in a Python file (`data.synthesis_module`), one per class, by its name."""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffrestorer.data.degrading.pixels import Image

Degrade = Callable[[Image, np.random.Generator], Image]

MEND_FUNCTION = "mend that function"
"""End of the sentences about a function that cannot be used."""

_MODULE = "diffrestorer_synthesis_module"


@dataclass(frozen=True)
class OwnSynthesis:
    """The functions of a file.

    Attributes:
        path: of the file; empty where there is none.
        functions: class -> function of a clean image, uint8 (h, w, 3), and a generator, which returns the degraded one.
        sha256: of the file; empty where there is none.
    """

    path: str = ""
    functions: Mapping[str, Degrade] = field(default_factory=dict)
    sha256: str = ""

    def __contains__(self, name: str) -> bool:
        return name in self.functions

    def degrade(self, image: Image, name: str, rng: np.random.Generator) -> Image:
        """Return a degraded copy of an image.

        Args:
            image: uint8 (h, w, 3); it is not changed.
            name: class.
            rng: the only source of randomness that the function is given.

        Raises:
            ValueError: the function fails, or returns anything but uint8 of the same shape.
        """
        try:
            degraded = self.functions[name](image.copy(), rng)
        except (Exception, SystemExit) as error:  # it is anybody's code
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{name}() in {self.path} failed ({reason}); {MEND_FUNCTION}") from error

        is_array = isinstance(degraded, np.ndarray)
        found = f"{degraded.dtype} {degraded.shape}" if is_array else type(degraded).__name__
        if found != f"uint8 {image.shape}":
            sentence = f"{name}() in {self.path} returned {found}, not uint8 {image.shape}"
            raise ValueError(f"{sentence}; {MEND_FUNCTION}")
        return np.ascontiguousarray(degraded)


def load_synthesis(path: str | None, classes: Sequence[str]) -> OwnSynthesis:
    """Run a Python file and return its functions that are named like classes; without a file there are none.

    A function takes precedence over a degradation of this package that has its name.

    Args:
        path: of the file, or null.
        classes: that are trained on.

    Raises:
        ValueError: the file is missing or fails, or has no function named like a class.
    """
    if not path:
        return OwnSynthesis()
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise ValueError(f"data.synthesis_module={path} is not a Python file (NAME.py)")

    # Registered while it runs, as dataclasses in it need.
    spec = importlib.util.spec_from_file_location(_MODULE, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it is anybody's code
        raise ValueError(
            f"data.synthesis_module={path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error

    # Functions of the file itself, not those that it imports.
    own = {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == _MODULE and not name.startswith("_")
    }
    named = {name: function for name, function in own.items() if name in classes}
    if not named:
        raise ValueError(
            f"data.synthesis_module={path} has the functions [{','.join(own)}], none of which is named like a class "
            f"that is trained on: name it in data.classes=[...], which are {', '.join(classes)}"
        )
    return OwnSynthesis(path, named, hashlib.sha256(file.read_bytes()).hexdigest())
