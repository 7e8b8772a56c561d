"""The forward diffusion of a training step, drawn by counter. Stage 1 and mini's UNet share it."""

from dataclasses import dataclass

import numpy as np
from diffusers import DDPMScheduler
from jaxtyping import Float, Int
from torch import Tensor

from diffrestorer.data.counter import counter_normal, counter_rng, to_device
from diffrestorer.data.pairs import PairBatch


@dataclass(frozen=True)
class NoisySample:
    """Noisy latents z_t, their timesteps, and the target of the network's output."""

    noisy_latents: Float[Tensor, "b l h w"]
    timesteps: Int[Tensor, "b"]
    target: Float[Tensor, "b l h w"]


def add_noise(
    scheduler: DDPMScheduler, latents: Float[Tensor, "b l h w"], seed: int, batch: PairBatch
) -> NoisySample:
    """Return z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) e for t uniform in [0, 1000) and normal e.

    Both are drawn by (seed, step, position). The target is e, z_0 or the velocity, as the scheduler's
    `prediction_type` says (the paper: e).

    Args:
        scheduler: holds the noise schedule and the type of prediction.
        latents: z_0.
        seed: of the run.
        batch: tells step and positions.

    Raises:
        ValueError: the type of prediction is unknown.
    """
    # Noise and timesteps depend on the sample's place in the run alone, so that any division of a batch draws the same.
    noise = counter_normal(
        latents.shape[1:], seed, "noise", batch.step, batch.positions, latents.device
    )
    drawn = []
    for position in batch.positions:
        rng = counter_rng(seed, "timestep", batch.step, position)
        drawn.append(int(rng.integers(scheduler.config.num_train_timesteps)))
    timesteps = to_device(np.array(drawn), latents.device)

    match scheduler.config.prediction_type:
        case "epsilon":
            target = noise
        case "sample":
            target = latents
        case "v_prediction":
            target = scheduler.get_velocity(latents, noise, timesteps)
        case other:
            raise ValueError(
                f"model.scheduler.prediction_type={other}: choose epsilon, sample or v_prediction"
            )
    return NoisySample(scheduler.add_noise(latents, noise, timesteps), timesteps, target)
