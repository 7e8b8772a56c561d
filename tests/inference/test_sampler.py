"""The sampler: its table is diffusers' scheduler, and its loop the plain one."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from soaking import some_now

from diffrestorer.inference.sampler import check_steps, sample_latents
from diffrestorer.inference.unipc_table import sampling_table

if TYPE_CHECKING:
    from diffrestorer.config.schema import ModelConfig
    from diffrestorer.models.restorer import Restorer

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def stock(
    scheduler: UniPCMultistepScheduler, noise: torch.Tensor, num_steps: int, predict: Callable
) -> torch.Tensor:
    scheduler.set_timesteps(num_steps)
    latents = noise
    for timestep in scheduler.timesteps:
        latents = scheduler.step(predict(latents, timestep), timestep, latents).prev_sample
    return latents


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("prediction", some_now(["epsilon", "sample", "v_prediction"], 2))
def test_the_table_is_the_scheduler(prediction: str) -> None:
    """Outputs that depend on the sample, as a network's do."""
    scheduler = UniPCMultistepScheduler(**SCHEDULE, prediction_type=prediction)
    noise = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return (latents + timestep / 100).sin()

    for num_steps in range(1, 51):
        expected = stock(scheduler, noise, num_steps, predict)
        sampled = sampling_table(scheduler, num_steps).sample(noise, predict)
        assert relative_error(sampled, expected) <= 1e-10, num_steps

    def given(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return (noise + timestep / 100).cos().to(latents.dtype)

    for num_steps in (1, 2, 20, 50):
        exact = stock(scheduler, noise, num_steps, given)
        single = sampling_table(scheduler, num_steps).sample(noise.float(), given)
        assert relative_error(single.double(), exact) <= 1e-6, "float32 loses its rounding, no more"


def test_autocast_does_not_round_the_state() -> None:
    """A decoder step with z0=sampled runs the sampler under autocast: the network rounds, the sampler must not."""
    table = sampling_table(UniPCMultistepScheduler(**SCHEDULE, prediction_type="sample"), 5)
    noise = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = table.sample(noise, lambda latents, _: 0.5 * latents)
    with torch.autocast("cpu", torch.bfloat16):
        found = table.sample(noise, lambda latents, _: 0.5 * latents)
    assert torch.equal(found, expected)


def test_a_table_is_kept_where_it_is_used() -> None:
    scheduler = UniPCMultistepScheduler(**SCHEDULE)
    table, single = sampling_table(scheduler, 7), sampling_table(scheduler, 7, dtype=torch.float32)
    assert sampling_table(scheduler, 7, torch.device("cpu"), torch.float32) is single
    assert torch.equal(single.coefficients, table.coefficients.float())
    assert sampling_table(scheduler, 7, "meta").timesteps.device.type == "meta"


@pytest.mark.parametrize(
    "options",
    [
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"predict_x0": False, "final_sigmas_type": "sigma_min"},
        {"disable_corrector": [0, 3]},
        {"use_karras_sigmas": True},
        {"timestep_spacing": "trailing", "lower_order_final": False, "final_sigmas_type": "sigma_min"},
    ],
)
def test_the_table_follows_the_scheduler_s_options(options: dict) -> None:
    scheduler = UniPCMultistepScheduler(**SCHEDULE, **options)
    noise = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return 0.1 * (latents + timestep / 100).sin()

    sampled = sampling_table(scheduler, 7).sample(noise, predict)
    assert relative_error(sampled, stock(scheduler, noise, 7, predict)) <= 1e-6


def test_steps_that_do_not_work_out_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        check_steps(UniPCMultistepScheduler(), 0)
    with pytest.raises(ValueError, match="not finite"):
        check_steps(UniPCMultistepScheduler(solver_type="bh1"), 7)


def test_the_loop_is_the_plain_one(
    tiny_restorer: "Restorer", tiny_config: "ModelConfig", randomised: Callable
) -> None:
    """The scheduler's steps around `Restorer.denoise`, as diffusers' pipelines run them."""
    restorer = randomised(tiny_restorer)
    generator = torch.Generator().manual_seed(0)
    lq, noise = (
        torch.rand(2, 3, 32, 64, generator=generator),
        torch.randn(2, 4, 4, 8, generator=generator),
    )
    scheduler = UniPCMultistepScheduler(**tiny_config.scheduler)
    with torch.no_grad():
        condition = restorer.condition(lq, restorer.read_prompts(lq))
        expected = stock(
            scheduler, noise, 5, lambda latents, t: restorer.denoise(latents, t, condition)
        )
        sampled = sample_latents(restorer, scheduler, condition, noise, 5)
        moved = dataclasses.replace(condition, control_features=condition.control_features + 1)
        assert relative_error(sampled, expected) <= 1e-5
        assert relative_error(sample_latents(restorer, scheduler, moved, noise, 5), expected) > 1e-3
