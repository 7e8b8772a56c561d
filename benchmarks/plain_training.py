"""The plain steps that benchmarks/training.py compares with, and the pairs both sides see."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import skimage.data
import torch
from torch.nn import functional as F

from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.config.schema import DataConfig, PrepareConfig
from diffrestorer.data.pairs import PairBatch, collate_pairs
from diffrestorer.data.prepared import PreparedPairs
from diffrestorer.models.backbones import encode_image
from diffrestorer.preparation.prepare import prepare
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.diffusion import add_noise
from diffrestorer.training.losses import (
    decoder_loss,
    degradation_loss,
    diffusion_loss,
    discriminator_hinge_loss,
    generator_hinge_loss,
    reconstruction_loss,
    stage1_loss,
)
from diffrestorer.training.stage1 import Stage1Task

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
Step = Callable[[int], dict[str, float]]


def prepare_pairs(folder: Path, size: int, batch_size: int) -> PreparedPairs:
    """Four photos with each of the eight degradations, prepared in `folder`."""
    (folder / "photos").mkdir(parents=True)
    for name in PHOTOS:
        cv2.imwrite(f"{folder}/photos/{name}.png", getattr(skimage.data, name)()[..., ::-1])
    out = str(folder / "pairs")
    prepare(PrepareConfig("photos", str(folder / "photos"), out, size=size, num_workers=1, budget=None))
    return PreparedPairs(DataConfig("manifest", out, size, list(DEGRADATIONS)), 0, batch_size)


def batch_of(pairs: Any, step: int, size: int) -> PairBatch:
    """A whole step's batch."""
    return collate_pairs([pairs[step, position] for position in range(size)])


def host_floats(batch: PairBatch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Degraded and clean images made float on the host, as usual data sets do."""
    return (batch.lq.float() / 255).to(device), (batch.gt.float() / 255).to(device)


def plain_stage1(
    task: Stage1Task, pairs: PreparedPairs, size: int, device: torch.device, autocast: Any
) -> Step:
    """Stage 1 in the shape of the train_controlnet example's loop."""
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01)
    restorer, batches = task.restorer, [batch_of(pairs, step, size) for step in range(4)]

    def losses(batch: PairBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        lq, gt = host_floats(batch, device)
        with torch.no_grad():
            latents = (
                restorer.vae.encode(gt * 2 - 1).latent_dist.mode() * restorer.vae.config.scaling_factor
            )
            clip_embedding = restorer.image_encoder(lq)
        noisy = add_noise(task.scheduler, latents, task.config.seed, batch)
        prompts = restorer.prompt_processor(clip_embedding)
        features = restorer.control_encoder(lq, prompts.degradation_embedding)
        token = prompts.semantic_embedding
        entered = restorer.control_network.enter(features)
        down, mid = restorer.control_network(
            noisy.noisy_latents, noisy.timesteps, token, entered, return_dict=False
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


def plain_decoder(
    task: DecoderTask, pairs: PreparedPairs, size: int, device: torch.device, autocast: Any
) -> Step:
    """The decoder stage with a forward pass for each optimiser."""
    restorer, config = task.restorer, task.config
    decoder_optimizer = torch.optim.AdamW(restorer.decoder.parameters(), lr=1e-5, weight_decay=0.01)
    discriminator_optimizer = torch.optim.AdamW(
        task.discriminator.parameters(), lr=1e-5, weight_decay=0.01
    )
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
            total = decoder_loss(
                pixel, perceptual, adversarial, config.lambda_perceptual, config.lambda_adversarial
            )
        total.backward()
        decoder_optimizer.step()
        for parameter, gradient in zip(task.discriminator.parameters(), gradients, strict=True):
            parameter.grad = gradient
        discriminator_optimizer.step()
        for optimizer in (decoder_optimizer, discriminator_optimizer):
            optimizer.zero_grad(set_to_none=True)
        return {
            "pixel": pixel.item(),
            "adversarial": adversarial.item(),
            "discriminator": discriminator.item(),
        }

    return step
