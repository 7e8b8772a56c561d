"""The words a caller chooses from. This module imports nothing slow, so that a command line can name them at once."""

from typing import Any, Literal, get_args

Tile = Literal["auto", "none"] | int
"""How images are cut into tiles: see `tiling.tile_side`."""

Decoder = Literal["refined", "sd"]
"""`refined`: the Degradation-aware Decoder. `sd`: the VAE's own."""

OutputType = Literal["pil", "np", "pt", "latent"]
"""The form of restored images: PIL, arrays, tensors, or latents that are not decoded."""

THRESHOLD = 0.8
"""Probability from which a degradation is clear, chosen on held-out photos (docs/mini.md).

A photo without a clear degradation is restored as a clean one, if `clean` is among the model's classes.
"""

NOT_CLEAR = "no clear degradation"
"""The answer where no degradation reaches the threshold."""

ONE_STEP = "this model restores in one step"
"""Begins the note to whoever asks a student for another number of steps."""

Precision = Literal["auto", "float32", "bfloat16"]
"""What the networks compute in. `auto`: bfloat16 where the device multiplies it faster than float32."""


def check_option(name: str, value: str, options: Any) -> None:
    """Refuse a value that is none of a `Literal`'s.

    Raises:
        ValueError: names the option and its values.
    """
    *first, last = map(repr, get_args(options))
    if value not in get_args(options):
        raise ValueError(f"{name} must be {', '.join(first)} or {last}, not {value!r}")


def check_decoder(decoder: str, fidelity: float) -> None:
    """Refuse a decoder that does not exist, or a fidelity outside [0, 1].

    Raises:
        ValueError: says what they may be.
    """
    check_option("decoder", decoder, Decoder)
    if not 0 <= fidelity <= 1:
        raise ValueError(f"fidelity must be from 0 to 1, not {fidelity}")
