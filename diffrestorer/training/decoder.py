"""Decoder stage: the Degradation-aware Decoder learns to restore from latents and the degraded image's features."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from diffrestorer.config.schema import DecoderConfig
from diffrestorer.data.counter import counter_normal
from diffrestorer.data.pairs import PairBatch
from diffrestorer.losses import decoder_loss, discriminator_hinge_loss, generator_hinge_loss
from diffrestorer.models.backbones import EncodedImage, decode_latents, encode_image
from diffrestorer.models.decoder import DegradationAwareDecoder
from diffrestorer.models.discriminator import PatchDiscriminator
from diffrestorer.models.perceptual import PerceptualLoss
from diffrestorer.models.prompt_processor import VisualPrompts
from diffrestorer.pipeline import DiffRestorerPipeline, save_model_folder
from diffrestorer.sampler import sample_latents
from diffrestorer.training.task import Losses, Task, to_unit


class DecoderTask(Task):
    """L_dec = MSE + lambda_3 L_per + lambda_4 L_adv over the decoder; the discriminator's hinge loss beside it.

    One forward and one backward serve both: the decoder's adversarial term sees the discriminator's weights as
    constants, the discriminator's loss sees the decoder's images as constants.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        if not config.stage1:
            raise ValueError("stage1 is not set: give stage1=OUTPUT_DIR of train_stage1.py (or a model folder)")
        self.config = config
        pipeline = DiffRestorerPipeline.from_pretrained(config.stage1)
        self.restorer, self.scheduler = pipeline.restorer, pipeline.scheduler
        self.restorer.requires_grad_(False).eval()
        degradation_dim = self.restorer.prompt_processor.config.degradation_dim
        if config.new_layers:
            decoder = DegradationAwareDecoder.from_linear_path(self.restorer.vae, degradation_dim)
        else:
            decoder = DegradationAwareDecoder.from_vae(self.restorer.vae, degradation_dim, config.model.refine)
        self.restorer.decoder = decoder.train()
        self.discriminator = PatchDiscriminator(channels=config.discriminator_channels)
        self.perceptual = PerceptualLoss(config.model.perceptual, config.model.perceptual_weights)

    @torch.no_grad()
    def _inputs(self, batch: PairBatch) -> tuple[Float[Tensor, "b l h8 w8"], EncodedImage, VisualPrompts]:
        """z_0 (of the clean image, or sampled by stage 1), the degraded image's features, and its prompts."""
        lq, restorer = to_unit(batch.lq), self.restorer
        prompts, encoded = restorer.read_prompts(lq), encode_image(restorer.vae, lq)
        if self.config.z0 == "hq":
            return encode_image(restorer.vae, to_unit(batch.gt)).latents, encoded, prompts
        shape = encoded.latents.shape[1:]
        noise = counter_normal(shape, self.config.seed, "z0", batch.step, batch.positions, lq.device)
        condition = restorer.condition(lq, prompts, encoded)
        latents = sample_latents(restorer, self.scheduler, condition, noise, self.config.z0_steps)
        return latents, encoded, prompts

    def forward(self, batch: PairBatch) -> Losses:
        gt = to_unit(batch.gt)
        latents, encoded, prompts = self._inputs(batch)
        restored = self.restorer.decoder(latents, encoded.features, prompts.degradation_embedding)

        constant_weights = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        pixel = F.mse_loss(restored, gt)
        perceptual = self.perceptual(restored, gt)
        adversarial = generator_hinge_loss(functional_call(self.discriminator, constant_weights, (restored,)))
        total = decoder_loss(
            pixel, perceptual, adversarial, self.config.lambda_perceptual, self.config.lambda_adversarial
        )
        discriminator = discriminator_hinge_loss(self.discriminator(gt), self.discriminator(restored.detach()))
        parts = {"pixel": pixel, "perceptual": perceptual, "adversarial": adversarial, "discriminator": discriminator}
        return Losses(total + discriminator, parts)

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """AdamW for the decoder, AdamW for the discriminator."""
        settings = self.config.train
        return [
            torch.optim.AdamW(self.restorer.decoder.parameters(), settings.lr, weight_decay=settings.weight_decay),
            torch.optim.AdamW(
                self.discriminator.parameters(), self.config.discriminator_lr, weight_decay=settings.weight_decay
            ),
        ]

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """The whole pipeline: stage 1's networks and the new decoder."""
        save_model_folder(self.restorer, self.scheduler, folder, dtype)

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """Degraded, decoded by the VAE's own decoder, by the refined one, clean."""
        latents, encoded, prompts = self._inputs(batch)
        refined = self.restorer.decoder(latents, encoded.features, prompts.degradation_embedding)
        plain = decode_latents(self.restorer.vae, latents)
        return [to_unit(batch.lq), plain, refined, to_unit(batch.gt)]
