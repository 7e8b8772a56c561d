"""The forward diffusion of a training step, drawn by counter; shared by mini's UNet and by stage 1."""

from dataclasses import dataclass

import numpy as np
from diffusers import DDPMScheduler
from jaxtyping import Float, Int
from torch import Tensor

from diffrestorer.data.counter import counter_normal, counter_rng, to_device
from diffrestorer.data.pairs import PairBatch


@dataclass(frozen=True)
class NoisySample:
    """Noisy latents z_t, their timesteps, and what the network should answer."""

    noisy_latents: Float[Tensor, "b l h w"]
    timesteps: Int[Tensor, "b"]
    target: Float[Tensor, "b l h w"]


def add_noise(scheduler: DDPMScheduler, latents: Float[Tensor, "b l h w"], seed: int, batch: PairBatch) -> NoisySample:
    """z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) e with t uniform in [0, 1000) and e normal, by (seed, step, position).

    The target is e, z_0 or the velocity, as the scheduler's `prediction_type` says (the paper: e).
    """
    noise = counter_normal(latents.shape[1:], seed, "noise", batch.step, batch.positions, latents.device)
    num_timesteps = scheduler.config.num_train_timesteps
    drawn = [int(counter_rng(seed, "timestep", batch.step, p).integers(num_timesteps)) for p in batch.positions]
    timesteps = to_device(np.array(drawn), latents.device)
    match scheduler.config.prediction_type:
        case "epsilon":
            target = noise
        case "sample":
            target = latents
        case "v_prediction":
            target = scheduler.get_velocity(latents, noise, timesteps)
        case other:
            raise ValueError(f"model.scheduler.prediction_type={other}: choose epsilon, sample or v_prediction")
    return NoisySample(scheduler.add_noise(latents, noise, timesteps), timesteps, target)
