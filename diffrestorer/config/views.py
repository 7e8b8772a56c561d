"""What a training crop shows of a clean photo, as keys such as `data.views.scale=[0.5,1]`: see `data.views`."""

from dataclasses import dataclass, field


@dataclass
class Views:
    """Prepared pairs are what they are: these are refused with them."""

    scale: list[float] = field(default_factory=lambda: [1.0, 1.0])
    """Range of the factor that the photo is shrunk by before the crop, though never below the crop's size."""
    dark_share: float = 0.0
    """Share of crops made into night scenes, except those of low_light."""
    text_share: float = 0.0
    """Share of crops with letters written on."""
