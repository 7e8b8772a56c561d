"""IR-SDE: dx = theta_t (mu - x) dt + sigma_t dw, from the clean image to the degraded one plus noise.

With sigma_t^2 = 2 lambda^2 theta_t, x_t is normal with mean m_t and variance v_t in closed form. Equations are numbered
as in the IR-SDE paper (arXiv 2301.11699). Steps are t = 0 (clean) to T; images and lambda are in [0, 1].
"""

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Images = Float[Tensor, "b 3 h w"]
Steps = Int[Tensor, "b"]


@functools.lru_cache
def _cosine_rates(num_steps: int, remainder: float) -> Float[Tensor, "t1"]:
    # The authors' table has two entries more than steps, the first of which is set to zero.
    shares = torch.arange(num_steps + 2, dtype=torch.float64) / (num_steps + 2)
    cosine = torch.cos((shares + 0.008) / 1.008 * math.pi / 2) ** 2
    thetas = 1 - cosine[1:] / cosine[0]
    thetas[0] = 0
    return thetas / thetas.sum() * -math.log(remainder)


@dataclass(frozen=True)
class IRSDE:
    """The process in T steps with the cosine schedule of theta.

    Attributes:
        num_steps: T.
        max_sigma: lambda, the standard deviation at the end, in units of 1/255.
        remainder: share of the distance to the degraded image that is left at T.
    """

    num_steps: int = 100
    max_sigma: float = 50.0
    remainder: float = 0.005

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.max_sigma <= 0:
            raise ValueError(
                f"IR-SDE needs num_steps >= 1 and max_sigma > 0, not {self.num_steps}, {self.max_sigma}"
            )

    def rates(self) -> Float[Tensor, "t1"]:
        """Return theta_t dt for t = 0..T (0 at 0), scaled so that they sum to -log(remainder)."""
        return _cosine_rates(self.num_steps, self.remainder)

    def decays(self) -> Float[Tensor, "t1"]:
        """Return exp(-theta_bar_t) for t = 0..T, the share of the distance to mu that is left."""
        return (-self.rates().cumsum(0)).exp()

    def deviations(self) -> Float[Tensor, "t1"]:
        """Return sqrt(v_t) for t = 0..T, v_t = lambda^2 (1 - exp(-2 theta_bar_t)). Source: Eq. 6 of IR-SDE."""
        return self.max_sigma / 255 * (1 - (-2 * self.rates().cumsum(0)).exp()).sqrt()

    def _at(self, table: str, steps: Steps, like: Images) -> Float[Tensor, "b 1 1 1"]:
        return _table_on(self, table, like.device, like.dtype)[steps][:, None, None, None]

    def _decay(self, steps: Steps, like: Images) -> Float[Tensor, "b 1 1 1"]:
        return self._at("decays", steps, like)

    def _rate(self, steps: Steps, like: Images) -> Float[Tensor, "b 1 1 1"]:
        return self._at("rates", steps, like)

    def mean(self, clean: Images, mu: Images, steps: Steps) -> Images:
        """Return m_t = mu + (x_0 - mu) exp(-theta_bar_t). Source: Eq. 6 of IR-SDE."""
        return mu + (clean - mu) * self._decay(steps, clean)

    def deviation(self, steps: Steps, like: Images) -> Float[Tensor, "b 1 1 1"]:
        """Return the standard deviation of x_t, see `deviations`."""
        return self._at("deviations", steps, like)

    def clean_image(self, state: Images, mu: Images, noise: Images, steps: Steps) -> Images:
        """Return the x_0 for which this noise makes `state` at step t."""
        return mu + (state - mu - self.deviation(steps, state) * noise) / self._decay(steps, state)

    def previous_mean(self, state: Images, clean: Images, mu: Images, steps: Steps) -> Images:
        """Return the mean of x_{t-1} given x_t and x_0, the target of training. Source: Eq. 13 of IR-SDE."""
        left = self._decay(steps, state)
        left_before = self._decay(steps - 1, state)
        step_decay = left / left_before
        total = 1 - left**2

        # A weighted mean of where x_t and x_0 lie, seen from mu.
        from_state = (1 - left_before**2) / total * step_decay * (state - mu)
        from_clean = (1 - step_decay**2) / total * left_before * (clean - mu)
        return mu + from_state + from_clean

    def previous_deviation(self, steps: Steps, like: Images) -> Float[Tensor, "b 1 1 1"]:
        """Return the standard deviation of x_{t-1} given x_t and x_0; 0 at t = 1."""
        left = self._decay(steps, like)
        left_before = self._decay(steps - 1, like)
        variance = (1 - left_before**2) * (1 - (left / left_before) ** 2) / (1 - left**2)
        return self.max_sigma / 255 * variance.clamp(min=0).sqrt()

    def reverse_mean(self, state: Images, mu: Images, noise: Images, steps: Steps) -> Images:
        """Take one Euler step of the reverse-time SDE without its noise; the score is -noise / sqrt(v_t).

        Source: Eq. 7 of IR-SDE.
        """
        rate = self._rate(steps, state)

        # sigma_t^2 dt
        variance = 2 * (self.max_sigma / 255) ** 2 * rate
        score = -noise / self.deviation(steps, state)
        return state - (rate * (mu - state) - variance * score)

    def reverse_deviation(self, steps: Steps, like: Images) -> Float[Tensor, "b 1 1 1"]:
        """Return sigma_t sqrt(dt), the standard deviation of one Euler step's noise."""
        return self.max_sigma / 255 * (2 * self._rate(steps, like)).sqrt()


@functools.lru_cache(maxsize=32)
def _table_on(
    process: IRSDE, name: str, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "t1"]:
    """Return a table of the process by its method's name. It stays on the device, since each copy would wait for it."""
    return getattr(process, name)().to(device, dtype)
