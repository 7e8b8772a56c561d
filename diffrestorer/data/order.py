"""The order in which classes take turns, computed from a sample's number alone."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from diffrestorer.data.counter import shuffled

Class = TypeVar("Class", bound=Hashable)


class BalancedOrder(Generic[Class]):
    """An order in which every class comes up equally often, whatever the number of its pairs.

    Every round visits each slot once, in an order drawn from the seed, and a slot is a class. A class's own pairs are
    visited once each before any of them returns.

    Args:
        seed: of the run.
        counts: number of pairs of each class.
        slots: classes of a round; one that is named twice comes up twice as often.
    """

    def __init__(self, seed: int, counts: Mapping[Class, int], slots: Sequence[Class]) -> None:
        self.seed = seed
        self.counts = dict(counts)
        self.slots = list(slots)
        self.turns = [self.slots[:place].count(name) for place, name in enumerate(self.slots)]

    def __call__(self, number: int) -> tuple[Class, int]:
        """Return the class of sample `number`, and its place among the pairs of that class."""
        # The slot of this turn, and how often its class has come up before.
        turn, place = divmod(number, len(self.slots))
        slot = shuffled(place, len(self.slots), self.seed, "classes", turn)
        name = self.slots[slot]
        before = turn * self.slots.count(name) + self.turns[slot]

        # An epoch of that class.
        count = self.counts[name]
        epoch, member = divmod(before, count)
        return name, shuffled(member, count, self.seed, "order", epoch, self.slots.index(name))
