"""The plain steps that benchmarks/training.py compares with, and the pairs both sides see."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import skimage.data
import torch
from torch.nn import functional as F

from diffrestorer.data.counter import counter_rng
from diffrestorer.data.pairs import Pair, PairBatch, collate_pairs
from diffrestorer.data.synthesis import degrade
from diffrestorer.degradations import DEGRADATIONS
from diffrestorer.losses import (
    decoder_loss,
    degradation_loss,
    diffusion_loss,
    discriminator_hinge_loss,
    generator_hinge_loss,
    reconstruction_loss,
    stage1_loss,
)
from diffrestorer.models.backbones import encode_image
from diffrestorer.training.decoder import DecoderTask
from diffrestorer.training.diffusion import add_noise
from diffrestorer.training.stage1 import Stage1Task

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
Step = Callable[[int], dict[str, float]]


class Pairs:
    """A few degraded crops of photos, the same in every epoch."""

    num_variants = 8

    def __init__(self, size: int, batch_size: int) -> None:
        self.size = size
        self.global_batch_size = batch_size

    def fingerprint(self) -> str:
        """Of the size, which is all that varies."""
        return f"benchmark {self.size}"

    def variant(self, step: int, position: int) -> int:
        """In turn."""
        return (step * self.global_batch_size + position) % self.num_variants

    def fixed(self, index: int) -> Pair:
        """A crop of a photo with one of the eight degradations."""
        photo = getattr(skimage.data, PHOTOS[index % len(PHOTOS)])()
        rng = counter_rng(0, "benchmark", index)
        repeats = [-(-self.size // side) for side in photo.shape[:2]]
        photo = np.tile(photo, (*repeats, 1))
        top, left = (int(rng.integers(side - self.size + 1)) for side in photo.shape[:2])
        gt = np.ascontiguousarray(photo[top : top + self.size, left : left + self.size])
        return Pair(degrade(gt, DEGRADATIONS[index % 8], rng), gt, index % 8, 0, index)

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        return replace(self.fixed(self.variant(*key)), step=key[0], position=key[1])


def batch_of(pairs: Any, step: int, size: int) -> PairBatch:
    """A whole step's batch."""
    return collate_pairs([pairs[step, position] for position in range(size)])


def host_floats(batch: PairBatch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Degraded and clean images made float on the host, as usual data sets do."""
    return (batch.lq.float() / 255).to(device), (batch.gt.float() / 255).to(device)


def plain_stage1(task: Stage1Task, pairs: Pairs, size: int, device: torch.device, autocast: Any) -> Step:
    """Stage 1 in the shape of the train_controlnet example's loop."""
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01)
    restorer, batches = task.restorer, [batch_of(pairs, step, size) for step in range(4)]

    def losses(batch: PairBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        lq, gt = host_floats(batch, device)
        with torch.no_grad():
            latents = restorer.vae.encode(gt * 2 - 1).latent_dist.mode() * restorer.vae.config.scaling_factor
            clip_embedding = restorer.image_encoder(lq)
        noisy = add_noise(task.scheduler, latents, task.config.seed, batch)
        prompts = restorer.prompt_processor(clip_embedding)
        features = restorer.control_encoder(lq, prompts.degradation_embedding)
        token = prompts.semantic_embedding
        down, mid = restorer.control_network(
            noisy.noisy_latents, noisy.timesteps, token, features, return_dict=False
        )  # fmt: skip
        output = restorer.unet(
            noisy.noisy_latents, noisy.timesteps, token, down_block_additional_residuals=down,
            mid_block_additional_residual=mid, return_dict=False,
        )[0]  # fmt: skip
        diff = diffusion_loss(output, noisy.target)
        deg = degradation_loss(prompts.degradation_logits, batch.label.to(device))
        rec = reconstruction_loss(task.control_decoder(features), gt)
        return stage1_loss(diff, deg, rec), {"diff": diff, "deg": deg, "rec": rec}

    def step(number: int) -> dict[str, float]:
        batch = replace(batches[number % 4], step=number)
        with autocast():
            total, parts = losses(batch)
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {name: value.item() for name, value in parts.items()}

    step.losses = lambda: losses(batches[0])[0]  # type: ignore[attr-defined]
    return step


def plain_decoder(task: DecoderTask, pairs: Pairs, size: int, device: torch.device, autocast: Any) -> Step:
    """The decoder stage with a forward pass for each optimiser."""
    restorer, config = task.restorer, task.config
    decoder_optimizer = torch.optim.AdamW(restorer.decoder.parameters(), lr=1e-5, weight_decay=0.01)
    discriminator_optimizer = torch.optim.AdamW(task.discriminator.parameters(), lr=1e-5, weight_decay=0.01)
    batches = [batch_of(pairs, step, size) for step in range(4)]

    def restore(lq: torch.Tensor, gt: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            latents = encode_image(restorer.vae, gt).latents
            encoded = encode_image(restorer.vae, lq)
            prompts = restorer.read_prompts(lq)
        return restorer.decoder(latents, encoded.features, prompts.degradation_embedding)

    def step(number: int) -> dict[str, float]:
        lq, gt = host_floats(batches[number % 4], device)
        with autocast():
            with torch.no_grad():
                fake = restore(lq, gt)
            discriminator = discriminator_hinge_loss(task.discriminator(gt), task.discriminator(fake))
        discriminator.backward()
        gradients = [parameter.grad for parameter in task.discriminator.parameters()]
        task.discriminator.zero_grad(set_to_none=True)
        with autocast():
            restored = restore(lq, gt)
            pixel, perceptual = F.mse_loss(restored, gt), task.perceptual(restored, gt)
            adversarial = generator_hinge_loss(task.discriminator(restored))
            total = decoder_loss(pixel, perceptual, adversarial, config.lambda_perceptual, config.lambda_adversarial)
        total.backward()
        decoder_optimizer.step()
        for parameter, gradient in zip(task.discriminator.parameters(), gradients, strict=True):
            parameter.grad = gradient
        discriminator_optimizer.step()
        for optimizer in (decoder_optimizer, discriminator_optimizer):
            optimizer.zero_grad(set_to_none=True)
        return {"pixel": pixel.item(), "adversarial": adversarial.item(), "discriminator": discriminator.item()}

    return step
