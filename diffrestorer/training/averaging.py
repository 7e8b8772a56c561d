"""Exponential moving average of the weights (diffusers' `EMAModel`), with its place in a checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from jaxtyping import Float
from torch import Tensor, nn


class WeightAverage:
    """An average of a task's trainable parameters: w' <- d w' + (1 - d) w, d rising to `decay` over the first steps.

    Args:
        task: the module whose trainable parameters are averaged.
        decay: in (0, 1).

    Raises:
        ValueError: another decay.
    """

    def __init__(self, task: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(
                f"train.ema_decay={decay} must lie between 0 and 1, such as 0.9999; null: no average"
            )

        self.names: list[str] = []
        self.parameters: list[nn.Parameter] = []
        for name, parameter in task.named_parameters():
            if parameter.requires_grad:
                self.names.append(name)
                self.parameters.append(parameter)
        self.average = EMAModel(self.parameters, decay=decay, foreach=True)

    def update(self) -> None:
        """Take in the weights as they are after an optimiser's step."""
        # Moving does nothing once the average is where the parameters are.
        self.average.to(self.parameters[0].device)
        self.average.step(self.parameters)

    def state(self) -> dict[str, Tensor]:
        """Return the averaged parameters by name."""
        return dict(zip(self.names, self.average.shadow_params, strict=True))

    def load(self, read: Callable[[str], Float[Tensor, "..."]], step: int) -> None:
        """Go on from a checkpoint.

        Args:
            read: returns an averaged parameter by name.
            step: updates before the checkpoint was made.
        """
        for name, average in self.state().items():
            average.copy_(read(name))
        self.average.optimization_step = step

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averaged parameters into the task while the context lasts."""
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)
        try:
            yield
        finally:
            self.average.restore(self.parameters)
