"""One-step sampling: its clean estimate is the teacher's, and what it refuses."""

from pathlib import Path

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from diffrestorer.inference.one_step import OneStepScheduler
from diffrestorer.inference.sampler import check_steps
from diffrestorer.inference.unipc_table import sampling_table

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTIONS = ["epsilon", "sample", "v_prediction"]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_estimate_is_the_teacher_s_first_one(prediction: str) -> None:
    """From noise at the last timestep a teacher's sampler converts the network's output to the same estimate."""
    teacher = UniPCMultistepScheduler(**SCHEDULE, prediction_type=prediction, steps_offset=1)
    teacher.set_timesteps(20)
    assert teacher.timesteps[0] == 999
    noise, output = torch.randn(
        2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    teacher._init_step_index(teacher.timesteps[0])
    expected = teacher.convert_model_output(output, sample=noise)
    student = OneStepScheduler.from_teacher(teacher, tau=999)

    found = student.step(output.float(), 999, noise.float()).prev_sample

    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("tau", [0, 1, 200, 999])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_table_is_the_step(prediction: str, tau: int) -> None:
    scheduler = OneStepScheduler(prediction_type=prediction, tau=tau)
    start, output = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    table = sampling_table(scheduler, 1)
    asked: list[int] = []

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        assert torch.equal(latents, start), "the network is given the starting latents as they are"
        asked.append(timestep.item())
        return output

    found = table.sample(start, predict)

    assert asked == [tau]
    assert table.timesteps.tolist() == [tau]
    torch.testing.assert_close(
        found, scheduler.step(output, tau, start).prev_sample, rtol=1e-6, atol=1e-6
    )


def test_a_clean_start_is_left_by_an_exact_noise_prediction() -> None:
    """z = a z0 + b e, with the true e, gives z0."""
    scheduler = OneStepScheduler(tau=200)
    clean, noise = torch.randn(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    a, b = 0.8682, 0.4963  # SD 1.5's schedule at 200
    torch.testing.assert_close(
        scheduler.step(noise, 200, a * clean + b * noise).prev_sample, clean, rtol=0, atol=5e-4
    )


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    OneStepScheduler(prediction_type="sample", tau=300).save_pretrained(tmp_path)
    loaded = OneStepScheduler.from_pretrained(tmp_path)
    assert (loaded.config.tau, loaded.config.prediction_type, loaded.timesteps.tolist()) == (
        300,
        "sample",
        [300],
    )


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_any_number_of_steps_is_one(steps: int) -> None:
    assert check_steps(OneStepScheduler(), steps) == 1
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        check_steps(OneStepScheduler(), 0)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="tau=1000 is not a timestep: choose one from 0 to 999"):
        OneStepScheduler(tau=1000)
    with pytest.raises(ValueError, match="choose epsilon, sample or v_prediction"):
        OneStepScheduler(prediction_type="flow")
