"""What a training crop shows of a clean photo, as keys such as `data.views.scale=[0.5,1]`: see `data.views`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from diffrestorer.config.synthesis import Parameters, Range, Rule


@dataclass(frozen=True)
class Views(Parameters):
    """Views of photos; prepared pairs are what they are and refuse these keys."""

    group: ClassVar[str] = "data"

    scale: Annotated[Range, Rule(0.01, 1.0)] = (1.0, 1.0)
    """The photo is shrunk by a factor from here before the crop, though never below the crop's size."""
    color_share: Annotated[float, Rule(0.0, 1.0)] = 0.0
    """Share of crops in other colours: channels permuted, each with a gamma of its own."""
    dark_share: Annotated[float, Rule(0.0, 1.0)] = 0.0
    """Share of crops made into night scenes, except those of low_light."""
    text_share: Annotated[float, Rule(0.0, 1.0)] = 0.0
    """Share of crops with letters written on."""
