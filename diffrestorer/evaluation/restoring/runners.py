"""Models that restore batches: the protocol, the diffusion pipeline, and the choice between the kinds."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import ConsistencyDecoderVAE
from jaxtyping import Float
from torch import Tensor

from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.restoring.consistency_decoder import (
    decode_consistently,
    load_consistency_decoder,
)
from diffrestorer.evaluation.restoring.identity import check_ablation, weights_digest
from diffrestorer.evaluation.restoring.outputs import NOISE, Restored, noise_seed
from diffrestorer.evaluation.restoring.precision import DTYPES, place_network, precision_of
from diffrestorer.inference.choices import THRESHOLD
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.inference.results import mark_infinite
from diffrestorer.inference.tiling import WHOLE_PIXELS


@dataclass(frozen=True)
class Sampling:
    """The settings that methods restore with.

    Attributes:
        seed: of all noise.
        dtype: a key of `DTYPES`.
        steps: denoising steps; None for each model's own number.
        consistency_decoder: folder or hub id of the Consistency Decoder.
    """

    seed: int = 0
    dtype: str = "float32"
    steps: int | None = None
    consistency_decoder: str = "openai/consistency-decoder"


@runtime_checkable
class Runner(Protocol):
    """A model that restores; methods that share its source share it."""

    def settings(self, method: Method) -> dict[str, Any]:
        """Return what a method's outputs depend on besides the input: kept images are recognised by it."""

    def restore(
        self,
        lq: Float[Tensor, "b 3 h w"],
        names: Sequence[str],
        methods: Sequence[Method],
    ) -> dict[str, Restored]:
        """Return method name -> restored images.

        The result for an image depends neither on the others of its batch (beyond rounding) nor on earlier calls.

        Args:
            lq: degraded images in [0, 1] of one size.
            names: of the images, which their noise depends on.
            methods: of this runner's source.
        """


def open_runner(
    methods: Sequence[Method],
    sampling: Sampling,
    device: torch.device,
) -> Runner:
    """Open the runner of methods that share one source. A new kind of method joins here.

    Raises:
        ValueError: the model can't be loaded, or is not the ablation it is said to be.
    """
    if methods[0].kind == "baseline":
        from diffrestorer.evaluation.restoring.compared_runner import BaselineRunner

        return BaselineRunner(methods[0], sampling.seed, sampling.dtype, device)
    return PipelineRunner(methods, sampling, device)


class PipelineRunner:
    """DiffRestorerPipeline: samples once, then decodes with each method's decoder."""

    def __init__(
        self,
        methods: Sequence[Method],
        sampling: Sampling,
        device: torch.device,
    ) -> None:
        # The model, where and as it will run.
        dtype = DTYPES[sampling.dtype]
        self.pipe = DiffRestorerPipeline.from_pretrained(methods[0].source, dtype=dtype).to(device)
        place_network(self.pipe.restorer, device)
        self.pipe.set_progress_bar_config(disable=True)
        self.sampling = sampling
        self.steps = self.pipe.choose_steps(sampling.steps)

        # It must be what its rows claim, and have the decoders that they ask for.
        for method in methods:
            check_ablation(method, self.pipe)
        self.consistency_decoder: ConsistencyDecoderVAE | None = None
        if any(method.decoder == "consistency" for method in methods):
            self.consistency_decoder = load_consistency_decoder(sampling.consistency_decoder, self.pipe)

    @cached_property
    def _weights(self) -> str:
        return weights_digest(self.pipe.components)

    def settings(self, method: Method) -> dict[str, Any]:
        """Return weights, decoder, steps, seed, noise, sampler, dtype and threshold."""
        weights = self._weights
        if method.decoder == "consistency":
            weights += "+" + weights_digest({"consistency_decoder": self.consistency_decoder})
        return {
            "weights": weights,
            "decoder": method.decoder,
            "steps": self.steps,
            "seed": self.sampling.seed,
            "noise": NOISE,
            "sampler": type(self.pipe.scheduler).__name__,
            "dtype": precision_of(self.sampling.dtype, self.pipe.dtype),
            "threshold": THRESHOLD,
        }

    @torch.no_grad()
    def restore(
        self,
        lq: Float[Tensor, "b 3 h w"],
        names: Sequence[str],
        methods: Sequence[Method],
    ) -> dict[str, Restored]:
        """Restore a batch; each image has a generator of its own, so that batches don't change a result."""
        # A large image is cut into tiles, which fill a batch by themselves.
        if len(lq) > 1 and lq.shape[2] * lq.shape[3] > WHOLE_PIXELS:
            pairs = zip(lq.split(1), names, strict=True)
            return _join([self.restore(row, [name], methods) for row, name in pairs])

        started = time.perf_counter()
        seeds = [noise_seed(self.sampling.seed, name) for name in names]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        sampled = self.pipe.sample(lq, self.steps, generators, threshold=THRESHOLD)
        sampling_seconds = time.perf_counter() - started

        # All decoders read the same latents.
        restored = {}
        for method in methods:
            started = time.perf_counter()
            if method.decoder == "consistency":
                images = decode_consistently(self.consistency_decoder, sampled.latents, seeds)
                images = mark_infinite(images)[..., : lq.shape[2], : lq.shape[3]].clamp(0, 1)
            else:
                images = self.pipe.decode(sampled, method.decoder)
            images = images.float().cpu()
            seconds = sampling_seconds + time.perf_counter() - started
            restored[method.name] = Restored(images, seconds / len(lq))
        return restored


def _join(
    rows: Sequence[dict[str, Restored]],
) -> dict[str, Restored]:
    """Join the results of single images to those of a batch."""
    joined = {}
    for name in rows[0]:
        images = torch.cat([row[name].images for row in rows])
        joined[name] = Restored(images, sum(row[name].seconds for row in rows) / len(rows))
    return joined
