"""Schedulers other than UniPC's table run by their own steps, as in diffusers' pipelines."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from diffrestorer.inference.pipeline import DiffRestorerPipeline

SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
"""scheduler/scheduler_config.json of Stable Diffusion 1.5."""

STEPS = 4


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def image() -> Tensor:
    return torch.rand(1, 3, 32, 64, generator=seed())


@torch.no_grad()
def plain_loop(
    scheduler: Any, pipe: DiffRestorerPipeline, noise: torch.Generator, **options: Any
) -> Tensor:
    """The loop of diffusers' own pipelines."""
    restorer, lq = pipe.restorer, image()
    condition = restorer.condition(lq, restorer.read_prompts(lq))
    scheduler.set_timesteps(STEPS)
    latents = torch.randn(1, 4, 4, 8, generator=noise) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        output = restorer.denoise(scaled, timestep, condition)
        latents = scheduler.step(output, timestep, latents, **options).prev_sample
    return latents


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler.from_config(SD15, prediction_type="sample"),
        DPMSolverMultistepScheduler.from_config(SD15, prediction_type="sample"),
        EulerDiscreteScheduler.from_config(SD15),
        HeunDiscreteScheduler.from_config(SD15),
        PNDMScheduler.from_config(SD15),
        UniPCMultistepScheduler.from_config(SD15),
        UniPCMultistepScheduler.from_config(SD15, thresholding=True),
    ],
    ids=["DDIM", "DPM++", "Euler", "Heun", "PNDM", "UniPC", "UniPC with thresholding"],
)
def test_a_scheduler_runs_as_in_diffusers(scheduler: Any, pipe: DiffRestorerPipeline) -> None:
    """Twice: nothing of the first image stays in the second. Every step is reported once."""
    expected = plain_loop(type(scheduler).from_config(scheduler.config), pipe, seed())
    pipe.scheduler = scheduler
    reported: list[int] = []
    for _ in range(2):
        found = pipe.sample(image(), STEPS, seed(), on_step=reported.append).latents
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert reported == [1] * 2 * STEPS


def test_a_scheduler_draws_from_the_caller_s_generator(pipe: DiffRestorerPipeline) -> None:
    """Noise that is drawn at every step: one generator gives one image, whatever is drawn elsewhere."""
    scheduler = pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(SD15)
    own = seed(1)
    expected = plain_loop(
        EulerAncestralDiscreteScheduler.from_config(scheduler.config), pipe, own, generator=own
    )
    found = [pipe.sample(image(), STEPS, seed(number)).latents for number in (1, 1, 2)]
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_every_scheduler_restores_by_tiles_and_from_the_call(pipe: DiffRestorerPipeline) -> None:
    pipe.scheduler = EulerDiscreteScheduler.from_config(SD15)
    lq = torch.rand(3, 150, 130, generator=seed())
    (restored,) = pipe(lq, STEPS, seed(), output_type="pt", tile=128).images
    assert restored.shape == lq.shape
    assert torch.isfinite(restored).all()


def test_a_callback_sees_and_changes_the_latents(pipe: DiffRestorerPipeline) -> None:
    """By the table and by a scheduler's own steps: diffusers' `callback_on_step_end`."""
    lq = image()
    for scheduler in (pipe.scheduler, DDIMScheduler.from_config(SD15, prediction_type="sample")):
        pipe.scheduler = scheduler
        seen: list[tuple[int, int]] = []

        def note(pipeline: Any, step: int, timestep: Any, tensors: dict, seen: list = seen) -> dict:
            seen.append((step, int(timestep)))
            return {}

        def clear(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
            return {"latents": torch.zeros_like(tensors["latents"])} if step == STEPS - 1 else {}

        plain = pipe.sample(lq, STEPS, seed()).latents
        assert torch.equal(pipe.sample(lq, STEPS, seed(), callback_on_step_end=note).latents, plain)
        assert [step for step, _ in seen] == list(range(STEPS))
        assert seen[0][1] > seen[-1][1], "timesteps fall"
        assert not pipe.sample(lq, STEPS, seed(), callback_on_step_end=clear).latents.any()


def test_latents_and_tuples_are_returned(pipe: DiffRestorerPipeline) -> None:
    lq = image()
    images, probabilities = pipe(lq, STEPS, seed(), output_type="latent", return_dict=False)
    assert torch.equal(images[0], pipe.sample(lq, STEPS, seed()).latents[0])
    torch.testing.assert_close(probabilities, pipe.detect(lq), rtol=1e-4, atol=1e-5)
