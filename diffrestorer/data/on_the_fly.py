"""Clean photos become training pairs while training: crop, vary, degrade, each draw by (step, position)."""

import numpy as np

from diffrestorer.config.classes import trained_classes
from diffrestorer.config.degradations import CLEAN, DEGRADATIONS, is_synthesised
from diffrestorer.config.schema import DataConfig
from diffrestorer.config.synthesis_presets import refuse_held_out
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.own_synthesis import load_synthesis
from diffrestorer.data.synthesis import degrade
from diffrestorer.data.views import crop, vary


class PairMaker:
    """The synthesis of a run's pairs, whatever stores its photos.

    Args:
        config: crop size, views, classes and their strength.
        seed: of the run.

    Attributes:
        degradations: classes that are made, as often as they are named.
        own: functions of the user's.

    Raises:
        ValueError: a class can't be made from photos; a variant of the synthesis is held out.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        refuse_held_out(config.synthesis)
        self.degradations = trained_classes(config)
        self.own = load_synthesis(config.synthesis_module, self.degradations)
        made = [name for name in self.degradations if is_synthesised(name) or name in self.own]
        if foreign := [name for name in self.degradations if name not in made]:
            raise ValueError(
                f"photos can't be given {foreign[0]}: only {', '.join(DEGRADATIONS)} and {CLEAN} are made from them; "
                f"train {foreign[0]} from pairs of your own with data=pairs, or give data.synthesis_module=FILE.py "
                "that makes it"
            )
        self.size = config.size
        self.views = config.views
        self.synthesis = config.synthesis
        self.seed = seed

    def make(
        self, photo: np.ndarray, degradation: str, step: int, position: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the degraded and the clean image of sample (step, position), uint8 (size, size, 3).

        Args:
            photo: uint8 (h, w, 3), no smaller than `size`.
            degradation: its class.
            step: of the run.
            position: in the global batch.
        """
        gt = crop(photo, self.size, self.views, counter_rng(self.seed, "crop", step, position))
        gt = vary(gt, degradation, self.views, counter_rng(self.seed, "view", step, position))
        rng = counter_rng(self.seed, "degradation", step, position)
        if degradation in self.own:
            return self.own.degrade(gt, degradation, rng), gt
        return degrade(gt, degradation, rng, self.synthesis), gt
