"""The stages of restoring an image (conditioning, denoising, decoding), whole or by tiles."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor

from diffrestorer.inference.engines.engine import Engine
from diffrestorer.inference.tiling import Grid
from diffrestorer.models.backbones import PATCH, EncodedImage, decode_latents, encode_image
from diffrestorer.models.prompt_processor import VisualPrompts
from diffrestorer.models.restorer import Conditioning

Predict = Callable[[Float[Tensor, "b l h8 w8"], int], Float[Tensor, "b l h8 w8"]]


@dataclass(frozen=True)
class Stages:
    """How one image, or a batch of one size, goes through the networks.

    Attributes:
        engine: runs the networks.
        multiple: pixels that the networks' input sides must be a multiple of.
        grid: the image's tiles; None: it is taken whole.
    """

    engine: Engine
    multiple: int
    grid: Grid | None = None

    def condition(self, lq: Float[Tensor, "b 3 h w"], prompts: VisualPrompts) -> Conditioning:
        """What the denoising steps need of degraded images in [0, 1]; of tiles, the VAE's features are not kept."""
        if self.grid is None:
            return self.engine.condition(lq, prompts)
        restorer, multiple = self.engine.restorer, self.multiple // PATCH

        def control(lq: Float[Tensor, "t 3 h w"], latents: Float[Tensor, "t l h8 w8"]) -> Float[Tensor, "t c h8 w8"]:
            features = restorer.control_encoder(lq, prompts.degradation_embedding.expand(len(lq), -1), latents)
            return restorer.control_network.enter(features)

        latents = self.grid.run_shared(lambda own: encode_image(restorer.vae, own).latents, [lq], multiple)
        features = self.grid.run_shared(control, [lq, latents], multiple)
        return Conditioning(prompts, EncodedImage(latents, None), features)

    def predictor(self, condition: Conditioning, timesteps: Int[Tensor, " n"]) -> Predict:
        """Noisy latents and a step's index to the prediction; of tiles, to the average of theirs."""
        denoiser = self.engine.denoiser(condition.prompts.semantic_embedding, timesteps)

        def predict(noisy: Float[Tensor, "b l h8 w8"], step: int) -> Float[Tensor, "b l h8 w8"]:
            inputs = (noisy, condition.control_features, condition.encoded.latents)
            denoise = partial(denoiser, step)
            return denoise(*inputs) if self.grid is None else self.grid.run(denoise, inputs)

        return predict

    def decode(
        self,
        latents: Float[Tensor, "b l h8 w8"],
        lq: Float[Tensor, "b 3 h w"],
        condition: Conditioning,
        refined: bool,
        fidelity: float,
    ) -> Float[Tensor, "b 3 h w"]:
        """Images in [0, 1], not clamped: by the Degradation-aware Decoder, or by the VAE's own."""
        if self.grid is None:
            return self.engine.decode(latents, condition, refined, fidelity)
        restorer, multiple = self.engine.restorer, self.multiple // PATCH

        def refine(latents: Float[Tensor, "t l h8 w8"], lq: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t 3 h w"]:
            embedding = condition.prompts.degradation_embedding.expand(len(lq), -1)
            return restorer.decoder(latents, encode_image(restorer.vae, lq).features, embedding, fidelity)

        if refined:
            return self.grid.run_shared(refine, [latents, lq], multiple)
        return self.grid.run_shared(lambda own: decode_latents(restorer.vae, own), [latents], multiple)
