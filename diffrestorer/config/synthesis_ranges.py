"""Parameters of the synthesised degradations; each field is a key, such as `data.synthesis.noise.sigma=[10,50]`.

A pair is a range that is drawn from uniformly, once an image unless it says otherwise; two equal numbers fix a value.
Lengths are in pixels of an image whose shorter side is `REFERENCE_SIDE` and grow with the image, except the noise's and
JPEG's, which belong to the pixel grid. A range with `stronger=` tells strength: `at_strength` narrows it.
"""

import math
import re
from dataclasses import Field, dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from diffrestorer.config.synthesis_variants import OURS, check_variants

REFERENCE_SIDE = 256

Range = tuple[float, float]
IntRange = tuple[int, int]


@dataclass(frozen=True)
class Rule:
    """Bounds of a parameter and how it tells strength.

    Attributes:
        low, high: its bounds.
        stronger: at which end of the range the degradation is stronger; None where the range is not one of strength.
        log: ratios count, not differences: drawn log-uniformly.
    """

    low: float = 0.0
    high: float = math.inf
    stronger: Literal["low", "high"] | None = None
    log: bool = False


@dataclass(frozen=True)
class Parameters:
    """Base of dataclasses of ranges and numbers with bounds.

    Raises:
        ValueError: a range is reversed, not a pair of numbers, or leaves its bounds; the message names the key.
    """

    group: ClassVar[str] = "synthesis"
    """What their keys begin with."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if rule := _rule(item):
                value = _checked(
                    f"{self.group}.{_snake_case(type(self).__name__)}.{item.name}",
                    value,
                    rule,
                    item.default,
                )
                object.__setattr__(self, item.name, value)


AnyParameters = TypeVar("AnyParameters", bound=Parameters)


def at_strength(parameters: AnyParameters, strength: float) -> AnyParameters:
    """The parameters with every range that tells strength narrowed to one of its values, the others as they are.

    Args:
        strength: from 0, the weak end of each range, to 1, the strong end.

    Raises:
        ValueError: `strength` lies outside [0, 1].
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength={strength} lies outside 0 to 1")
    narrowed = {
        item.name: _narrowed(item, getattr(parameters, item.name), strength)
        for item in fields(parameters)
    }
    return replace(parameters, **narrowed)


def _narrowed(item: Field[Any], value: Any, strength: float) -> Any:
    if isinstance(value, Parameters):
        return at_strength(value, strength)
    rule = _rule(item)
    if item.name == "variants":
        return value
    if rule is None:
        return tuple(at_strength(layer, strength) for layer in value)
    if rule.stronger is None:
        return value
    weak, strong = value if rule.stronger == "high" else value[::-1]
    point = weak * (strong / weak) ** strength if rule.log else weak + (strong - weak) * strength
    return (round(point),) * 2 if isinstance(weak, int) else (point,) * 2


def _rule(item: Field[Any]) -> Rule | None:
    return next(
        (mark for mark in getattr(item.type, "__metadata__", ()) if isinstance(mark, Rule)), None
    )


def _checked(key: str, value: Any, rule: Rule, default: Any) -> Any:
    """A range or a number, in the type of its default."""
    is_range, numbers = isinstance(default, tuple), value if isinstance(value, tuple) else (value,)
    kind = type(default[0]) if is_range else type(default)
    text = str(list(value) if isinstance(value, tuple) else value)
    if len(numbers) != 1 + is_range or not all(
        isinstance(n, int | float) and math.isfinite(n) for n in numbers
    ):
        raise ValueError(
            f"{key}={text} is not {'a range: write [low,high]' if is_range else 'a number'}"
        )
    if any(kind(n) != n for n in numbers):
        raise ValueError(f"{key}={text} has to be of whole numbers")
    if is_range and numbers[0] > numbers[1]:
        raise ValueError(f"{key}={text} is reversed: write [{numbers[1]},{numbers[0]}]")
    if numbers[0] < rule.low or numbers[-1] > rule.high:
        bounds = (
            f"be at least {rule.low:g}"
            if rule.high == math.inf
            else f"lie in {rule.low:g} to {rule.high:g}"
        )
        raise ValueError(f"{key}={text} is not possible: it has to {bounds}")
    return tuple(kind(n) for n in numbers) if is_range else kind(value)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@dataclass(frozen=True, kw_only=True)
class Varied(Parameters):
    """Base of the classes' parameters: the models that are drawn from, and how strongly they degrade.

    Raises:
        ValueError: a variant does not exist, or as `Parameters`.
    """

    variants: tuple[str, ...] = (OURS,)
    """Names of `config.synthesis_variants`, drawn evenly; one that is named twice is drawn twice as often."""
    strength: Annotated[Range, Rule(0.0, 1.0, stronger="high")] = (0.0, 1.0)
    """Of all variants but `ours`, which has the ranges below: from barely visible, or surely seen, to strong."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = _snake_case(type(self).__name__)
        check_variants(name, self.variants, f"{self.group}.{name}.variants")


@dataclass(frozen=True)
class Noise(Varied):
    """White Gaussian noise."""

    sigma: Annotated[Range, Rule(stronger="high")] = (50.0, 50.0)
    """Standard deviation in grey levels of 255."""


@dataclass(frozen=True)
class LowLight(Varied):
    """A short exposure."""

    exposure: Annotated[Range, Rule(1e-4, 1.0, stronger="low", log=True)] = (0.04, 0.16)
    """Share of the linear light that is left; drawn log-uniformly."""
    full_well: Annotated[Range, Rule(1.0, stronger="low")] = (1500.0, 6000.0)
    """Electrons at white: the fewer, the more shot noise."""
    read_noise: Annotated[Range, Rule(stronger="high")] = (2.0, 8.0)
    """Electrons."""


@dataclass(frozen=True)
class Haze(Varied):
    """Scattering by the air."""

    transmission: Annotated[Range, Rule(1e-3, 1.0, stronger="low")] = (0.25, 0.6)
    """At mean depth."""
    airlight: Annotated[Range, Rule(0.0, 1.0)] = (0.75, 0.95)
    tint: Annotated[float, Rule(0.0, 1.0)] = 0.02
    """Largest deviation of a channel of the airlight from grey."""
    vertical: Annotated[Range, Rule(0.0, 1.0)] = (0.4, 0.8)
    """Share of the depth that grows towards the top of the image."""


@dataclass(frozen=True)
class RainLayer(Parameters):
    """Streaks at one distance."""

    density: Annotated[Range, Rule(stronger="high")] = (5.0, 10.0)
    """Streaks per 1000 reference pixels."""
    length: Annotated[Range, Rule(stronger="high")] = (8.0, 14.0)
    width: Annotated[Range, Rule(stronger="high")] = (0.8, 1.2)
    opacity: Annotated[Range, Rule(0.0, 1.0, stronger="high")] = (0.3, 0.5)


@dataclass(frozen=True)
class Rain(Varied):
    """Falling streaks over a veil."""

    angle: Annotated[Range, Rule(-90.0, 90.0)] = (-30.0, 30.0)
    """Degrees from the vertical."""
    layers: tuple[RainLayer, ...] = (
        RainLayer(),
        RainLayer((2.0, 4.0), (16.0, 28.0), (1.1, 1.6), (0.45, 0.65)),
        RainLayer((0.5, 1.2), (30.0, 50.0), (1.6, 2.4), (0.45, 0.7)),
    )
    """Far to near."""
    veil: Annotated[Range, Rule(0.0, 1.0, stronger="high")] = (0.04, 0.15)
    """Opacity of the drops too far away to be told apart."""
    colour: Annotated[Range, Rule(0.0, 1.0)] = (0.85, 0.98)


@dataclass(frozen=True)
class Raindrop(Varied):
    """Drops on a window."""

    count: Annotated[IntRange, Rule(stronger="high")] = (12, 40)
    radius: Annotated[Range, Rule(0.5)] = (4.0, 20.0)
    """Drawn for each drop, with a square law, so that small drops are many."""
    blur: Annotated[Range, Rule(stronger="high")] = (1.2, 2.5)
    """Standard deviation of the scene as a drop shows it."""
    lens: Annotated[Range, Rule()] = (1.5, 3.5)
    """How many radii of the scene a radius of the drop shows, upside down; drawn for each drop."""
    rim: Annotated[float, Rule(0.0, 1.0)] = 0.35
    """Darkening at the very edge."""


@dataclass(frozen=True)
class SnowLayer(Parameters):
    """Flakes at one distance."""

    density: Annotated[Range, Rule(stronger="high")] = (6.0, 12.0)
    """Flakes per 1000 reference pixels."""
    radius: Annotated[Range, Rule(stronger="high")] = (0.5, 0.8)
    opacity: Annotated[Range, Rule(0.0, 1.0, stronger="high")] = (0.4, 0.7)


@dataclass(frozen=True)
class Snow(Varied):
    """Falling flakes over a veil."""

    angle: Annotated[Range, Rule(-90.0, 90.0)] = (-50.0, 50.0)
    """Degrees from the vertical."""
    speed: Annotated[Range, Rule()] = (0.5, 4.0)
    """Length of motion in radii of a flake."""
    layers: tuple[SnowLayer, ...] = (
        SnowLayer(),
        SnowLayer((2.5, 5.0), (0.9, 1.4), (0.6, 0.9)),
        SnowLayer((0.8, 1.6), (1.6, 2.4), (0.7, 0.95)),
        SnowLayer((0.1, 0.3), (3.0, 5.0), (0.5, 0.8)),
    )
    """Far to near."""
    veil: Annotated[Range, Rule(0.0, 1.0, stronger="high")] = (0.06, 0.18)
    colour: Annotated[Range, Rule(0.0, 1.0)] = (0.92, 1.0)


@dataclass(frozen=True)
class Blur(Varied):
    """Camera shake or defocus."""

    extent: Annotated[Range, Rule(stronger="high")] = (8.0, 20.0)
    """Larger side of the camera's trajectory."""
    defocus_share: Annotated[float, Rule(0.0, 1.0)] = 0.25
    """Of the images; the others are shaken."""
    defocus_radius: Annotated[Range, Rule(stronger="high")] = (2.0, 4.0)
    """Of the circle of confusion."""


@dataclass(frozen=True)
class Jpeg(Varied):
    """JPEG compression."""

    quality: Annotated[IntRange, Rule(1.0, 100.0, stronger="low")] = (10, 10)


@dataclass(frozen=True)
class Camera(Parameters):
    """The camera's own processing after a degradation."""

    share: Annotated[float, Rule(0.0, 1.0)] = 0.0
    """Of the degraded images."""


@dataclass(frozen=True)
class Synthesis(Parameters):
    """The parameters of every class, by its name in `config.degradations`; the defaults are what we train on."""

    noise: Noise = Noise()
    low_light: LowLight = LowLight()
    haze: Haze = Haze()
    rain: Rain = Rain()
    raindrop: Raindrop = Raindrop()
    snow: Snow = Snow()
    blur: Blur = Blur()
    jpeg: Jpeg = Jpeg()
    camera: Camera = Camera()
