"""A GPU that is not there: fake `cuda` tensors have shape, type and device but no numbers, on any machine.

What runs on them shows where tensors meet that lie on two devices, what is copied from the host, and what the host
waits for. To read a value, or anything whose length depends on values, fails: there are none. Forward passes only:
torch's backward pass wants a real device.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import diffrestorer
from diffrestorer.baselines.da_clip import sde
from diffrestorer.inference import tiling, unipc_table
from diffrestorer.models import normalisation

CUDA = torch.device("cuda", 0)

PACKAGE = Path(diffrestorer.__file__).parent

KEPT_ON_DEVICES = (
    normalisation._constant,
    unipc_table._table_on,
    sde._cosine_rates,
    sde._table_on,
    tiling._weights,
)
"""Caches of the package that hold tensors."""

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution}
"""Operations that keep a device busy."""


@dataclass(frozen=True)
class Operation:
    """An operation of a fake run.

    Attributes:
        place: innermost line of the package that led to it, such as `data/pairs.py:53`.
        name: in torch, such as `aten.mm.default`.
        shape: of its first tensor.
        dtype: of its first tensor.
        waits: for a copy from the host: False where the memory is page-locked and the copy `non_blocking`.
        busy: whether the device had been given work before.
    """

    place: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    waits: bool
    busy: bool

    @property
    def file(self) -> str:
        """The file of the package that led to it."""
        return self.place.split(":")[0]


class DeviceTraffic(TorchDispatchMode):
    """Notes what passes between host and device.

    Attributes:
        copies: from the host to the device.
        returns: from the device to the host, as tensors.
        mixed: operations between tensors of two devices. Most of them fail; some are an index or a scalar.
        products: matrix products and convolutions on the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[Operation] = []
        self.returns: list[Operation] = []
        self.mixed: list[Operation] = []
        self.products: list[Operation] = []
        self.page_locked: list[Tensor] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operator = function.overloadpacket

        # Fake tensors have no page-locked memory: it is noted beside them.
        if operator is aten._pin_memory:
            self.page_locked.append(args[0].clone())
            return self.page_locked[-1]
        if operator is aten.is_pinned:
            return self._is_page_locked(args[0])

        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        kind = self._kind(operator, inputs, kwargs)
        if kind is not None:
            waits = not (kwargs.get("non_blocking") and self._is_page_locked(inputs[0]))
            first, busy = inputs[0], bool(self.products)
            kind.append(
                Operation(_place(), str(function), tuple(first.shape), first.dtype, waits, busy)
            )
        return function(*args, **kwargs)

    def _kind(
        self, operator: Any, inputs: list[Tensor], kwargs: dict[str, Any]
    ) -> list[Operation] | None:
        """The list that an operation belongs to."""
        devices = {tensor.device.type for tensor in inputs}
        if operator is aten._to_copy and kwargs.get("device") is not None:
            way = (inputs[0].device.type, torch.device(kwargs["device"]).type)
            return {("cpu", "cuda"): self.copies, ("cuda", "cpu"): self.returns}.get(way)
        if operator is aten.copy_ and len(devices) > 1:
            return self.copies if inputs[0].is_cuda else self.returns
        if len(devices) > 1:
            return self.mixed
        if devices != {"cuda"}:
            return None
        return self.products if operator in PRODUCTS else None

    def _is_page_locked(self, tensor: Tensor) -> bool:
        return any(tensor is locked for locked in self.page_locked)


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors made inside may be on `cuda`; real ones become fake on the way. Nothing kept of them outlasts it."""
    _forget_constants()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        _forget_constants()


@contextmanager
def autocast() -> Iterator[None]:
    """`torch.autocast("cuda", torch.bfloat16)`, which refuses to be switched on where there is no GPU."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


@contextmanager
def layer_types(networks: Mapping[str, nn.Module]) -> Iterator[dict[str, set[torch.dtype]]]:
    """Types that each network's layers take and return, by the network's name."""
    types: dict[str, set[torch.dtype]] = {name: set() for name in networks}
    hooks = []
    for name, network in networks.items():

        def note(layer: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            types[name] |= {
                leaf.dtype for leaf in tree_leaves((inputs, output)) if isinstance(leaf, Tensor)
            }

        layers = [module for module in network.modules() if list(module.parameters(recurse=False))]
        hooks += [layer.register_forward_hook(note) for layer in layers]
    try:
        yield types
    finally:
        for hook in hooks:
            hook.remove()


def _place() -> str:
    """File and line of the innermost frame that is the package's."""
    frame = inspect.currentframe()
    while frame is not None and not frame.f_code.co_filename.startswith(f"{PACKAGE}/"):
        frame = frame.f_back
    return (
        f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)}:{frame.f_lineno}"
        if frame
        else "the test"
    )


def _forget_constants() -> None:
    """Empty the caches, which would hand fake tensors to real runs."""
    for cache in KEPT_ON_DEVICES:
        cache.cache_clear()
