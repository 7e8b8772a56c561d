"""Batch, learning rate, warm-up, steps and average of a run by the number of GPUs: `train.scale`.

The paper's batch of 16 cannot feed 64 GPUs. With k times its batch a run takes 1/k of its steps, so it sees as many
samples, and AdamW's learning rate grows by the square root of k (Malladi et al., "On the SDEs and scaling rules for
adaptive gradient algorithms", NeurIPS 2022). Larger rates start with a warm-up, and fewer steps end better with an
average of the weights. No run of these sizes has been made: `8gpu` and `64gpu` are where to start, not what is known.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """One size of run.

    Attributes:
        batch: factor on the samples per step; steps are divided by it.
        lr: factor on the learning rate.
        warmup_steps: over which the rate rises.
        ema_decay: of the average; None: as in the stage's own settings.
    """

    batch: int
    lr: float
    warmup_steps: int
    ema_decay: float | None


SCALES = {
    "paper": Scale(1, 1.0, 0, None),
    "8gpu": Scale(8, 8**0.5, 500, 0.9999),
    "64gpu": Scale(32, 32**0.5, 1000, 0.9995),
}
"""Values of `train.scale`. With stage 1's batch of 16 they make 16, 128 and 512 samples per step."""
