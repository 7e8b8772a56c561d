"""Decoder stage: the Degradation-aware Decoder learns to restore from latents and the degraded image's features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Tensor, nn

from diffrestorer.config.schema import DecoderConfig
from diffrestorer.data.counter import counter_normal
from diffrestorer.data.pairs import PairBatch
from diffrestorer.inference.model_folder import find_model, load_scheduler, save_model_folder
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
from diffrestorer.training.discriminator import PatchDiscriminator, adversarial_losses
from diffrestorer.training.finished import load_to_train
from diffrestorer.training.losses import decoder_loss, pixel_loss
from diffrestorer.training.perceptual import PerceptualLoss, check_perceptual
from diffrestorer.training.task import Losses, Task, adamw, to_unit


def load_stage1(folder: Path, samples: bool) -> tuple[DecodingNetworks, SchedulerMixin]:
    """Load the networks of a model that the decoder stage runs, in float32, after checking every file of it.

    Args:
        folder: of the model.
        samples: whether latents are sampled. That takes all networks (a `Restorer`). Otherwise UNet and control
            module, by far the largest, stay on the disk.

    Raises:
        ModelFolderError: a file is missing, truncated or does not fit, or a network holds a NaN.
    """
    if samples:
        pipeline = load_to_train(folder)
        return pipeline.restorer, pipeline.scheduler

    # Without sampling the model's four smaller networks are enough.
    check_model_folder(folder)
    names = ("vae", "image_encoder", "prompt_processor", "decoder")
    parts = {name: load_component(folder / name) for name in names}
    networks = DecodingNetworks(**parts, relative_prediction=read_relative_prediction(folder))
    check_finite(folder, networks.components())
    return networks, load_scheduler(folder)


class DecoderTask(Task):
    """L_dec = MSE + lambda_3 L_per + lambda_4 L_adv over the decoder; the discriminator's hinge loss beside it.

    One forward and one backward pass serve both (`adversarial_losses`). With lambda_4 = 0 there is no discriminator.

    Raises:
        ValueError: `stage1` is not set.
        ModelFolderError: see `load_stage1`.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        if not config.stage1:
            raise ValueError(
                "stage1 is not set: give stage1=OUTPUT_DIR of `diffrestorer train stage1` (or a model folder)"
            )
        self.config = config

        check_perceptual(config.model.perceptual, config.model.perceptual_weights)

        # Everything of stage 1 is frozen.
        self.stage1 = find_model(config.stage1)
        self.restorer, self.scheduler = load_stage1(self.stage1, samples=config.z0 == "sampled")
        self.restorer.requires_grad_(False).eval()

        # The new decoder begins as the VAE's, or as that of `init`.
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
        """Return P_CLIP of the degraded image, and z_0: the clean image's latents, or sampled by stage 1."""
        return self._encode(batch, None)

    def _encode(self, batch: PairBatch, encoded_lq: EncodedImage | None) -> dict[str, Tensor]:
        lq = to_unit(batch.lq)
        restorer = self.restorer
        clip_embedding = restorer.image_encoder(lq)

        if self.config.z0 == "hq":
            latents = encode_image(restorer.vae, to_unit(batch.gt)).latents
            return {"clip_embedding": clip_embedding, "latents": latents}

        # Sample z_0 as restoring does, from noise drawn by step and position.
        assert isinstance(restorer, Restorer), "z0=sampled loads all networks"
        prompts = restorer.prompt_processor(clip_embedding)
        condition = restorer.condition(lq, prompts, encoded_lq)
        shape = condition.encoded.latents.shape[1:]
        noise = counter_normal(shape, self.config.seed, "z0", batch.step, batch.positions, lq.device)
        latents = sample_latents(restorer, self.scheduler, condition, noise, self.config.z0_steps)
        return {"clip_embedding": clip_embedding, "latents": latents}

    def encoders(self) -> tuple[Sequence[nn.Module], dict[str, Any]]:
        """Return CLIP and the VAE, or all of stage 1 if it samples z_0, with the settings of the sampling."""
        if self.config.z0 == "hq":
            return (self.restorer.image_encoder, self.restorer.vae), {}
        components = self.restorer.components()
        stage1 = [module for name, module in components.items() if name != "decoder"]
        return stage1, {"seed": self.config.seed, "z0_steps": self.config.z0_steps}

    @torch.no_grad()
    def _inputs(
        self, batch: PairBatch
    ) -> tuple[Float[Tensor, "b l h8 w8"], EncodedImage, VisualPrompts]:
        """Return z_0, the degraded image's features, and its prompts."""
        encoded_lq = encode_image(self.restorer.vae, to_unit(batch.lq))
        encodings = batch.encodings or self._encode(batch, encoded_lq)
        prompts = self.restorer.prompt_processor(encodings["clip_embedding"])
        return encodings["latents"], encoded_lq, prompts

    def forward(self, batch: PairBatch) -> Losses:
        """Return L_dec and the discriminator's loss."""
        config = self.config
        gt = to_unit(batch.gt)

        # Frozen networks give the decoder its inputs.
        latents, encoded, prompts = self._inputs(batch)
        restored = self.restorer.decoder(latents, encoded.features, prompts.degradation_embedding)

        # The terms of Eq. 8.
        pixel = pixel_loss(config.pixel_loss, restored, gt)
        perceptual = self.perceptual(restored, gt)
        adversarial = discriminator = restored.new_zeros(())
        if self.discriminator is not None:
            adversarial, discriminator = adversarial_losses(self.discriminator, [restored], [gt])

        # The discriminator may join later than the rest.
        started = float(batch.step >= config.discriminator_start)
        lambda_adversarial = started * config.lambda_adversarial
        total = decoder_loss(
            pixel, perceptual, adversarial, config.lambda_perceptual, lambda_adversarial
        )
        parts = {
            "pixel": pixel,
            "perceptual": perceptual,
            "adversarial": adversarial,
            "discriminator": discriminator,
        }
        return Losses(total + started * discriminator, parts)

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return an AdamW for the decoder and one for the discriminator, if there is one."""
        settings = self.config.train
        optimizers = [adamw(self.restorer.decoder.parameters(), settings)]
        if self.discriminator is not None:
            later = {
                "params": [*self.discriminator.parameters()],
                "start_step": self.config.discriminator_start,
            }
            optimizers.append(adamw([later], settings, self.config.discriminator_lr))
        return optimizers

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """Save the whole pipeline: stage 1's networks, copied if they were not loaded, and the new decoder."""
        save_model_folder(self.restorer, self.scheduler, folder, dtype, rest=self.stage1)

    def restore(self, batch: PairBatch) -> Float[Tensor, "b 3 h w"]:
        """Return z_0 decoded by the refined decoder."""
        latents, encoded, prompts = self._inputs(batch)
        return self.restorer.decoder(latents, encoded.features, prompts.degradation_embedding)

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """Return degraded images, z_0 decoded by the VAE's own decoder and by the refined one, and clean images."""
        latents, encoded, prompts = self._inputs(batch)
        refined = self.restorer.decoder(latents, encoded.features, prompts.degradation_embedding)
        plain = decode_latents(self.restorer.vae, latents)
        return [to_unit(batch.lq), plain, refined, to_unit(batch.gt)]
