"""One-step sampling: a student's clean estimate from the degraded image's latents, in a single network call."""

import math
import sys

import torch
from diffusers import ConfigMixin, DDPMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from jaxtyping import Float, Int
from torch import Tensor


class OneStepScheduler(SchedulerMixin, ConfigMixin):
    """Sampler of a one-step student: from the degraded image's latents, at one fixed timestep.

    With a = sqrt(abar_tau) and b = sqrt(1 - abar_tau), the clean estimate for starting latents z and network output e
    is (z - b e) / a for noise prediction, e for sample prediction, and a z - b e for velocity prediction. No noise is
    drawn, so no seed matters. A model folder whose `scheduler/` is of this class restores in one step.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule: the teacher's noise schedule.
        prediction_type: what the network predicts: `epsilon`, `sample` or `v_prediction`.
        tau: the timestep, from 0 to `num_train_timesteps` - 1.

    Raises:
        ValueError: `tau` or `prediction_type` is out of range.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        prediction_type: str = "epsilon",
        tau: int = 200,
    ) -> None:
        if not 0 <= tau < num_train_timesteps:
            raise ValueError(
                f"tau={tau} is not a timestep: choose one from 0 to {num_train_timesteps - 1}"
            )
        if prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(
                f"prediction_type={prediction_type}: choose epsilon, sample or v_prediction"
            )
        schedule = DDPMScheduler(num_train_timesteps, beta_start, beta_end, beta_schedule)
        self.alpha_bar = schedule.alphas_cumprod[tau].item()
        self.timesteps = torch.tensor([tau])

    @classmethod
    def from_teacher(cls, scheduler: SchedulerMixin, tau: int) -> "OneStepScheduler":
        """Return the one-step sampler with a teacher's noise schedule and prediction type."""
        names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
        return cls(**{name: scheduler.config[name] for name in names}, tau=tau)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Check the number of steps and place the timestep on a device.

        Raises:
            ValueError: it is not 1.
        """
        if num_inference_steps != 1:
            raise ValueError(
                f"this model restores in one step, not in {num_inference_steps}: leave the steps out, or give 1"
            )
        self.timesteps = torch.tensor([self.config.tau], device=device)

    def coefficients(self) -> tuple[float, float]:
        """Return the factors of starting latents and network output in the clean estimate."""
        a, b = math.sqrt(self.alpha_bar), math.sqrt(1 - self.alpha_bar)
        match self.config.prediction_type:
            case "epsilon":
                return 1 / a, -b / a
            case "sample":
                return 0.0, 1.0
            case _:
                return a, -b

    def step(
        self,
        model_output: Float[Tensor, "b l h w"],
        timestep: int | Int[Tensor, ""],
        sample: Float[Tensor, "b l h w"],
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Float[Tensor, "b l h w"]]:
        """Return the clean estimate, in float32.

        Args:
            model_output: of the network at `timestep`, which is always tau.
            sample: the latents that the network was given.
        """
        of_sample, of_output = self.coefficients()
        estimate = of_output * model_output.float()
        if of_sample:
            estimate = of_sample * sample.float() + estimate
        return SchedulerOutput(estimate) if return_dict else (estimate,)

    def scale_model_input(
        self, sample: Float[Tensor, "b l h w"], timestep: int | None = None
    ) -> Float[Tensor, "..."]:
        """Return the latents as they are."""
        return sample

    def __len__(self) -> int:
        return self.config.num_train_timesteps


# Model folders that were saved when this module lay one level higher name it there.
sys.modules.setdefault("diffrestorer.one_step", sys.modules[__name__])
