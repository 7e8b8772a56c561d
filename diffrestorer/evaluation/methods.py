"""What is compared: the degraded input, a model with one of its decoders, a compared method, outputs made elsewhere."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffrestorer.config.schema import EvaluateConfig
from diffrestorer.evaluation.files import read_pixels, write_bytes
from diffrestorer.evaluation.suites import Item, Suite

BUILT_IN: dict[str, str] = {
    "degraded": "degraded input",
    "diff_restorer_sd": "SD decoder",
    "diff_restorer": "refined decoder",
}
"""Methods that are there without a folder, in the order of tables and pages, and their titles."""


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: as in scores.csv; its outputs lie in `restored/NAME/DEGRADATION/IMAGE.png`.
        kind: `degraded` (the input is the output), `model` (we restore), `baseline` (a compared method restores) or
            `outputs` (a folder, copied).
        source: what DiffRestorerPipeline.from_pretrained or load_baseline loads, or the folder of outputs.
        decoder: which decoder of the model: the refined one, or the plain one of the VAE.
    """

    name: str
    kind: Literal["degraded", "model", "baseline", "outputs"]
    source: str = ""
    decoder: Literal["refined", "sd"] = "refined"

    @property
    def title(self) -> str:
        """The name for people."""
        return BUILT_IN.get(self.name, self.name)

    def output(self, item: Item, output_dir: Path) -> Path:
        """The PNG file that is scored."""
        return item.lq if self.kind == "degraded" else output_dir / "restored" / self.name / item.file


def parse_methods(config: EvaluateConfig) -> list[Method]:
    """The methods that `config.method` names: `NAME`, `NAME=FOLDER` or `all`.

    FOLDER is a model (it holds model_index.json, or a training run's model/ does), a compared method that
    `train_baseline.py` trained (or a file with its authors' weights), or outputs made elsewhere as
    DEGRADATION/IMAGE.png. A model under a name that ends in `_sd` uses the VAE's own decoder.

    Raises:
        ValueError: an unknown or doubled name, or a folder that is none of these.
    """
    entries = [name for entry in config.method for name in (BUILT_IN if entry == "all" else (entry,))]
    if not entries:
        raise ValueError(f"method is empty; choose from {', '.join(BUILT_IN)}, NAME=FOLDER, all")
    methods = [_parse(entry, config) for entry in entries]
    names = [method.name for method in methods]
    doubled = [name for name in names if names.count(name) > 1]
    if doubled:
        raise ValueError(f"method names {doubled[0]} twice")
    return methods


def _parse(entry: str, config: EvaluateConfig) -> Method:
    name, equals, folder = entry.partition("=")
    decoder: Literal["refined", "sd"] = "sd" if name.endswith("_sd") else "refined"
    if not equals:
        if name not in BUILT_IN:
            offer = ", ".join(BUILT_IN)
            raise ValueError(f"method={name} is not there by itself: {offer} are; others as {name}=FOLDER")
        return Method(name, "degraded") if name == "degraded" else Method(name, "model", config.model, decoder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name) or name in ("degraded", "all", "clean"):
        raise ValueError(f"method={entry}: {name!r} can't be the name of a method; letters, digits and _.+- can")
    if any((Path(folder) / inner / "model_index.json").is_file() for inner in ("", "model")):
        return Method(name, "model", folder, decoder)
    if Path(folder).is_file():
        return Method(name, "baseline", folder)  # weights of the method's authors
    if not Path(folder).is_dir():
        raise ValueError(f"method={entry}: there is no folder {folder}")
    if any((Path(folder) / inner / "config.json").is_file() for inner in ("", "model")):
        _check_baseline(name, folder)
        return Method(name, "baseline", folder)
    if not any(Path(folder).glob("*/*.png")):
        raise ValueError(
            f"method={entry}: {folder} is neither a model (model_index.json) nor outputs (DEGRADATION/IMAGE.png)"
        )
    return Method(name, "outputs", folder)


def _check_baseline(name: str, folder: str) -> None:
    from diffrestorer.baselines.catalog import BASELINES, find_baseline  # brings the networks, which take seconds

    found = next(filter(None, (find_baseline(Path(folder) / inner) for inner in ("", "model"))), None)
    if found is None or (name in BASELINES and name != found):
        holds = found or f"none of the compared methods {', '.join(BASELINES)}"
        raise ValueError(f"method={name}={folder}: {folder} holds {holds}")


def collect_outputs(methods: Sequence[Method], suite: Suite, output_dir: Path) -> None:
    """Copies outputs made elsewhere beside our own, so that `output_dir` is complete.

    Raises:
        ValueError: files are missing or have another size than the reference; the message names the first ones.
    """
    for method in methods:
        if method.kind == "outputs":
            _check_outputs(method, suite)
            (output_dir / "restored" / method.name / "made_by.json").unlink(missing_ok=True)
            for item in suite.items:
                write_bytes(method.output(item, output_dir), (Path(method.source) / item.file).read_bytes())


def _check_outputs(method: Method, suite: Suite) -> None:
    folder = Path(method.source)
    missing = [item.file for item in suite.items if not (folder / item.file).is_file()]
    if missing:
        raise ValueError(f"{method.name}: {folder} lacks {_some(missing)}")
    other = []
    for item in suite.items:
        size, expected = (read_pixels(path).shape[:2] for path in (folder / item.file, item.gt))
        if size != expected:
            other.append(f"{item.file} ({size[1]}x{size[0]}, not {expected[1]}x{expected[0]})")
    if other:
        raise ValueError(f"{method.name}: of another size in {folder}: {_some(other)}")


def _some(names: Sequence[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
