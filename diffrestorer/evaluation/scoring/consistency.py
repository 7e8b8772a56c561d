"""`consistency`: whether a restored image explains the input.

The restored image is degraded again, by the synthesis and random numbers that made the input, and compared with the
input. The clean image gives 0 under every class. Details that a method invents, and content that it removes, do not
come out as the input again.
"""

import numpy as np

from diffrestorer.config.synthesis_presets import named_synthesis
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.synthesis import degrade
from diffrestorer.evaluation.suites import Draw


def consistency(
    restored: np.ndarray,
    lq: np.ndarray,
    degradation: str,
    draw: Draw,
) -> float:
    """Return the root mean square difference between the input and the restored image degraded again, in levels.

    Args:
        restored: uint8 (h, w, 3).
        lq: the input, of the same shape.
        degradation: the class or mixture that made the input.
        draw: the synthesis and the random numbers that made the input.
    """
    rng = counter_rng(draw.seed, draw.stream, draw.index)
    again = degrade(restored, degradation, rng, named_synthesis(draw.synthesis))
    difference = again.astype(np.float64) - lq
    return float(np.sqrt(np.mean(difference**2)))
