"""mini's base, trained from photos since no pretrained one exists: VAE, image encoder and UNet, one task each.

Each replaces a download of sd15: Stable Diffusion's VAE, CLIP's image encoder, Stable Diffusion's UNet.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import PartialState
from diffusers import DDPMScheduler, ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffrestorer.config.classes import model_classes
from diffrestorer.config.schema import BaseConfig
from diffrestorer.data.counter import counter_normal, to_device
from diffrestorer.data.pairs import PairBatch, collate_pairs
from diffrestorer.data.prepared import open_pairs
from diffrestorer.models.backbones import decode_latents, encode_image, encode_posterior
from diffrestorer.models.components import (
    build_image_encoder,
    build_unet,
    build_vae,
    load_component,
    load_weights,
    save_component,
)
from diffrestorer.models.mini import MiniImageEncoder
from diffrestorer.models.pretrained import find_base, load_imagenet_tower
from diffrestorer.training.checkpoint import write_folder
from diffrestorer.training.diffusion import add_noise
from diffrestorer.training.loop import train
from diffrestorer.training.losses import contrastive_loss, degradation_loss, diffusion_loss
from diffrestorer.training.task import Losses, Task, adamw, to_unit


class VAETask(Task):
    """L1 reconstruction plus a small Kullback-Leibler term.

    Every fourth sample reconstructs the degraded image, since restoring encodes degraded images too.
    """

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = _begin(config.init, "vae", build_vae(config.model))

    def _images(self, batch: PairBatch) -> Float[Tensor, "b 3 h w"]:
        """Return the images that are reconstructed: mostly clean ones."""
        is_degraded = np.array([position % 4 == 3 for position in batch.positions])
        degraded = to_device(is_degraded, batch.gt.device)
        return to_unit(torch.where(degraded[:, None, None, None], batch.lq, batch.gt))

    def forward(self, batch: PairBatch) -> Losses:
        """Return the L1 loss with the weighted Kullback-Leibler term, and both."""
        images = self._images(batch)
        posterior = encode_posterior(self.vae, images)

        # Sample the posterior with noise drawn by step and position.
        shape = posterior.mean.shape[1:]
        noise = counter_normal(
            shape, self.config.seed, "posterior", batch.step, batch.positions, images.device
        )
        restored = self.vae.decode(posterior.mean + posterior.std * noise).sample / 2 + 0.5
        pixel = F.l1_loss(restored, images)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return Losses(pixel + self.config.lambda_kl * kl, {"pixel": pixel, "kl": kl})

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return one AdamW."""
        return [adamw(self.parameters(), self.config.train)]

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """Save the VAE with the scaling factor that brings its latents to unit deviation."""
        self.vae.register_to_config(scaling_factor=1 / self._latent_deviation())
        save_component(self.vae, folder / "vae", dtype)

    @torch.no_grad()
    def _latent_deviation(self, num_crops: int = 64) -> float:
        """Return the standard deviation of clean crops' latents."""
        pairs = open_pairs(self.config.data, self.config.seed, num_crops)
        latents = []
        for position in range(num_crops):
            crop = collate_pairs([pairs[0, position]]).gt.to(self.vae.device)
            latents.append(encode_posterior(self.vae, to_unit(crop)).mode())
        return torch.cat(latents).std().item()

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """Return the VAE's inputs and their reconstructions."""
        images = self._images(batch)
        return [images, decode_latents(self.vae, encode_image(self.vae, images).latents)]


class ImageEncoderTask(Task):
    """An embedding of a degraded photo that carries both its content and its degradation, as CLIP's does for sd15.

    Two linear heads, dropped afterwards, train it. One classifies the degradation. The other, contrastive, finds the
    photo's clean version among those of the batch. The tower has BatchNorm (nothing else learns as fast here), so this
    task alone depends on how its batch is split among processes.
    """

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.config = config
        image_encoder = build_image_encoder(config.model)
        if isinstance(image_encoder, MiniImageEncoder):
            load_imagenet_tower(image_encoder)
        self.image_encoder = _begin(config.init, "image_encoder", image_encoder)

        # The heads exist during training only.
        embed_dim = self.image_encoder.config.embed_dim
        self.classifier = nn.Linear(embed_dim, len(model_classes(config.data)))
        self.content = nn.Linear(embed_dim, embed_dim // 2)

    def forward(self, batch: PairBatch) -> Losses:
        """Return the classification loss with the weighted contrastive one, both, and the classifier's accuracy."""
        images = torch.cat([to_unit(batch.lq), to_unit(batch.gt)])
        lq, gt = self.image_encoder(images).chunk(2)

        logits = self.classifier(lq)
        deg = degradation_loss(logits, batch.label)
        content = contrastive_loss(self.content(lq), self.content(gt))

        accuracy = (logits.argmax(1) == batch.label).float().mean()
        total = deg + self.config.lambda_content * content
        return Losses(total, {"deg": deg, "content": content, "accuracy": accuracy})

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return one AdamW."""
        return [adamw(self.parameters(), self.config.train)]

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """Save the tower without its two heads."""
        save_component(self.image_encoder, folder / "image_encoder", dtype)

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """Return the two views."""
        return [to_unit(batch.lq), to_unit(batch.gt)]


class UNetTask(Task):
    """Diffusion on clean latents, conditioned on the image encoder's embedding of the clean photo as the one token."""

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = _finished_part(config, "vae")
        self.image_encoder = _finished_part(config, "image_encoder")
        self.unet = _begin(config.init, "unet", build_unet(config.model))
        self.scheduler = DDPMScheduler(**config.model.scheduler)

    def forward(self, batch: PairBatch) -> Losses:
        """Return L_diff on clean latents."""
        gt = to_unit(batch.gt)
        with torch.no_grad():
            latents = encode_image(self.vae, gt).latents
            token = self.image_encoder(gt)[:, None]

        noisy = add_noise(self.scheduler, latents, self.config.seed, batch)
        model_output = self.unet(noisy.noisy_latents, noisy.timesteps, token).sample
        diff = diffusion_loss(model_output, noisy.target)
        return Losses(diff, {"diff": diff})

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return one AdamW."""
        return [adamw(self.unet.parameters(), self.config.train)]

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """Save VAE, image encoder and UNet, which make a whole base."""
        for name in ("vae", "image_encoder", "unet"):
            save_component(getattr(self, name), folder / name, dtype)

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """Return clean photos, their latents at random timesteps decoded, and the UNet's output decoded."""
        gt = to_unit(batch.gt)
        latents = encode_image(self.vae, gt).latents
        noisy = add_noise(self.scheduler, latents, self.config.seed, batch)
        token = self.image_encoder(gt)[:, None]
        output = self.unet(noisy.noisy_latents, noisy.timesteps, token).sample

        before = decode_latents(self.vae, noisy.noisy_latents)
        after = decode_latents(self.vae, output)
        return [gt, before, after]


AnyPart = TypeVar("AnyPart", bound=ModelMixin)


def _begin(init: str | None, name: str, part: AnyPart) -> AnyPart:
    """Return the part with the weights of the base at `init`, if one is given."""
    if init is not None:
        load_weights(part, find_base(init) / name)
    return part


def _finished_part(config: BaseConfig, name: str) -> ModelMixin:
    """Load a part that was trained before, frozen."""
    folder = Path(config.output_dir) / name / "model" / name
    if not folder.is_dir():
        raise ValueError(
            f"part={config.part} needs the finished {name}: run part={name} (or part=all) first"
        )
    return load_component(folder).requires_grad_(False)


PARTS: dict[str, type[VAETask] | type[ImageEncoderTask] | type[UNetTask]] = {
    "vae": VAETask,
    "image_encoder": ImageEncoderTask,
    "unet": UNetTask,
}
"""Tasks in the order of training. The UNet needs the other two parts."""


def train_base(config: BaseConfig) -> None:
    """Train the parts into `output_dir/PART/`, then gather them in `output_dir/model/`.

    Raises:
        ValueError: as `train`; or a part is asked for before those it needs are finished.
    """
    output_dir = Path(config.output_dir)
    for name, task_class in PARTS.items():
        if config.part not in ("all", name):
            continue

        # Each part may have a number of steps of its own.
        steps = getattr(config, f"{name}_steps") or config.train.max_steps
        part_config = replace(config, part=name, train=replace(config.train, max_steps=steps))
        train(task_class, part_config, output_dir / name)

    # The UNet's folder holds all three.
    finished = output_dir / "unet" / "model"
    if finished.is_dir() and PartialState().is_main_process:
        write_folder(
            output_dir / "model", lambda folder: shutil.copytree(finished, folder, dirs_exist_ok=True)
        )
