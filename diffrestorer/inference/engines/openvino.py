"""The networks through OpenVINO, for CPUs: the same numbers in float32 (speed: docs/performance.md). An optional extra.

Each network is traced at a small size on first use. The first shapes of inputs that it meets get a network compiled for
just them, which is faster; all others share one compiled for any shape. OpenVINO's own `convert_model` reports its use
over the network; the frontend below it, which this file asks, does not.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffrestorer.inference.engines.engine import Engine
from diffrestorer.models.backbones import EncodedImage, decode_latents, encode_image
from diffrestorer.models.denoiser import Denoiser
from diffrestorer.models.prompt_processor import VisualPrompts
from diffrestorer.models.restorer import Conditioning, Restorer

try:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
except ImportError:
    openvino = None

EXAMPLE_SIDE = 128
"""Pixels along a side of the image that networks are traced with."""

OWN_SHAPES = 2
"""Shapes of inputs that get a compiled network of their own; each holds a copy of the weights."""

Arrays = Float[Tensor, "..."]
Compiled = Callable[..., list[Arrays]]


class OpenVINOEngine(Engine):
    """Runs the networks in OpenVINO; those of large images' tiles that share statistics, in PyTorch.

    Args:
        restorer: float32, on the CPU; its weights as they are when a network first runs.

    Raises:
        ValueError: OpenVINO is not installed.
    """

    def __init__(self, restorer: Restorer) -> None:
        super().__init__(restorer)
        if openvino is None:
            raise ValueError("engine openvino needs OpenVINO: pip install 'diffrestorer[openvino]'")
        self.encoder, self.control = _Encoder(restorer), _Control(restorer)
        self.refiner, self.sd_decoder = _Refiner(restorer), _Decoder(restorer)

    def read_prompts(self, lq: Float[Tensor, "b 3 h w"]) -> VisualPrompts:
        """See `Restorer.read_prompts`."""
        (embedding,) = self._tower(self.restorer.image_encoder.prepare(lq))
        return self.restorer.prompt_processor(embedding)

    def condition(self, lq: Float[Tensor, "b 3 h w"], prompts: VisualPrompts) -> Conditioning:
        """See `Restorer.condition`."""
        latents, *features = self._encode(lq)
        (control_features,) = self._control(lq, prompts.degradation_embedding, latents)
        return Conditioning(prompts, EncodedImage(latents, tuple(features)), control_features)

    def denoiser(self, semantic_embedding: Float[Tensor, "b t s"], timesteps: Int[Tensor, " n"]) -> Denoiser:
        """See `Denoiser`."""
        run = self._step if semantic_embedding.shape[1] == 1 else None
        return Denoiser(self.network, semantic_embedding, timesteps, run and (lambda *inputs: run(*inputs)[0]))

    def decode(
        self, latents: Float[Tensor, "b l h8 w8"], condition: Conditioning, refined: bool, fidelity: float
    ) -> Float[Tensor, "b 3 h w"]:
        """See `Restorer.decode`."""
        if not refined:
            return self._decode(latents)[0]
        features, embedding = condition.encoded.features, condition.prompts.degradation_embedding
        assert features is not None, "a whole image keeps them"
        return self._refine(latents, embedding, torch.tensor(fidelity), *features)[0]

    @functools.cached_property
    def _example(self) -> tuple[Float[Tensor, "b 3 h w"], Conditioning]:
        lq = torch.rand(2, 3, EXAMPLE_SIDE, EXAMPLE_SIDE, generator=torch.Generator().manual_seed(0))
        return lq, self.restorer.condition(lq, self.restorer.read_prompts(lq))

    @functools.cached_property
    def _tower(self) -> Compiled:
        return compile_network(
            self.restorer.image_encoder.visual, self.restorer.image_encoder.prepare(self._example[0])
        )

    @functools.cached_property
    def _encode(self) -> Compiled:
        return compile_network(self.encoder, self._example[0])

    @functools.cached_property
    def _control(self) -> Compiled:
        lq, condition = self._example
        inputs = (lq, condition.prompts.degradation_embedding, condition.encoded.latents)
        return compile_network(self.control, *inputs)

    @functools.cached_property
    def _step(self) -> Compiled:
        _, condition = self._example
        latents, prompts = condition.encoded.latents, condition.prompts
        denoiser = Denoiser(self.network, prompts.semantic_embedding, torch.tensor([500]))
        inputs = (latents, condition.control_features, latents, denoiser.biases[0], *denoiser.constants)
        return compile_network(self.network, *inputs)

    @functools.cached_property
    def _refine(self) -> Compiled:
        _, condition = self._example
        encoded, embedding = condition.encoded, condition.prompts.degradation_embedding
        assert encoded.features is not None
        return compile_network(self.refiner, encoded.latents, embedding, torch.tensor(0.5), *encoded.features)

    @functools.cached_property
    def _decode(self) -> Compiled:
        return compile_network(self.sd_decoder, self._example[1].encoded.latents)


class _Encoder(nn.Module):
    """The VAE's encoder: images to latents and the features the decoder refines with."""

    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        self.vae = restorer.vae

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Arrays, ...]:
        encoded = encode_image(self.vae, images)
        assert encoded.features is not None
        return encoded.latents, *encoded.features


class _Control(nn.Module):
    """The control encoder, and the convolution through which its feature enters the control network."""

    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        self.control_encoder, self.control_network = restorer.control_encoder, restorer.control_network

    def forward(
        self,
        lq: Float[Tensor, "b 3 h w"],
        degradation_embedding: Float[Tensor, "b d"],
        lq_latents: Float[Tensor, "b l h8 w8"],
    ) -> Float[Tensor, "b c h8 w8"]:
        return self.control_network.enter(self.control_encoder(lq, degradation_embedding, lq_latents))


class _Decoder(nn.Module):
    """The VAE's decoder."""

    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        self.vae = restorer.vae

    def forward(self, latents: Float[Tensor, "b l h8 w8"]) -> Float[Tensor, "b 3 h w"]:
        return decode_latents(self.vae, latents)


class _Refiner(nn.Module):
    """The Degradation-aware Decoder, its features one by one."""

    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        self.decoder = restorer.decoder

    def forward(
        self,
        latents: Float[Tensor, "b l h8 w8"],
        degradation_embedding: Float[Tensor, "b d"],
        fidelity: Float[Tensor, ""],
        *features: Float[Tensor, "b _ _ _"],
    ) -> Float[Tensor, "b 3 h w"]:
        return self.decoder(latents, features, degradation_embedding, fidelity)


def group_norm(norm: nn.GroupNorm, x: Float[Tensor, "b c *sizes"]) -> Float[Tensor, "b c *sizes"]:
    """What `norm` computes, by means of channels: OpenVINO then keeps channels last and reorders nothing in memory."""
    channels, groups = x.shape[1], norm.num_groups
    per_channel = (-1, channels, *(1 for _ in x.shape[2:]))

    def group_mean(x: Float[Tensor, "b c *sizes"]) -> Float[Tensor, "b c *ones"]:
        means = x.mean(tuple(range(2, x.dim())), keepdim=True).reshape(-1, groups, channels // groups)
        return means.mean(2, keepdim=True).expand(-1, -1, channels // groups).reshape(per_channel)

    centred = x - group_mean(x)
    scale = torch.rsqrt(group_mean(centred * centred) + norm.eps)
    if not norm.affine:
        return centred * scale
    return centred * (scale * norm.weight.view(per_channel)) + norm.bias.view(per_channel)


@contextlib.contextmanager
def _norms_by_channel(network: nn.Module) -> Iterator[None]:
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    for norm in norms:
        norm.forward = functools.partial(group_norm, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


@torch.no_grad()
def compile_network(network: nn.Module, *inputs: Float[Tensor, "..."]) -> Compiled:
    """A network as a function of tensors to a list of tensors, of any batch and size.

    Args:
        inputs: examples, of more than one image and of a size that the network takes.
    """
    with warnings.catch_warnings(), _norms_by_channel(network.eval()):
        warnings.simplefilter("ignore")  # the tracer's, about what depends on the number of channels only
        # Unchecked: the tracer orders what nested modules return by chance, and its check takes that for another graph.
        decoder = TorchScriptPythonDecoder(network, example_input=inputs, trace_kwargs={"check_trace": False})
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    core = openvino.Core()
    requests: dict[tuple[torch.Size, ...] | None, Any] = {}

    def request_for(shapes: tuple[torch.Size, ...]) -> Any:
        key = shapes if shapes in requests or len(requests) < OWN_SHAPES else None
        if key not in requests:
            own = model.clone()
            if key is not None:
                own.reshape({i: list(shape) for i, shape in enumerate(shapes)})
            requests[key] = core.compile_model(own, "CPU", settings).create_infer_request()
        return requests[key]

    def run(*inputs: Float[Tensor, "..."]) -> list[Arrays]:
        arrays = {i: tensor.contiguous().numpy() for i, tensor in enumerate(inputs)}
        request = request_for(tuple(tensor.shape for tensor in inputs))
        return [torch.from_numpy(output) for output in request.infer(arrays, share_inputs=True).values()]

    return run
