"""Ranges of what a crop shows of a clean photo, as keys such as `data.views.scale=[0.5,1]`: see `data.views`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from diffrestorer.config.synthesis_ranges import IntRange, Parameters, Range, Rule


@dataclass(frozen=True)
class Views(Parameters):
    """Views of photos; prepared pairs are what they are and refuse these keys."""

    group: ClassVar[str] = "data"

    scale: Annotated[Range, Rule(0.01, 1.0)] = (1.0, 1.0)
    """The photo is shrunk by a factor from here before the crop, though never below its size; drawn log-uniformly."""
    color_share: Annotated[float, Rule(0.0, 1.0)] = 0.0
    """Share of crops in other colours: channels permuted, each with a gamma of its own."""
    dark_share: Annotated[float, Rule(0.0, 1.0)] = 0.0
    """Share of crops made into night scenes, except those of low_light."""
    dim_share: Annotated[float, Rule(0.0, 1.0)] = 0.0
    """Share of crops shown in little light, some with their bright parts kept, except those of low_light."""
    text_share: Annotated[float, Rule(0.0, 1.0)] = 0.0
    """Share of crops with letters written on."""
    tone_share: Annotated[float, Rule(0.0, 1.0)] = 0.0
    """Share of crops of a natural tone of their own: dark (not of low_light), pale (not of haze), warm or cool."""
    tone_light: Annotated[Range, Rule(1e-3, 1.0, log=True)] = (0.04, 0.6)
    """Share of the linear light that a dark one keeps; drawn log-uniformly."""
    tone_veil: Annotated[Range, Rule(0.0, 1.0)] = (0.1, 0.5)
    """Share of a pale one that is an even light grey."""
    tone_warmth: Annotated[Range, Rule(-2.0, 2.0)] = (-0.5, 0.5)
    """Logarithm of red light over blue light; negative numbers are cool."""
    lights_share: Annotated[float, Rule(0.0, 1.0)] = 0.0
    """Share of crops made into nights full of lights, such as stars or a town's lamps, except of low_light and snow."""
    compressed_share: Annotated[float, Rule(0.0, 1.0)] = 0.0
    """Share of crops that are JPEG files already, the clean image too."""
    compressed_quality: Annotated[IntRange, Rule(1.0, 100.0)] = (75, 95)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dark_share + self.dim_share > 1.0:
            raise ValueError(
                f"data.views.dark_share={self.dark_share} and dim_share={self.dim_share} are more than all crops"
            )
