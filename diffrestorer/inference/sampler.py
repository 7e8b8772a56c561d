"""The sampler: a scheduler's steps around the controlled UNet."""

import inspect
from collections.abc import Sequence

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float, Real
from torch import Tensor

from diffrestorer.inference.one_step import OneStepScheduler
from diffrestorer.inference.unipc_table import Edit, Predict, has_table, keep, sampling_table
from diffrestorer.models.restorer import Conditioning, Restorer

Generator = torch.Generator | Sequence[torch.Generator] | None


def draw_noise(
    shape: Sequence[int], generator: Generator, device: torch.device
) -> Float[Tensor, "b l h8 w8"]:
    """Draw the noise that sampling starts from.

    Args:
        generator: a list gives each image its own, so that batching changes nothing; None: PyTorch's, on the CPU.
        device: where the noise is used. It is drawn on the generator's own.
    """
    sources = list(generator) if isinstance(generator, Sequence) else [generator] * shape[0]
    noise = [
        torch.randn(shape[1:], generator=own, device=own.device if own else "cpu") for own in sources
    ]
    return torch.stack(noise).to(device)


def check_steps(scheduler: SchedulerMixin, num_steps: int) -> int:
    """Return the number of steps that a model samples in when it is asked for `num_steps`: a student's is always 1.

    Raises:
        ValueError: there are no steps, or the scheduler's settings don't work out.
    """
    if num_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, not {num_steps}")
    if isinstance(scheduler, OneStepScheduler):
        return 1
    if has_table(scheduler):
        sampling_table(scheduler, num_steps)
    return num_steps


def sample_latents(
    restorer: Restorer,
    scheduler: SchedulerMixin,
    condition: Conditioning,
    noise: Float[Tensor, "b l h8 w8"],
    num_inference_steps: int,
) -> Float[Tensor, "b l h8 w8"]:
    """Sample the latents of restored images; no classifier-free guidance. The paper: UniPC, 20 steps.

    Args:
        noise: a teacher's start; a student starts from the degraded image's latents instead.
    """

    def predict(
        latents: Float[Tensor, "b l h8 w8"], timestep: Real[Tensor, "..."]
    ) -> Float[Tensor, "b l h8 w8"]:
        return restorer.denoise(latents, timestep, condition)

    return run_scheduler(scheduler, num_inference_steps, condition, noise, predict)


def run_scheduler(
    scheduler: SchedulerMixin,
    num_steps: int,
    condition: Conditioning,
    noise: Float[Tensor, "b l h8 w8"],
    predict: Predict,
    edit: Edit = keep,
    generator: Generator = None,
) -> Float[Tensor, "b l h8 w8"]:
    """Sample latents with any scheduler of diffusers.

    UniPC and a student's single step run by a table that makes the device wait for nothing. Every other scheduler runs
    by its own `step`.

    Args:
        generator: of the noise that some schedulers add at every step.

    Raises:
        ValueError: the scheduler can't sample in `num_steps` steps.
    """
    num_steps = check_steps(scheduler, num_steps)
    if not has_table(scheduler):
        return _run_steps(scheduler, num_steps, noise, predict, edit, generator)

    start = condition.encoded.latents if isinstance(scheduler, OneStepScheduler) else noise
    return sampling_table(scheduler, num_steps, noise.device, torch.float32).sample(
        start, predict, edit
    )


def _run_steps(
    scheduler: SchedulerMixin,
    num_steps: int,
    noise: Float[Tensor, "b l h w"],
    predict: Predict,
    edit: Edit,
    generator: Generator,
) -> Float[Tensor, "b l h w"]:
    """Sample by the scheduler's own steps, as diffusers' pipelines do."""
    # Setting the timesteps also clears what the scheduler remembers of the last image.
    scheduler.set_timesteps(num_steps, device=noise.device)
    latents = noise.float() * scheduler.init_noise_sigma

    # Some schedulers draw noise at every step.
    draws = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if draws else {}

    for index, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        output = predict(scaled.to(noise.dtype), timestep).to(latents.dtype)
        with torch.autocast(
            noise.device.type, enabled=False
        ):  # it would round the latents in a training step
            latents = scheduler.step(output, timestep, latents, **options, return_dict=False)[0]
        latents = edit(index, timestep, latents)
    return latents.to(noise.dtype)
