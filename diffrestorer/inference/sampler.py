"""The sampler: a scheduler's steps as a fixed table of coefficients, run around the controlled UNet."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import UniPCMultistepScheduler
from jaxtyping import Float, Int
from torch import Tensor

from diffrestorer.inference.one_step import OneStepScheduler, Scheduler
from diffrestorer.models.denoiser import ControlledUNet, Denoiser
from diffrestorer.models.restorer import Conditioning, Restorer

SAMPLE, OUTPUT, CORRECTED = 0, 1, 2
"""Rows of the sampler's state; those after them hold the latest converted model outputs, oldest first."""


@dataclass(frozen=True)
class SamplingTable:
    """UniPC for one number of steps.

    UniPC is linear in the sample and the model's outputs, so a step is one small matrix on a state whose rows are the
    sample, the model's output for it, the last corrected sample and the last converted outputs.

    Attributes:
        timesteps: the network's timestep at each step.
        coefficients: a matrix per step, from the state before it to the state after it.
    """

    timesteps: Int[Tensor, " n"]
    coefficients: Float[Tensor, "n r r"]

    def sample(
        self,
        noise: Float[Tensor, "b l h w"],
        predict: Callable[[Float[Tensor, "b l h w"], int], Float[Tensor, "b l h w"]],
        on_step: Callable[[], object] | None = None,
    ) -> Float[Tensor, "b l h w"]:
        """Runs the reverse diffusion from `noise`. The state is float32 at least; nothing waits for the device.

        Args:
            predict: the network: noisy latents and the step's index to what the scheduler's `prediction_type` says.
            on_step: called after every step.
        """
        dtype = torch.promote_types(noise.dtype, torch.float32)
        state = torch.zeros(self.coefficients.shape[1], noise.numel(), dtype=dtype, device=noise.device)
        state[SAMPLE] = noise.flatten()
        for step, matrix in enumerate(self.coefficients.to(noise.device, dtype).unbind()):
            output = predict(state[SAMPLE].view(noise.shape).to(noise.dtype), step)
            state[OUTPUT] = output.flatten()
            with torch.autocast(noise.device.type, enabled=False):  # which would round the state in a training step
                state = matrix @ state
            if on_step is not None:
                on_step()
        return state[SAMPLE].view(noise.shape).to(noise.dtype)


def sampling_table(
    scheduler: Scheduler,
    num_steps: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> SamplingTable:
    """Return a scheduler's table, from its configuration alone; computed once, and copied to each device once.

    Args:
        dtype: of the coefficients.

    Raises:
        ValueError: the scheduler's step is not linear, there are no steps, or a student is asked for more than one.
    """
    if num_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, not {num_steps}")
    if isinstance(scheduler, OneStepScheduler):
        scheduler.set_timesteps(num_steps)  # refuses more than one
    for name in ("thresholding", "solver_p"):
        if scheduler.config.get(name):
            raise ValueError(f"the scheduler's {name} is not supported: its steps would not be linear")
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    compute = _one_step_table if isinstance(scheduler, OneStepScheduler) else _sampling_table
    return _table_on(compute, json.dumps(config), num_steps, torch.device(device), dtype)


@functools.lru_cache(maxsize=32)
def _table_on(
    compute: Callable[[str, int], SamplingTable], config: str, num_steps: int, device: torch.device, dtype: torch.dtype
) -> SamplingTable:
    """The table kept on a device: copied there for each image, it would wait for the device each time."""
    table = compute(config, num_steps)
    return SamplingTable(table.timesteps.to(device), table.coefficients.to(device, dtype))


def _one_step_table(config: str, num_steps: int) -> SamplingTable:
    """Return a student's table: its only step replaces the sample by the clean estimate."""
    assert num_steps == 1, "a student has one step"
    scheduler = OneStepScheduler(**json.loads(config))
    matrix = torch.eye(CORRECTED + 1, dtype=torch.float64)
    matrix[SAMPLE, SAMPLE], matrix[SAMPLE, OUTPUT] = scheduler.coefficients()
    return SamplingTable(scheduler.timesteps, matrix[None])


@functools.lru_cache(maxsize=32)
def _sampling_table(config: str, num_steps: int) -> SamplingTable:
    """A linear map is known by what it does to unit vectors: the scheduler's own steps, taken with those.

    Each row of the state is stood for by a unit vector; a step of diffusers' scheduler then returns coefficients.
    """
    scheduler = UniPCMultistepScheduler(**json.loads(config))
    scheduler.set_timesteps(num_steps)
    order = scheduler.config.solver_order
    units = torch.eye(3 + order, dtype=torch.float64)[:, None]
    matrices: list[Float[Tensor, "r r"]] = []
    for timestep in scheduler.timesteps:
        if matrices:
            scheduler.last_sample = units[CORRECTED]
        scheduler.model_outputs = [
            None if output is None else unit for output, unit in zip(scheduler.model_outputs, units[3:], strict=True)
        ]
        matrix = torch.zeros(3 + order, 3 + order, dtype=torch.float64)
        matrix[SAMPLE] = scheduler.step(units[OUTPUT], timestep, units[SAMPLE]).prev_sample[0]
        matrix[CORRECTED] = scheduler.last_sample[0]
        for row, output in zip(matrix[3:], scheduler.model_outputs, strict=True):
            if output is not None:
                row.copy_(output[0])
        matrices.append(matrix)
    table = torch.stack(matrices)
    if not torch.isfinite(table).all():
        raise ValueError(f"the scheduler's settings give steps that are not finite: {config}")
    return SamplingTable(scheduler.timesteps, table)


def sample_latents(
    restorer: Restorer,
    scheduler: Scheduler,
    condition: Conditioning,
    noise: Float[Tensor, "b l h8 w8"],
    num_inference_steps: int,
) -> Float[Tensor, "b l h8 w8"]:
    """Sample the latents of restored images; no classifier-free guidance. The paper: UniPC, 20 steps.

    Args:
        noise: what a teacher starts from; a student starts from the degraded image's latents instead.
    """
    table = sampling_table(scheduler, num_inference_steps, noise.device, torch.float32)
    denoiser = Denoiser(ControlledUNet(restorer), condition.prompts.semantic_embedding, table.timesteps)

    def predict(latents: Float[Tensor, "b l h8 w8"], step: int) -> Float[Tensor, "b l h8 w8"]:
        return denoiser(step, latents, condition.control_features, condition.encoded.latents)

    return table.sample(starting_latents(scheduler, condition, noise), predict)


def starting_latents(
    scheduler: Scheduler, condition: Conditioning, noise: Float[Tensor, "b l h8 w8"]
) -> Float[Tensor, "b l h8 w8"]:
    """Return what sampling starts from: noise, or the degraded image's latents for a student."""
    return condition.encoded.latents if isinstance(scheduler, OneStepScheduler) else noise
