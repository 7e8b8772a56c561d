"""Stage 1: prompt processor, classifier and control module, trained on top of a frozen base (section III-E)."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UniPCMultistepScheduler
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffrestorer.config.classes import model_classes, trained_classes
from diffrestorer.config.schema import RunConfig, Stage1Config
from diffrestorer.data.counter import counter_normal
from diffrestorer.data.pairs import PairBatch, collate_pairs
from diffrestorer.data.prepared import open_pairs
from diffrestorer.inference.model_folder import find_model, save_model_folder
from diffrestorer.inference.sampler import sample_latents
from diffrestorer.models.backbones import EncodedImage, encode_image
from diffrestorer.models.components import load_weights
from diffrestorer.models.pretrained import load_base
from diffrestorer.models.restorer import Conditioning, Restorer, build_control_decoder, build_restorer
from diffrestorer.training.diffusion import add_noise
from diffrestorer.training.losses import (
    degradation_loss,
    diffusion_loss,
    reconstruction_loss,
    stage1_loss,
)
from diffrestorer.training.shared_work import share_out
from diffrestorer.training.task import Losses, Task, adamw, select_unet, to_unit

LOG = logging.getLogger("diffrestorer.training")

SAMPLE_STEPS = 10
"""Denoising steps of the sample sheets."""

PROTOTYPE_BATCHES, PROTOTYPE_BATCH, PROTOTYPE_TURNS = 8, 16, 8
"""Batches of training pairs, and pairs in each, whose mean degradation embeddings become the prototypes; and how often
so many are read at most while a class that trains is missing among them."""


@torch.no_grad()
def record_prototypes(
    restorer: Restorer, config: RunConfig, label: Callable[[PairBatch], Int[Tensor, "b"]] | None = None
) -> None:
    """Store each class's mean P_D over training pairs: see `PromptProcessor.prototype`. Processes share the pairs.

    Args:
        label: returns the classes that the prompt processor was taught; null: those of the pairs.
    """
    pairs = open_pairs(config.data, config.seed, PROTOTYPE_BATCH)
    processor = restorer.prompt_processor
    trained = set(trained_classes(config.data)) & set(processor.classes)

    def encode(start: int, step: int) -> tuple[Float[Tensor, "b d"], Int[Tensor, "b"]]:
        batch = collate_pairs([pairs[start + step, position] for position in range(PROTOTYPE_BATCH)])
        labels = batch.label if label is None else label(batch)
        return restorer.image_encoder(to_unit(batch.to(processor.device).lq)).cpu(), labels.cpu()

    # More pairs are looked at while a class that trains is still missing.
    found: list[tuple[Float[Tensor, "b d"], Int[Tensor, " b"]]] = []
    for turn in range(PROTOTYPE_TURNS):
        found += share_out(partial(encode, turn * PROTOTYPE_BATCHES), PROTOTYPE_BATCHES)
        embeddings, labels = (
            torch.cat(parts).to(processor.device) for parts in zip(*found, strict=True)
        )
        missing = trained - {processor.classes[index] for index in labels.unique().tolist()}
        if not missing:
            break
    processor.record_prototypes(embeddings, labels)
    for name in sorted(missing):
        LOG.warning(
            "none of %d training pairs is of %s: its prototype stays as it was", len(labels), name
        )


class Stage1Task(Task):
    """L = L_diff + lambda_1 L_deg + lambda_2 L_rec over prompt processor, control encoder, decoder and network.

    Frozen: CLIP, VAE, and the UNet unless `model.train_unet` says `cross_attention` or `all`.
    """

    def __init__(self, config: Stage1Config) -> None:
        super().__init__()
        self.config = config
        base = load_base(config.model, config.base)
        self.restorer = build_restorer(config.model, *base, classes=model_classes(config.data))

        # Everything that trains may begin as in a finished model.
        if config.init is not None:
            folder = find_model(config.init)
            names = ["prompt_processor", "control_encoder", "control_network"]
            if config.model.train_unet != "none":
                names.append("unet")
            for name in names:
                load_weights(getattr(self.restorer, name), folder / name)

        self.control_decoder = build_control_decoder(self.restorer.control_encoder)
        self.scheduler = DDPMScheduler(**config.model.scheduler)
        self._freeze()

    def _freeze(self) -> None:
        restorer = self.restorer
        for module in (restorer.vae, restorer.image_encoder, restorer.unet, restorer.decoder):
            module.requires_grad_(False).eval()
        select_unet(restorer.unet, self.config.model.train_unet)
        restorer.prompt_processor.set_trainable(True)

    @torch.no_grad()
    def encode(self, batch: PairBatch) -> dict[str, Tensor]:
        """Return P_CLIP of the degraded image, the clean one's latents, and the degraded one's if they are used."""
        lq = to_unit(batch.lq)
        restorer = self.restorer
        encodings = {
            "clip_embedding": restorer.image_encoder(lq),
            "latents": encode_image(restorer.vae, to_unit(batch.gt)).latents,
        }
        if restorer.relative_prediction:
            encodings["lq_latents"] = encode_image(restorer.vae, lq).latents
        return encodings

    def encoders(self) -> tuple[Sequence[nn.Module], dict[str, Any]]:
        """Return CLIP and the VAE, which have no settings."""
        return (self.restorer.image_encoder, self.restorer.vae), {}

    def forward(self, batch: PairBatch) -> Losses:
        """Return L (Eq. 7) and its three terms."""
        lq = to_unit(batch.lq)
        gt = to_unit(batch.gt)
        restorer = self.restorer

        # Frozen encoders, or what a cache holds of them.
        encodings = batch.encodings or self.encode(batch)
        latents = encodings["latents"]
        lq_latents = encodings.get("lq_latents")

        # Prompts and control features of the degraded image.
        prompts = restorer.prompt_processor(encodings["clip_embedding"])
        features = restorer.control_encoder(lq, prompts.degradation_embedding, lq_latents)

        # The paper's model has no path for the degraded image's latents. An empty tensor stands for them.
        encoded_lq = EncodedImage(latents[:, :0] if lq_latents is None else lq_latents, None)
        condition = Conditioning(prompts, encoded_lq, restorer.control_network.enter(features))

        # Denoise the clean image's latents at a random timestep.
        noisy = add_noise(self.scheduler, latents, self.config.seed, batch)
        model_output = restorer.denoise(noisy.noisy_latents, noisy.timesteps, condition)

        diff = diffusion_loss(model_output, noisy.target)
        deg = degradation_loss(prompts.degradation_logits, batch.label)
        rec = reconstruction_loss(self.control_decoder(features), gt)
        total = stage1_loss(diff, deg, rec, self.config.lambda_deg, self.config.lambda_rec)
        return Losses(total, {"diff": diff, "deg": deg, "rec": rec})

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return one AdamW for everything that trains."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [adamw(parameters, self.config.train)]

    def conclude(self) -> None:
        """Measure the classes' prototypes."""
        record_prototypes(self.restorer, self.config)

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """Save the whole pipeline. Its decoder is still the VAE's own."""
        save_model_folder(
            self.restorer, UniPCMultistepScheduler(**self.config.model.scheduler), folder, dtype
        )

    def restore(self, batch: PairBatch) -> Float[Tensor, "b 3 h w"]:
        """Return the degraded images restored with the VAE's own decoder."""
        return self._sample(batch)[1]

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """Return degraded images, the control decoder's, those restored with the VAE's decoder, and clean images."""
        lq = to_unit(batch.lq)
        condition, restored = self._sample(batch)
        embedding = condition.prompts.degradation_embedding
        latents = condition.encoded.latents
        features = self.restorer.control_encoder(lq, embedding, latents)
        return [lq, self.control_decoder(features), restored, to_unit(batch.gt)]

    def _sample(self, batch: PairBatch) -> tuple[Conditioning, Float[Tensor, "b 3 h w"]]:
        lq = to_unit(batch.lq)
        prompts = self.restorer.read_prompts(lq)
        condition = self.restorer.condition(lq, prompts)

        # Noise depends on step and position alone, so a resumed run draws the same sheet.
        shape = condition.encoded.latents.shape[1:]
        noise = counter_normal(
            shape, self.config.seed, "sample", batch.step, batch.positions, lq.device
        )
        scheduler = UniPCMultistepScheduler(**self.config.model.scheduler)
        latents = sample_latents(self.restorer, scheduler, condition, noise, SAMPLE_STEPS)
        return condition, self.restorer.decode(latents, condition, refined=False)
