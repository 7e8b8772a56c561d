"""Decoder stage: the Degradation-aware Decoder learns to restore from latents and the degraded image's features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from diffrestorer.config.schema import DecoderConfig
from diffrestorer.data.counter import counter_normal
from diffrestorer.data.pairs import PairBatch
from diffrestorer.inference.model_folder import find_model, save_model_folder
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.inference.sampler import sample_latents
from diffrestorer.models.backbones import EncodedImage, decode_latents, encode_image
from diffrestorer.models.components import (
    check_finite,
    check_model_folder,
    load_component,
    load_weights,
    read_relative_prediction,
)
from diffrestorer.models.prompt_processor import VisualPrompts
from diffrestorer.models.restorer import DecodingNetworks, Restorer
from diffrestorer.training.discriminator import PatchDiscriminator
from diffrestorer.training.losses import decoder_loss, discriminator_hinge_loss, generator_hinge_loss, psnr_loss
from diffrestorer.training.perceptual import PerceptualLoss
from diffrestorer.training.task import Losses, Task, adamw, to_unit


def load_stage1(folder: Path, samples: bool) -> tuple[DecodingNetworks, UniPCMultistepScheduler]:
    """Loads what the decoder stage runs of a model, in float32, after checking every file of it.

    Args:
        samples: whether latents are sampled, which takes all networks (a `Restorer`); else UNet and control module,
            by far the largest, stay on the disk.

    Raises:
        ModelFolderError: a file is missing, truncated or does not fit, or a network holds a NaN.
    """
    if samples:
        pipeline = DiffRestorerPipeline.from_pretrained(folder)
        return pipeline.restorer, pipeline.scheduler
    check_model_folder(folder)
    names = ("vae", "image_encoder", "prompt_processor", "decoder")
    parts = {name: load_component(folder / name) for name in names}
    networks = DecodingNetworks(**parts, relative_prediction=read_relative_prediction(folder))
    check_finite(folder, networks.components())
    return networks, UniPCMultistepScheduler.from_pretrained(folder, subfolder="scheduler")


class DecoderTask(Task):
    """L_dec = MSE + lambda_3 L_per + lambda_4 L_adv over the decoder; the discriminator's hinge loss beside it.

    One forward and one backward serve both: the decoder's adversarial term sees the discriminator's weights as
    constants, the discriminator's loss sees the decoder's images as constants. There is none where lambda_4 = 0.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        if not config.stage1:
            raise ValueError("stage1 is not set: give stage1=OUTPUT_DIR of train_stage1.py (or a model folder)")
        self.config = config
        self.stage1 = find_model(config.stage1)
        self.restorer, self.scheduler = load_stage1(self.stage1, samples=config.z0 == "sampled")
        self.restorer.requires_grad_(False).eval()
        degradation_dim = self.restorer.prompt_processor.config.degradation_dim
        decoder_class = type(self.restorer.decoder)
        decoder = decoder_class.from_vae(
            self.restorer.vae, degradation_dim, config.model.refine, **config.model.decoder
        )
        if config.init is not None:
            load_weights(decoder, find_model(config.init) / "decoder")
        self.restorer.decoder = decoder.train()
        self.discriminator = None
        if config.lambda_adversarial:
            self.discriminator = PatchDiscriminator(channels=config.discriminator_channels)
        self.perceptual = PerceptualLoss(config.model.perceptual, config.model.perceptual_weights)

    @torch.no_grad()
    def encode(self, batch: PairBatch) -> dict[str, Tensor]:
        """P_CLIP of the degraded image, and z_0: the clean image's latents, or sampled by stage 1."""
        return self._encode(batch, None)

    def _encode(self, batch: PairBatch, encoded_lq: EncodedImage | None) -> dict[str, Tensor]:
        lq, restorer = to_unit(batch.lq), self.restorer
        clip_embedding = restorer.image_encoder(lq)
        if self.config.z0 == "hq":
            latents = encode_image(restorer.vae, to_unit(batch.gt)).latents
        else:
            assert isinstance(restorer, Restorer), "z0=sampled loads all networks"
            condition = restorer.condition(lq, restorer.prompt_processor(clip_embedding), encoded_lq)
            shape = condition.encoded.latents.shape[1:]
            noise = counter_normal(shape, self.config.seed, "z0", batch.step, batch.positions, lq.device)
            latents = sample_latents(restorer, self.scheduler, condition, noise, self.config.z0_steps)
        return {"clip_embedding": clip_embedding, "latents": latents}

    def encoders(self) -> tuple[Sequence[nn.Module], dict[str, Any]]:
        """CLIP and the VAE; all of stage 1 where it samples z_0."""
        if self.config.z0 == "hq":
            return (self.restorer.image_encoder, self.restorer.vae), {}
        stage1 = [module for name, module in self.restorer.components().items() if name != "decoder"]
        return stage1, {"seed": self.config.seed, "z0_steps": self.config.z0_steps}

    @torch.no_grad()
    def _inputs(self, batch: PairBatch) -> tuple[Float[Tensor, "b l h8 w8"], EncodedImage, VisualPrompts]:
        """z_0, the degraded image's features, and its prompts."""
        encoded_lq = encode_image(self.restorer.vae, to_unit(batch.lq))
        encodings = batch.encodings or self._encode(batch, encoded_lq)
        return encodings["latents"], encoded_lq, self.restorer.prompt_processor(encodings["clip_embedding"])

    def forward(self, batch: PairBatch) -> Losses:
        gt = to_unit(batch.gt)
        latents, encoded, prompts = self._inputs(batch)
        restored = self.restorer.decoder(latents, encoded.features, prompts.degradation_embedding)

        pixel = psnr_loss(restored, gt) if self.config.pixel_loss == "psnr" else F.mse_loss(restored, gt)
        perceptual = self.perceptual(restored, gt)
        adversarial, discriminator = self._adversarial(restored, gt)
        started = float(batch.step >= self.config.discriminator_start)
        lambda_adversarial = started * self.config.lambda_adversarial
        total = decoder_loss(pixel, perceptual, adversarial, self.config.lambda_perceptual, lambda_adversarial)
        parts = {"pixel": pixel, "perceptual": perceptual, "adversarial": adversarial, "discriminator": discriminator}
        return Losses(total + started * discriminator, parts)

    def _adversarial(
        self, restored: Float[Tensor, "b 3 h w"], gt: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The decoder's hinge loss and the discriminator's."""
        if self.discriminator is None:
            return restored.new_zeros(()), restored.new_zeros(())
        constant_weights = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        adversarial = generator_hinge_loss(functional_call(self.discriminator, constant_weights, (restored,)))
        return adversarial, discriminator_hinge_loss(self.discriminator(gt), self.discriminator(restored.detach()))

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """AdamW for the decoder, AdamW for the discriminator where there is one."""
        settings = self.config.train
        optimizers = [adamw(self.restorer.decoder.parameters(), settings)]
        if self.discriminator is not None:
            optimizers.append(adamw(self.discriminator.parameters(), settings, self.config.discriminator_lr))
        return optimizers

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """The whole pipeline: stage 1's networks, those not loaded from its folder, and the new decoder."""
        save_model_folder(self.restorer, self.scheduler, folder, dtype, rest=self.stage1)

    def restore(self, batch: PairBatch) -> Float[Tensor, "b 3 h w"]:
        """z_0 decoded by the refined decoder."""
        latents, encoded, prompts = self._inputs(batch)
        return self.restorer.decoder(latents, encoded.features, prompts.degradation_embedding)

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """Degraded, decoded by the VAE's own decoder, by the refined one, clean."""
        latents, encoded, prompts = self._inputs(batch)
        refined = self.restorer.decoder(latents, encoded.features, prompts.degradation_embedding)
        plain = decode_latents(self.restorer.vae, latents)
        return [to_unit(batch.lq), plain, refined, to_unit(batch.gt)]
