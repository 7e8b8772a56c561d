"""Several processes, one per GPU, as `accelerate launch` and torchrun start them."""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from diffrestorer.cli.job import StopError

Result = TypeVar("Result")


class Processes:
    """This process among those that a launcher started; alone without a launcher.

    Attributes:
        index: of this process, from 0.
        count: of the processes.
    """

    def __init__(self, device: str) -> None:
        """Join the others.

        Args:
            device: the value of --device.
        """
        self.index, self.count = 0, int(os.environ.get("WORLD_SIZE", "1"))
        if self.count > 1:
            from diffrestorer.training.launcher import PATIENCE, join_processes

            self.index = join_processes(device, PATIENCE).process_index

    def from_first(self, make: Callable[[], Result]) -> Result:
        """Run `make` in the first process and return its result in all of them.

        Raises:
            StopError: `make` raised one; the other processes raise it without its sentence.
        """
        if self.count == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        # A StopError is sent like a result, or the others would wait for one.
        made: list[Any] = [None]
        stopped: StopError | None = None
        if self.index == 0:
            try:
                made = [make()]
            except StopError as error:
                stopped = error
                made = [StopError("", error.status)]
        broadcast_object_list(made)
        if isinstance(made[0], StopError):
            raise stopped or made[0]
        return made[0]

    def total(self, tally: Counter[str]) -> Counter[str]:
        """Return the sum of all processes' tallies, once the last of them has arrived here."""
        if self.count == 1:
            return tally
        from accelerate.utils import gather_object

        return sum(gather_object([tally]), Counter())
