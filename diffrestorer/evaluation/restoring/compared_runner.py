"""The compared methods: one network, one output, in float32 (or TF32)."""

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffrestorer.baselines.protocol import Pass, RegressionBaseline, whole
from diffrestorer.baselines.registry import load_baseline
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.restoring.identity import weights_digest
from diffrestorer.evaluation.restoring.outputs import NOISE, Restored, noise_seed
from diffrestorer.evaluation.restoring.precision import place_network, precision_of
from diffrestorer.inference.results import mark_infinite
from diffrestorer.inference.tiling import Grid, smaller_sides, tile_side, until_it_fits


class BaselineRunner:
    """A compared method behind the protocol `Runner`."""

    def __init__(
        self,
        method: Method,
        seed: int,
        dtype: str,
        device: torch.device,
    ) -> None:
        source = Path(method.source)
        self.network = load_baseline(source, method.base if source.is_file() else None).eval()
        place_network(self.network, device)
        self.seed, self.dtype = seed, dtype

    @cached_property
    def _weights(self) -> str:
        return weights_digest({"network": self.network})

    def settings(self, method: Method) -> dict[str, Any]:
        """Return weights, seed, noise and dtype."""
        dtype = precision_of(self.dtype, self.network.dtype)
        return {"weights": self._weights, "seed": self.seed, "noise": NOISE, "dtype": dtype}

    def restore(
        self,
        lq: Float[Tensor, "b 3 h w"],
        names: Sequence[str],
        methods: Sequence[Method],
    ) -> dict[str, Restored]:
        """Restore a batch, the same for every method of this source."""
        started = time.perf_counter()
        side = tile_side("auto", lq.shape[2], lq.shape[3], self.network.multiple)
        if side is None and isinstance(self.network, RegressionBaseline):
            images = self._restore(lq, side, self.seed)
        else:
            # Large images go by tiles; a method that samples gives every image a noise of its own.
            rows = []
            for row, name in zip(lq.split(1), names, strict=True):
                rows.append(self._restore(row, side, noise_seed(self.seed, name)))
            images = torch.cat(rows)
        restored = Restored(images, (time.perf_counter() - started) / len(lq))
        return {method.name: restored for method in methods}

    def _restore(
        self,
        lq: Float[Tensor, "b 3 h w"],
        side: int | None,
        seed: int,
    ) -> Float[Tensor, "b 3 h w"]:
        def run(
            side: int | None,
            _: int | None,
        ) -> Float[Tensor, "b 3 h w"]:
            network_pass = whole if side is None else by_tiles(side, self.network.multiple)
            lq_there = lq.to(self.network.device)
            return self.network.restore(lq_there, seed, _marking(network_pass)).float().cpu()

        # Where memory runs out, smaller tiles are tried.
        sides = [side]
        if len(lq) == 1:
            sides += smaller_sides(side, lq.shape[-2:], self.network.multiple)
        return until_it_fits(run, sides)


def _marking(network_pass: Pass) -> Pass:
    """Return a pass whose infinities are NaN, which clamping does not hide."""

    def run(
        network: Callable[..., Float[Tensor, "b 3 _ _"]],
        images: Sequence[Float[Tensor, "b 3 _ _"]],
    ) -> Float[Tensor, "b 3 _ _"]:
        return mark_infinite(network_pass(network, images))

    return run


def by_tiles(side: int, multiple: int) -> Pass:
    """Return a pass of a network over one image by tiles of at most `side` pixels, averaged where they overlap.

    Whatever the network gathers from the whole image (attention, pooled statistics) it gathers from each tile.
    """

    def run(
        network: Callable[..., Float[Tensor, "1 3 _ _"]],
        images: Sequence[Float[Tensor, "1 3 h w"]],
    ) -> Float[Tensor, "1 3 h w"]:
        return Grid.over(images[0].shape[-2:], side, multiple, cell=1, batch_size=1).run(
            network, images
        )

    return run
