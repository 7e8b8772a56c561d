"""The random numbers behind prepared inputs, so that `consistency` degrades a restored image as its input was."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffrestorer.config.degradations import degradation_steps
from diffrestorer.config.synthesis_presets import named_synthesis
from diffrestorer.evaluation.suites import Draw
from diffrestorer.preparation.shards import pair_stream, test_names

_NAMES = ("ours", "broad", "heldout")


def read_draws(folder: Path, degradation: str) -> dict[str, Draw]:
    """Return test image -> the draw that degraded it.

    Empty where a set came degraded, wholly or in part (Snow100K's snow under our noise), where the synthesis has
    settings of its own, and where the preparation left no record.

    Args:
        folder: of the test pairs, `PREPARED/pairs/SET/test/DEGRADATION`.
        degradation: the class or mixture.
    """
    # The whole synthesis was applied to the clean image, or there is no draw to repeat.
    try:
        record = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except OSError:
        return {}
    synthesis = _name_of(record["synthesis"])
    if tuple(record["steps"]) != degradation_steps(degradation) or synthesis is None:
        return {}

    # The streams of the preparation.
    group = "/".join(folder.parts[-4:])
    sources = [pair[0] for pair in record["pairs"]]
    draws = {}
    for name, source in zip(test_names(sources), sources, strict=True):
        draws[name] = Draw(record["seed"], pair_stream(group, source), 0, synthesis)
    return draws


def _name_of(settings: dict[str, Any]) -> str | None:
    """Return the name of a synthesis with these settings, if it has one."""
    for name in _NAMES:
        known = json.loads(json.dumps(asdict(named_synthesis(name))))
        if known == settings:
            return name
    return None
