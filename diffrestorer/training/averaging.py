"""Exponential moving average of the weights (diffusers' `EMAModel`), with its place in a checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from jaxtyping import Float
from torch import Tensor, nn


class WeightAverage:
    """An average of a task's trainable parameters: w' <- d w' + (1 - d) w, d rising to `decay` over the first steps.

    Args:
        decay: in (0, 1).

    Raises:
        ValueError: another decay.
    """

    def __init__(self, task: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"train.ema_decay={decay} must lie between 0 and 1, such as 0.9999; null: no average")
        trained = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        self.average = EMAModel(self.parameters, decay=decay, foreach=True)

    def update(self) -> None:
        """After an optimiser's step."""
        self.average.to(self.parameters[0].device)  # does nothing once there
        self.average.step(self.parameters)

    def state(self) -> dict[str, Tensor]:
        """The averaged parameters by name."""
        return dict(zip(self.names, self.average.shadow_params, strict=True))

    def load(self, read: Callable[[str], Float[Tensor, "..."]], step: int) -> None:
        """Goes on from a checkpoint made after `step` updates; `read` returns an averaged parameter by name."""
        for name, average in self.state().items():
            average.copy_(read(name))
        self.average.optimization_step = step

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the task's parameters are the averaged ones."""
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)
        try:
            yield
        finally:
            self.average.restore(self.parameters)
