"""What restores a batch: one class a kind of method. A new kind joins `open_runner`."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import ConsistencyDecoderVAE
from jaxtyping import Float
from torch import Tensor

from diffrestorer.baselines.protocol import Pass, whole
from diffrestorer.baselines.registry import load_baseline
from diffrestorer.config.evaluating import EvaluateConfig
from diffrestorer.evaluation.ablations import ABLATIONS
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.restoring.precision import DTYPES, place_network, precision_of
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.inference.tiling import WHOLE_PIXELS, Grid, smaller_sides, tile_side, until_it_fits


@dataclass(frozen=True)
class Restored:
    """Images in [0, 1], and the seconds an image took, sampling included."""

    images: Float[Tensor, "b 3 h w"]
    seconds: float


@runtime_checkable
class Runner(Protocol):
    """A model that restores; methods that share its source share it."""

    def settings(self, method: Method) -> dict[str, Any]:
        """What a method's outputs depend on besides the input: kept images are recognised by it."""

    def restore(self, lq: Float[Tensor, "b 3 h w"], methods: Sequence[Method]) -> dict[str, Restored]:
        """Method name -> restored images, for degraded ones in [0, 1] of one size.

        The result for an image depends neither on the others of its batch (beyond rounding) nor on earlier calls.
        """


class UnavailableError(ValueError):
    """A method can't run here; its rows say why."""


def open_runner(methods: Sequence[Method], config: EvaluateConfig, device: torch.device) -> Runner:
    """The runner of methods that share one source.

    Raises:
        ValueError: the model can't be loaded, or is not the ablation it is said to be.
    """
    if methods[0].kind == "baseline":
        return BaselineRunner(methods[0], config, device)
    return PipelineRunner(methods, config, device)


class PipelineRunner:
    """DiffRestorerPipeline: samples once, then decodes with each method's decoder."""

    def __init__(self, methods: Sequence[Method], config: EvaluateConfig, device: torch.device) -> None:
        self.pipe = DiffRestorerPipeline.from_pretrained(methods[0].source, dtype=DTYPES[config.dtype]).to(device)
        place_network(self.pipe.restorer, device)
        self.pipe.set_progress_bar_config(disable=True)
        self.config = config
        self.steps = self.pipe.default_steps if config.steps is None else config.steps
        for method in methods:
            check_ablation(method, self.pipe)
        self.consistency_decoder: ConsistencyDecoderVAE | None = None
        if any(method.decoder == "consistency" for method in methods):
            self.consistency_decoder = load_consistency_decoder(config.consistency_decoder, self.pipe)

    @cached_property
    def _weights(self) -> str:
        return weights_digest(self.pipe.components)

    def settings(self, method: Method) -> dict[str, Any]:
        """Weights, decoder, steps, seed, sampler and dtype."""
        weights = self._weights
        if method.decoder == "consistency":
            weights += "+" + weights_digest({"consistency_decoder": self.consistency_decoder})
        return {
            "weights": weights,
            "decoder": method.decoder,
            "steps": self.steps,
            "seed": self.config.seed,
            "sampler": type(self.pipe.scheduler).__name__,
            "dtype": precision_of(self.config.dtype, self.pipe.dtype),
        }

    @torch.no_grad()
    def restore(self, lq: Float[Tensor, "b 3 h w"], methods: Sequence[Method]) -> dict[str, Restored]:
        """Each image draws its noise from a generator of its own, so that batches don't change a result."""
        if len(lq) > 1 and lq.shape[2] * lq.shape[3] > WHOLE_PIXELS:  # a batch of its own tiles is large enough
            rows = [self.restore(row, methods) for row in lq.split(1)]
            return {
                method.name: Restored(
                    torch.cat([row[method.name].images for row in rows]),
                    sum(row[method.name].seconds for row in rows) / len(rows),
                )
                for method in methods
            }
        generators = [torch.Generator().manual_seed(self.config.seed) for _ in lq]
        started = time.perf_counter()
        sampled = self.pipe.sample(lq, self.steps, generators)
        sampling = time.perf_counter() - started
        restored = {}
        for method in methods:
            started = time.perf_counter()
            if method.decoder == "consistency":
                images = self._decode_consistently(sampled.latents)[..., : lq.shape[2], : lq.shape[3]].clamp(0, 1)
            else:
                images = self.pipe.decode(sampled, method.decoder)
            images = images.float().cpu()
            restored[method.name] = Restored(images, (sampling + time.perf_counter() - started) / len(lq))
        return restored

    def _decode_consistently(self, latents: Float[Tensor, "b l h8 w8"]) -> Float[Tensor, "b 3 h w"]:
        """Image by image: the decoder draws noise, and each image has a generator of its own."""
        vae = self.consistency_decoder
        assert vae is not None
        images = []
        for row in (latents / vae.config.scaling_factor).to(vae.dtype).split(1):
            generator = torch.Generator().manual_seed(self.config.seed)
            images.append(vae.decode(row, generator=generator).sample / 2 + 0.5)
        return torch.cat(images)


class BaselineRunner:
    """A compared method: one network, one output, in float32 (or TF32)."""

    def __init__(self, method: Method, config: EvaluateConfig, device: torch.device) -> None:
        source = Path(method.source)
        self.network = load_baseline(source, method.name if source.is_file() else None).eval()
        place_network(self.network, device)
        self.seed, self.dtype = config.seed, config.dtype

    @cached_property
    def _weights(self) -> str:
        return weights_digest({"network": self.network})

    def settings(self, method: Method) -> dict[str, Any]:
        """Weights, seed and dtype."""
        dtype = precision_of(self.dtype, self.network.dtype)
        return {"weights": self._weights, "seed": self.seed, "dtype": dtype}

    def restore(self, lq: Float[Tensor, "b 3 h w"], methods: Sequence[Method]) -> dict[str, Restored]:
        """The same for every method of this source; large images one by one, by tiles."""
        started = time.perf_counter()
        side = tile_side("auto", lq.shape[2], lq.shape[3], self.network.multiple)
        images = torch.cat([self._restore(rows, side) for rows in lq.split(len(lq) if side is None else 1)])
        restored = Restored(images, (time.perf_counter() - started) / len(lq))
        return {method.name: restored for method in methods}

    def _restore(self, lq: Float[Tensor, "b 3 h w"], side: int | None) -> Float[Tensor, "b 3 h w"]:
        def run(side: int | None, _: int | None) -> Float[Tensor, "b 3 h w"]:
            network_pass = whole if side is None else by_tiles(side, self.network.multiple)
            return self.network.restore(lq.to(self.network.device), self.seed, network_pass).float().cpu()

        smaller = smaller_sides(side, lq.shape[-2:], self.network.multiple) if len(lq) == 1 else []
        return until_it_fits(run, [side, *smaller])


def by_tiles(side: int, multiple: int) -> Pass:
    """A network over one image by tiles of at most `side` pixels, one by one, averaged where they overlap.

    Whatever the network gathers from the whole image (attention, pooled statistics) it gathers from each tile.
    """

    def run(
        network: Callable[..., Float[Tensor, "1 3 _ _"]], images: Sequence[Float[Tensor, "1 3 h w"]]
    ) -> Float[Tensor, "1 3 h w"]:
        return Grid.over(images[0].shape[-2:], side, multiple, cell=1, batch_size=1).run(network, images)

    return run


def load_consistency_decoder(source: str, pipe: DiffRestorerPipeline) -> ConsistencyDecoderVAE:
    """OpenAI's Consistency Decoder through diffusers (Table V), on the pipeline's device and in its dtype.

    Args:
        source: a folder or a hub id.

    Raises:
        UnavailableError: its weights can't be had, or the model's latents are not Stable Diffusion's.
    """
    try:
        vae = ConsistencyDecoderVAE.from_pretrained(source, dtype=pipe.dtype)
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"no Consistency Decoder at {source!r} ({str(error).splitlines()[0]}): give consistency_decoder=FOLDER "
            "with its config.json and diffusion_pytorch_model.safetensors"
        ) from None
    if vae.config.latent_channels != pipe.vae.config.latent_channels:
        raise UnavailableError(
            f"the Consistency Decoder reads latents of {vae.config.latent_channels} channels, Stable Diffusion's; this "
            f"model's have {pipe.vae.config.latent_channels}"
        )
    place_network(vae, pipe.device)
    return vae.eval()


def check_ablation(method: Method, pipe: DiffRestorerPipeline) -> None:
    """Compares a model's config with the ablation that its row claims.

    Raises:
        ValueError: the model was not trained so.
    """
    ablation = ABLATIONS.get(method.name)
    if ablation is None or not ablation.component:
        return
    found = getattr(pipe, ablation.component).config[ablation.key]
    if found != ablation.value:
        raise ValueError(
            f"{method.source} was not trained with ablation={method.name}: its {ablation.component} says "
            f"{ablation.key}={found}; train it: {ablation.command(method.name, 'outputs')}"
        )


def weights_digest(components: dict[str, Any]) -> str:
    """SHA-256 over configuration and weights of every component: what a model is, wherever it was loaded from."""
    digest = hashlib.sha256()
    for name, component in sorted(components.items()):
        config = {key: value for key, value in dict(component.config).items() if not key.startswith("_")}
        digest.update(f"{name}{json.dumps(config, sort_keys=True, default=str)}".encode())
        if isinstance(component, torch.nn.Module):
            for key, value in sorted(component.state_dict().items()):
                digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
