"""The stages of restoring (conditioning, denoising, decoding), on the whole image or by tiles."""

from dataclasses import dataclass, replace

from jaxtyping import Float, Real
from torch import Tensor

from diffrestorer.inference.tiling import Grid
from diffrestorer.inference.unipc_table import Predict
from diffrestorer.models.backbones import PATCH, EncodedImage, decode_latents, encode_image
from diffrestorer.models.prompt_processor import VisualPrompts
from diffrestorer.models.restorer import Conditioning, Restorer


@dataclass(frozen=True)
class Stages:
    """The way of a batch of images of one size through the networks.

    Attributes:
        restorer: the networks.
        multiple: pixels that the networks' input sides must be a multiple of.
        grid: the image's tiles; None: the images are taken whole.
    """

    restorer: Restorer
    multiple: int
    grid: Grid | None = None

    @classmethod
    def over(
        cls,
        restorer: Restorer,
        lq: Float[Tensor, "b 3 h w"],
        multiple: int,
        side: int | None,
        batch_size: int | None,
    ) -> "Stages":
        """Return the stages for padded images, taken whole or by tiles.

        Args:
            side: of the largest tile in pixels; None: the images are taken whole.
            batch_size: tiles that go through a network at a time; None: as many as make 1024x1024 pixels.
        """
        grid = None if side is None else Grid.over(lq.shape[-2:], side, multiple, PATCH, batch_size)
        return cls(restorer, multiple, grid)

    def condition(self, lq: Float[Tensor, "b 3 h w"], prompts: VisualPrompts) -> Conditioning:
        """Compute what the denoising steps need of degraded images in [0, 1], once per image.

        Of a tiled image the VAE's features are not kept.
        """
        if self.grid is None:
            return self.restorer.condition(lq, prompts)
        networks = self.restorer

        def encode(lq: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t l h8 w8"]:
            return encode_image(networks.vae, lq).latents

        def control(
            lq: Float[Tensor, "t 3 h w"], latents: Float[Tensor, "t l h8 w8"]
        ) -> Float[Tensor, "t c h8 w8"]:
            embedding = prompts.degradation_embedding.expand(len(lq), -1)
            return networks.control_network.enter(networks.control_encoder(lq, embedding, latents))

        latents = self.grid.run_shared(encode, [lq], self._cells)
        features = self.grid.run_shared(control, [lq, latents], self._cells)
        return Conditioning(prompts, EncodedImage(latents, None), features)

    def predictor(self, condition: Conditioning) -> Predict:
        """Return the function from noisy latents and a timestep to the prediction.

        Of a tiled image it is the average of the tiles' predictions.
        """
        grid, networks = self.grid, self.restorer

        def predict(
            noisy: Float[Tensor, "b l h8 w8"], timestep: Real[Tensor, ""]
        ) -> Float[Tensor, "b l h8 w8"]:
            if grid is None:
                return networks.denoise(noisy, timestep, condition)

            def denoise(
                noisy: Float[Tensor, "t l h8 w8"],
                control_features: Float[Tensor, "t c h8 w8"],
                lq_latents: Float[Tensor, "t l h8 w8"],
            ) -> Float[Tensor, "t l h8 w8"]:
                prompts = _repeat(condition.prompts, len(noisy))
                of_tiles = Conditioning(prompts, EncodedImage(lq_latents, None), control_features)
                return networks.denoise(noisy, timestep, of_tiles)

            return grid.run(denoise, [noisy, condition.control_features, condition.encoded.latents])

        return predict

    def decode(
        self,
        latents: Float[Tensor, "b l h8 w8"],
        lq: Float[Tensor, "b 3 h w"],
        condition: Conditioning,
        refined: bool,
        fidelity: float,
    ) -> Float[Tensor, "b 3 h w"]:
        """Decode latents to images in [0, 1], not clamped.

        Args:
            refined: by the Degradation-aware Decoder, else by the VAE's own.
        """
        if self.grid is None:
            return self.restorer.decode(latents, condition, refined, fidelity)
        networks = self.restorer

        def plain(latents: Float[Tensor, "t l h8 w8"]) -> Float[Tensor, "t 3 h w"]:
            return decode_latents(networks.vae, latents)

        # The decoder refines with the encoder's features: too large to keep for the whole image, they are computed
        # again for each tile.
        def refine(
            latents: Float[Tensor, "t l h8 w8"], lq: Float[Tensor, "t 3 h w"]
        ) -> Float[Tensor, "t 3 h w"]:
            embedding = condition.prompts.degradation_embedding.expand(len(lq), -1)
            return networks.decoder(
                latents, encode_image(networks.vae, lq).features, embedding, fidelity
            )

        if refined:
            return self.grid.run_shared(refine, [latents, lq], self._cells)
        return self.grid.run_shared(plain, [latents], self._cells)

    @property
    def _cells(self) -> int:
        """The multiple in cells of the grid."""
        return self.multiple // PATCH


def _repeat(prompts: VisualPrompts, count: int) -> VisualPrompts:
    """Return the prompts of one image for each of its tiles."""
    return replace(
        prompts,
        clip_embedding=prompts.clip_embedding.expand(count, -1),
        semantic_embedding=prompts.semantic_embedding.expand(count, -1, -1),
        degradation_embedding=prompts.degradation_embedding.expand(count, -1),
        degradation_logits=prompts.degradation_logits.expand(count, -1),
    )
