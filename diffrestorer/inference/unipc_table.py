"""UniPC's steps, and a student's single one, as a table of coefficients computed beforehand.

Stock UniPC computes its coefficients at every step and reads numbers back from the device to do so. Here a step is one
small matrix product: nothing waits for the device, and the host works a twentieth of the time.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin, UniPCMultistepScheduler
from jaxtyping import Float, Int, Real
from torch import Tensor

from diffrestorer.inference.one_step import OneStepScheduler

SAMPLE, OUTPUT, CORRECTED = 0, 1, 2
"""Rows of the sampler's state. The rows after them hold the latest converted model outputs, oldest first."""

Predict = Callable[[Float[Tensor, "b l h w"], Real[Tensor, ""]], Float[Tensor, "b l h w"]]
"""The networks: noisy latents and a timestep to what the scheduler's `prediction_type` says."""

Edit = Callable[[int, Real[Tensor, ""], Float[Tensor, "b l h w"]], Float[Tensor, "b l h w"]]
"""Called after a step with its index, its timestep and the new latents; returns the latents to go on with."""


def keep(
    index: int, timestep: Real[Tensor, ""], latents: Float[Tensor, "b l h w"]
) -> Float[Tensor, "b l h w"]:
    """Return the latents as they are: the edit of a run without a callback."""
    return latents


@dataclass(frozen=True)
class SamplingTable:
    """UniPC for one number of steps.

    UniPC is linear in the sample and the model's outputs. So a step is one small matrix on a state whose rows are the
    sample, the model's output for it, the last corrected sample and the last converted outputs.

    Attributes:
        timesteps: the network's timestep at each step.
        coefficients: a matrix per step, from the state before it to the state after it.
    """

    timesteps: Int[Tensor, " n"]
    coefficients: Float[Tensor, "n r r"]

    def sample(
        self, start: Float[Tensor, "b l h w"], predict: Predict, edit: Edit = keep
    ) -> Float[Tensor, "b l h w"]:
        """Run the reverse diffusion. The state is float32 at least; nothing waits for the device.

        Args:
            start: noise, or a student's starting latents.
        """
        dtype = torch.promote_types(start.dtype, torch.float32)
        state = torch.zeros(self.coefficients.shape[1], start.numel(), dtype=dtype, device=start.device)
        state[SAMPLE] = start.flatten()

        matrices = self.coefficients.to(start.device, dtype).unbind()
        for index, (timestep, matrix) in enumerate(zip(self.timesteps.unbind(), matrices, strict=True)):
            latents = state[SAMPLE].view(start.shape)
            state[OUTPUT] = predict(latents.to(start.dtype), timestep).flatten()
            with torch.autocast(
                start.device.type, enabled=False
            ):  # it would round the state in a training step
                state = matrix @ state

            latents = state[SAMPLE].view(start.shape)
            edited = edit(index, timestep, latents)
            if edited is not latents:
                state[SAMPLE] = edited.flatten()
        # A copy: a view would keep the whole state, as large as the latents of five images, alive.
        return state[SAMPLE].view(start.shape).to(start.dtype, copy=True)


def has_table(scheduler: SchedulerMixin) -> bool:
    """Return whether a scheduler's steps are linear and known beforehand, as a table needs them."""
    if isinstance(scheduler, OneStepScheduler):
        return True
    if type(scheduler) is not UniPCMultistepScheduler:
        return False
    return not scheduler.config.get("thresholding") and not scheduler.config.get("solver_p")


def sampling_table(
    scheduler: SchedulerMixin,
    num_steps: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> SamplingTable:
    """Return a scheduler's table, from its configuration alone; computed once, and copied to each device once.

    Args:
        scheduler: one that `has_table`.
        dtype: of the coefficients.

    Raises:
        ValueError: the scheduler's settings give steps that are not finite.
    """
    # A configuration that was made for another class keeps that class's settings beside its own.
    known = type(scheduler)._get_init_keys(type(scheduler))
    config = {name: value for name, value in scheduler.config.items() if name in known}
    compute = _one_step_table if isinstance(scheduler, OneStepScheduler) else _unipc_table
    return _table_on(compute, json.dumps(config), num_steps, torch.device(device), dtype)


@functools.lru_cache(maxsize=32)
def _table_on(
    compute: Callable[[str, int], SamplingTable],
    config: str,
    num_steps: int,
    device: torch.device,
    dtype: torch.dtype,
) -> SamplingTable:
    """Return the table kept on a device: copied there for each image, it would wait for the device each time."""
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
def _unipc_table(config: str, num_steps: int) -> SamplingTable:
    """Return UniPC's table, read off its own steps: a linear map is known by what it does to unit vectors.

    A unit vector stands for each row of the state. Diffusers' scheduler then returns coefficients.
    """
    scheduler = UniPCMultistepScheduler(**json.loads(config))
    scheduler.set_timesteps(num_steps)
    order = scheduler.config.solver_order
    units = torch.eye(3 + order, dtype=torch.float64)[:, None]

    matrices: list[Float[Tensor, "r r"]] = []
    for timestep in scheduler.timesteps:
        # The scheduler's memory of earlier steps becomes unit vectors, too.
        if matrices:
            scheduler.last_sample = units[CORRECTED]
        scheduler.model_outputs = [
            None if output is None else unit
            for output, unit in zip(scheduler.model_outputs, units[3:], strict=True)
        ]

        # One step of it gives the rows of the matrix: the new sample, and the memory it keeps.
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
