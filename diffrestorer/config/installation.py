"""Faults of an installation that end in other libraries' tracebacks, told in one sentence."""

import importlib
import sys
from importlib.metadata import version

_UNUSED = ("bitsandbytes", "wandb")
"""diffusers imports the first and timm the second wherever it is installed (pyiqa brings bitsandbytes)."""


def check_torchvision() -> None:
    """Refuse a torchvision that does not fit the PyTorch beside it. Call before importing diffusers.

    PyTorch's CPU build beside torchvision from PyPI, which wants CUDA's libraries, is the usual case. diffusers and
    transformers import torchvision where there is one, and their own errors do not name it.

    Raises:
        ValueError: importing it fails.
    """
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        raise
    # RuntimeError of a missing operator, ImportError or OSError of a missing symbol.
    except Exception as error:
        raise ValueError(
            f"torchvision {version('torchvision')} does not fit PyTorch {version('torch')}, beside which it is "
            "installed: reinstall both together, by the command that https://pytorch.org/get-started/locally/ shows"
        ) from error


def import_without_unused() -> None:
    """Import diffusers and timm without two packages of which they use nothing here, a fifth of a command's start.

    For commands, whose process is their own. Whoever imports the two packages afterwards gets them; diffusers' own
    quantization by bitsandbytes is not there for the rest of the process.

    Raises:
        ValueError: see `check_torchvision`, which comes first.
    """
    check_torchvision()
    hidden = [name for name in _UNUSED if name not in sys.modules]
    absent: dict[str, None] = dict.fromkeys(hidden)
    sys.modules.update(absent)  # type: ignore[arg-type] # what Python takes for "not installed"
    try:
        for library in (
            "diffusers.hooks",
            "timm",
        ):  # the former imports peft, which looks for bitsandbytes too
            importlib.import_module(library)
    finally:
        for name in hidden:
            del sys.modules[name]


def explain_import_error(error: ImportError, extra: str) -> str:
    """Return a sentence about what is missing in the installation.

    Args:
        error: of an import that failed.
        extra: the optional dependencies that may bring the missing package.

    Raises:
        ImportError: the same error, if it is none of the installation: a module of this package is missing.
    """
    # A library of the system that a package wants, as on a server without a screen.
    reason = str(error)
    if "cannot open shared object file" in reason:
        library = reason.partition(":")[0]
        return f"the system's {library} is missing; {_remedy(library)}"

    # A package of an extra.
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package in ("", "diffrestorer"):
        raise error
    return f"this needs {package}, which is not installed: pip install 'diffrestorer[{extra}]'"


def _remedy(library: str) -> str:
    """Return what to do about a missing library of the system."""
    if not library.startswith(("libGL", "libgthread", "libglib")):
        return "install the package of your distribution that holds it"

    # pyiqa, of the extra eval, puts an OpenCV for screens over the one without.
    return (
        "apt-get install libgl1 libglib2.0-0, or without root: "
        "pip install --force-reinstall --no-deps opencv-python-headless"
    )
