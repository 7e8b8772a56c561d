"""The words a caller chooses from. This module imports nothing slow, so that a command line can name them at once."""

from typing import Literal

Tile = Literal["auto", "none"] | int
"""How images are cut into tiles: see `tiling.tile_side`."""

Decoder = Literal["refined", "sd"]
"""`refined`: the Degradation-aware Decoder. `sd`: the VAE's own."""

Precision = Literal["auto", "float32", "bfloat16"]
"""What the networks compute in. `auto`: bfloat16 where the device multiplies it faster than float32."""
