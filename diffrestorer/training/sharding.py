"""ZeRO-1: the optimisers' states divided among the processes of a run, each of which would hold all of them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.optim import ZeroRedundancyOptimizer

State = dict[int, dict[str, Tensor]]
"""Tensors of an optimiser's state by parameter and name, as `exp_avg` of parameter 3."""


class ShardedOptimizer(ZeroRedundancyOptimizer):
    """An optimiser of which every process steps a share of the parameters, and then sends them to the others.

    Groups and `state_dict` are those of the optimiser that it divides, so that checkpoints do not depend on who wrote
    them. Its own `state` is this process's share.

    torch's class moves states as pickles, through the memory of every device, and keeps a loaded state twice. Here
    they travel tensor by tensor from host to host, for a checkpoint must not need more memory than a step.

    Args:
        optimizer: is divided; without a state so far.
        hosts: a gloo group of all processes.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, hosts: distributed.ProcessGroup) -> None:
        assert not optimizer.state, "a state would be lost"
        super().__init__([dict(group) for group in optimizer.param_groups], type(optimizer))
        self.state = self.optim.state
        self._hosts = hosts
        self._whole: State | None = None

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Bring the whole state to the host memory of process `to`. All processes call it at the same point."""
        # The base class's own state_dict: this process's share, under the indices of all parameters.
        share: State = torch.optim.Optimizer.state_dict(self)["state"]
        shapes = [
            (index, name, value.shape, value.dtype)
            for index, entry in share.items()
            for name, value in entry.items()
        ]
        receives = self.rank == to
        all_shapes: list[Any] = [None] * self.world_size
        distributed.gather_object(shapes, all_shapes if receives else None, to, self._hosts)

        # Each process sends its tensors one by one, in the order that it has just told.
        if not receives:
            for index, name, _, _ in shapes:
                distributed.send(share[index][name].cpu().contiguous(), to, self._hosts)
            return
        self._whole = dict(share)
        for process, expected in enumerate(all_shapes):
            if process == to:
                continue
            for index, name, shape, dtype in expected:
                value = torch.empty(shape, dtype=dtype)
                distributed.recv(value, process, self._hosts)
                self._whole.setdefault(index, {})[name] = value

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, once after each `consolidate_state_dict` and on its process alone."""
        assert self._whole is not None, "all processes consolidate the state before it is read"
        whole, self._whole = self._whole, None
        return {**torch.optim.Optimizer.state_dict(self), "state": dict(sorted(whole.items()))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take this process's share of a whole state."""
        own = {parameter for group in self.optim.param_groups for parameter in group["params"]}
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        share = {
            index: entry for index, entry in state_dict["state"].items() if parameters[index] in own
        }
        torch.optim.Optimizer.load_state_dict(self, {**state_dict, "state": share})

        # The groups' options reach the inner optimiser at its next step.
        self.optim.state = self.state


def shard(optimizers: Iterable[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    """Divide new optimisers among the processes. All processes call it at the same point."""
    hosts = distributed.new_group(backend="gloo")
    assert isinstance(hosts, distributed.ProcessGroup), "every process belongs to it"
    return [ShardedOptimizer(optimizer, hosts) for optimizer in optimizers]


def consolidate(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Bring divided states to the main process, for `state_dict`. All processes call it at the same point."""
    for optimizer in optimizers:
        if isinstance(optimizer, ShardedOptimizer):
            optimizer.consolidate_state_dict()
