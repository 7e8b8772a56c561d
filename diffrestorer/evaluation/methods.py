"""The compared methods: the degraded input itself, a model with one of its decoders, or outputs made elsewhere."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from diffrestorer.data.storage import write_bytes
from diffrestorer.evaluation.ablations import ABLATIONS, Decoder
from diffrestorer.evaluation.restoring.outputs import image_size
from diffrestorer.evaluation.suites import Item, Suite

BUILT_IN: dict[str, str] = {
    "degraded": "degraded input",
    "diff_restorer_sd": "SD decoder",
    "diff_restorer": "refined decoder",
}
"""Name -> title of the methods that need no folder, in the order of tables and pages."""

BASELINES: dict[str, str] = {
    "airnet": "AirNet",
    "transweather": "TransWeather",
    "nafnet": "NAFNet",
    "restormer": "Restormer",
    "promptir": "PromptIR",
    "da_clip": "DA-CLIP",
}
"""Name -> title in Table I of the compared methods, in its order. Each needs the folder it was trained into."""

SAMPLED_BASELINES = ("da_clip",)
"""The compared methods that start from noise."""


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: as in scores.csv; its outputs lie in `restored/NAME/DEGRADATION/IMAGE.png`.
        kind: `degraded` (the input is the output), `model` or `baseline` (we restore), `outputs` (a folder, copied).
        source: what DiffRestorerPipeline.from_pretrained or load_baseline loads, or the folder of outputs.
        decoder: of a model: the refined one, the plain one of the VAE, or OpenAI's Consistency Decoder.
        seed_offset: added to the seed of the run: 0, or k for the run `NAME@k` of a sampled method.
        reason: why it can't be run; its rows say so. Empty where it can.
    """

    name: str
    kind: Literal["degraded", "model", "baseline", "outputs"]
    source: str = ""
    decoder: Decoder = "refined"
    reason: str = ""
    seed_offset: int = 0

    @property
    def title(self) -> str:
        """The name for people."""
        ablated = {name: ablation.title for name, ablation in ABLATIONS.items()}
        return {**BUILT_IN, **BASELINES, **ablated}.get(self.name, self.name)

    @property
    def base(self) -> str:
        """The method that a run `NAME@RUN` belongs to: its scores are pooled with NAME's."""
        return self.name.partition("@")[0]

    @property
    def sampled(self) -> bool:
        """Return whether its outputs depend on the seed."""
        if self.kind == "model":
            return self.decoder == "consistency" or starts_from_noise(self.source)
        return self.kind == "baseline" and (_held(self.source) or self.base) in SAMPLED_BASELINES

    def output(self, item: Item, output_dir: Path) -> Path:
        """The PNG file that is scored."""
        return item.lq if self.kind == "degraded" else output_dir / "restored" / self.name / item.file


def parse_methods(
    entries: Sequence[str], suite: str, model: str, trained: str, seeds: int = 1
) -> list[Method]:
    """Parse the methods that entries name: `NAME`, `NAME=FOLDER` or `all`.

    FOLDER is a model (it holds model_index.json, or a training run's model/ does), a compared method that
    `train_baseline.py` trained (or a file with its authors' weights), or outputs made elsewhere as
    DEGRADATION/IMAGE.png. A model under a name that ends in `_sd` uses the VAE's own decoder. A baseline or an ablation
    without a folder is looked for in TRAINED/NAME; `all` keeps those that are not there, with the reason.
    `NAME@RUN=FOLDER` is another run of NAME, pooled with it.

    Args:
        entries: see `choose_methods`.
        suite: key of `SUITES`, which says what `all` stands for.
        model: weights of the methods that are built in.
        trained: folder of what was trained here.
        seeds: runs of every sampled method.

    Raises:
        ValueError: an unknown or doubled name, or a folder that is none of these.
    """
    methods: list[Method] = []
    for entry in entries:
        if entry == "all":
            found = [_parse(name, model, trained) for name in _whole(suite)]
            methods += [method for method in found if not method.reason or suite != "demo"]
            continue
        method = _parse(entry, model, trained)
        if method.reason:
            raise ValueError(f"method={entry}: {method.reason}")
        methods.append(method)

    # Further seeds are further runs, where none was given.
    given = {method.base for method in methods if method.name != method.base}
    for method in list(methods):
        if method.base not in given and not method.reason and method.sampled:
            for offset in range(1, seeds):
                methods.append(replace(method, name=f"{method.name}@{offset}", seed_offset=offset))

    names = [method.name for method in methods]
    alone = [method.name for method in methods if method.base not in names]
    if alone:
        raise ValueError(
            f"method names {alone[0]} and no {alone[0].partition('@')[0]}: one run has the plain name"
        )
    doubled = [name for name in names if names.count(name) > 1]
    if doubled:
        raise ValueError(f"method names {doubled[0]} twice")
    return methods


def _whole(suite: str) -> list[str]:
    """Return the names that `all` stands for."""
    return (
        [*ABLATIONS, "diff_restorer_sd", "diff_restorer"]
        if suite == "ablation"
        else [*BUILT_IN, *BASELINES]
    )


def choose_methods(
    names: Sequence[str],
    suite: str,
    model: str,
    ablation: str | None,
) -> list[str]:
    """Return the entries to parse: those asked for, the ablation's, or else what the suite is about.

    Raises:
        ValueError: there is no such ablation.
    """
    if ablation is None:
        return list(names) or (["all"] if suite == "ablation" else list(BUILT_IN))
    if ablation not in ABLATIONS:
        raise ValueError(f"ablation={ablation} is not valid; choose from {', '.join(ABLATIONS)}")
    return [*names, ablation if ablation == "consistency_decoder" else f"{ablation}={model}"]


def _parse(entry: str, model: str, trained: str) -> Method:
    name, equals, folder = entry.partition("=")
    base = name.partition("@")[0]
    decoder: Decoder = "sd" if base.endswith("_sd") else "refined"
    if not equals:
        return _named(name, model, Path(trained), decoder)

    # The name becomes a folder's.
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*(@[\w.+-]+)?", name) or base in (
        "degraded",
        "all",
        "clean",
    ):
        raise ValueError(
            f"method={entry}: {name!r} can't be the name of a method; letters, digits and _.+- can"
        )

    # The folder's content shows what it is.
    if base in ABLATIONS:
        decoder = ABLATIONS[base].decoder
    if folder == "mini" or is_model(Path(folder)):
        return Method(name, "model", folder, decoder)
    if Path(folder).is_file():
        return Method(name, "baseline", folder)  # weights of the method's authors
    if not Path(folder).is_dir():
        raise ValueError(f"method={entry}: there is no folder {folder}")
    if _holds(Path(folder), "config.json"):
        _check_baseline(base, folder)
        return Method(name, "baseline", folder)
    if not any(Path(folder).glob("*/*.png")):
        raise ValueError(
            f"method={entry}: {folder} is neither a model (model_index.json) nor outputs (DEGRADATION/IMAGE.png)"
        )
    return Method(name, "outputs", folder)


def _named(
    name: str,
    model: str,
    trained: Path,
    decoder: Decoder,
) -> Method:
    """Return a method that was given without a folder."""
    # What is built in uses the model of the run.
    if name == "degraded":
        return Method(name, "degraded")
    if name in BUILT_IN:
        return Method(name, "model", model, decoder)
    if name == "consistency_decoder":
        return Method(name, "model", model, "consistency")

    # Everything else was trained, or says how to train it.
    folder = trained / name
    if name in ABLATIONS:
        ablation = ABLATIONS[name]
        reason = "" if is_model(folder) else f"not trained: {ablation.command(name, str(trained))}"
        return Method(name, "model", str(folder), ablation.decoder, reason)
    if name in BASELINES:
        if _holds(folder, "config.json"):
            _check_baseline(name, str(folder))
            return Method(name, "baseline", str(folder))
        command = f"accelerate launch -m diffrestorer train baseline method={name} output_dir={folder}"
        return Method(name, "baseline", str(folder), reason=f"not trained: {command}")
    offer = ", ".join((*BUILT_IN, *BASELINES, *ABLATIONS))
    raise ValueError(f"method={name} is not there: choose from {offer}; others as NAME=FOLDER")


def starts_from_noise(model: str) -> bool:
    """Return whether a model samples from noise; a one-step student does not. False if there is no such model.

    Args:
        model: `mini`, a folder or a hub id.
    """
    from diffrestorer.inference.model_folder import find_model  # diffusers takes seconds

    # Opening the model will say what is wrong with it.
    try:
        index = json.loads((find_model(model) / "model_index.json").read_text())
        return bool(index["scheduler"][1] != "OneStepScheduler")
    except (OSError, ValueError, LookupError, TypeError):
        return False


def is_model(folder: Path) -> bool:
    """Return whether a folder is a model, or a training run's that holds one."""
    return _holds(folder, "model_index.json")


def _holds(folder: Path, file: str) -> bool:
    return any((folder / inner / file).is_file() for inner in ("", "model"))


def _held(folder: str) -> str | None:
    """Return the compared method that a folder holds, or a training run's model/ in it."""
    from diffrestorer.baselines.registry import find_baseline  # brings the networks, which take seconds

    return find_baseline(Path(folder)) or find_baseline(Path(folder) / "model")


def _check_baseline(name: str, folder: str) -> None:
    found = _held(folder)
    if found is None or (name in BASELINES and name != found):
        holds = found or f"none of the compared methods {', '.join(BASELINES)}"
        raise ValueError(f"method={name}={folder}: {folder} holds {holds}")


def collect_outputs(methods: Sequence[Method], suite: Suite, output_dir: Path) -> None:
    """Copy outputs made elsewhere beside our own, so that `output_dir` is complete.

    Raises:
        ValueError: files are missing or have another size than the reference; the message names the first ones.
    """
    for method in methods:
        if method.kind == "outputs":
            _check_outputs(method, suite)
            for item in suite.items:
                copy = method.output(item, output_dir)
                data = (Path(method.source) / item.file).read_bytes()
                if not copy.is_file() or copy.read_bytes() != data:
                    write_bytes(copy, data)


def _check_outputs(method: Method, suite: Suite) -> None:
    folder = Path(method.source)
    # All there, then all of the size that they are compared at.
    missing = [item.file for item in suite.items if not (folder / item.file).is_file()]
    if missing:
        raise ValueError(f"{method.name}: {folder} lacks {_some(missing)}")
    other = []
    for item in suite.items:
        size = image_size(folder / item.file)
        expected = image_size(item.gt or item.lq)
        if size != expected:
            other.append(f"{item.file} ({size[1]}x{size[0]}, not {expected[1]}x{expected[0]})")
    if other:
        raise ValueError(f"{method.name}: of another size in {folder}: {_some(other)}")


def _some(names: Sequence[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
