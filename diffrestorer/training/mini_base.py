"""mini's base, trained from photos since it has no pretrained one: VAE, image encoder and UNet, one task each.

Each stands for something sd15 downloads: Stable Diffusion's VAE, CLIP's image encoder, Stable Diffusion's UNet.
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

    Every fourth sample reconstructs the degraded image: at inference the encoder sees those.
    """

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = _begin(config, "vae", build_vae(config.model))

    def _images(self, batch: PairBatch) -> Float[Tensor, "b 3 h w"]:
        degraded = to_device(np.array([p % 4 == 3 for p in batch.positions]), batch.gt.device)
        return to_unit(torch.where(degraded[:, None, None, None], batch.lq, batch.gt))

    def forward(self, batch: PairBatch) -> Losses:
        images = self._images(batch)
        posterior = encode_posterior(self.vae, images)
        noise = counter_normal(
            posterior.mean.shape[1:], self.config.seed, "posterior", batch.step, batch.positions, images.device
        )
        restored = self.vae.decode(posterior.mean + posterior.std * noise).sample / 2 + 0.5
        pixel = F.l1_loss(restored, images)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return Losses(pixel + self.config.lambda_kl * kl, {"pixel": pixel, "kl": kl})

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """One AdamW."""
        return [adamw(self.parameters(), self.config.train)]

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """The VAE, with the scaling factor its latents turned out to need."""
        self.vae.register_to_config(scaling_factor=1 / self._latent_deviation())
        save_component(self.vae, folder / "vae", dtype)

    @torch.no_grad()
    def _latent_deviation(self, num_crops: int = 64) -> float:
        """Standard deviation of clean crops' latents: what `scaling_factor` brings to 1 for the diffusion."""
        pairs = open_pairs(self.config.data, self.config.seed, num_crops)
        crops = [collate_pairs([pairs[0, position]]).gt.to(self.vae.device) for position in range(num_crops)]
        latents = [encode_posterior(self.vae, to_unit(crop)).mode() for crop in crops]
        return torch.cat(latents).std().item()

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """What goes in, and its reconstruction."""
        images = self._images(batch)
        return [images, decode_latents(self.vae, encode_image(self.vae, images).latents)]


class ImageEncoderTask(Task):
    """What CLIP gives sd15: an embedding of a degraded photo that tells both what it shows and what is wrong with it.

    Two linear heads, dropped afterwards, ask for one each: the degradation's class, and (contrastively) which clean
    photo of the batch it is. The tower has BatchNorm (nothing else learns as fast here), so this task alone depends on
    how its batch is split among processes.
    """

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.config = config
        image_encoder = build_image_encoder(config.model)
        if isinstance(image_encoder, MiniImageEncoder):
            load_imagenet_tower(image_encoder)
        self.image_encoder = _begin(config, "image_encoder", image_encoder)
        embed_dim = self.image_encoder.config.embed_dim
        self.classifier = nn.Linear(embed_dim, len(model_classes(config.data)))
        self.content = nn.Linear(embed_dim, embed_dim // 2)

    def forward(self, batch: PairBatch) -> Losses:
        embeddings = self.image_encoder(torch.cat([to_unit(batch.lq), to_unit(batch.gt)]))
        lq, gt = embeddings.chunk(2)
        deg = degradation_loss(self.classifier(lq), batch.label)
        content = contrastive_loss(self.content(lq), self.content(gt))
        accuracy = (self.classifier(lq).argmax(1) == batch.label).float().mean()
        return Losses(
            deg + self.config.lambda_content * content, {"deg": deg, "content": content, "accuracy": accuracy}
        )

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """One AdamW."""
        return [adamw(self.parameters(), self.config.train)]

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """The tower without its two heads."""
        save_component(self.image_encoder, folder / "image_encoder", dtype)

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """The two views."""
        return [to_unit(batch.lq), to_unit(batch.gt)]


class UNetTask(Task):
    """Diffusion on clean latents, conditioned on the image encoder's embedding of the clean photo as the one token."""

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = _finished_part(config, "vae")
        self.image_encoder = _finished_part(config, "image_encoder")
        self.unet = _begin(config, "unet", build_unet(config.model))
        self.scheduler = DDPMScheduler(**config.model.scheduler)

    def forward(self, batch: PairBatch) -> Losses:
        gt = to_unit(batch.gt)
        with torch.no_grad():
            latents = encode_image(self.vae, gt).latents
            token = self.image_encoder(gt)[:, None]
        noisy = add_noise(self.scheduler, latents, self.config.seed, batch)
        diff = diffusion_loss(self.unet(noisy.noisy_latents, noisy.timesteps, token).sample, noisy.target)
        return Losses(diff, {"diff": diff})

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """One AdamW."""
        return [adamw(self.unet.parameters(), self.config.train)]

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """VAE, image encoder and UNet: a whole base."""
        for name in ("vae", "image_encoder", "unet"):
            save_component(getattr(self, name), folder / name, dtype)

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """The clean photo, and what the network makes of its latents at the batch's random timesteps."""
        gt = to_unit(batch.gt)
        latents = encode_image(self.vae, gt).latents
        noisy = add_noise(self.scheduler, latents, self.config.seed, batch)
        output = self.unet(noisy.noisy_latents, noisy.timesteps, self.image_encoder(gt)[:, None]).sample
        return [gt, decode_latents(self.vae, noisy.noisy_latents), decode_latents(self.vae, output)]


AnyPart = TypeVar("AnyPart", bound=ModelMixin)


def _begin(config: BaseConfig, name: str, part: AnyPart) -> AnyPart:
    """The part with the weights it begins with."""
    if config.init is not None:
        load_weights(part, find_base(config.init) / name)
    return part


def _finished_part(config: BaseConfig, name: str) -> ModelMixin:
    folder = Path(config.output_dir) / name / "model" / name
    if not folder.is_dir():
        raise ValueError(f"part={config.part} needs the finished {name}: run part={name} (or part=all) first")
    return load_component(folder).requires_grad_(False)


PARTS: dict[str, type[VAETask] | type[ImageEncoderTask] | type[UNetTask]] = {
    "vae": VAETask,
    "image_encoder": ImageEncoderTask,
    "unet": UNetTask,
}
"""In the order they are trained: the UNet needs the other two."""


def train_base(config: BaseConfig) -> None:
    """Trains the parts into `output_dir/PART/`, then gathers them in `output_dir/model/`.

    Raises:
        ValueError: as `train`; or a part is asked for before those it needs are finished.
    """
    output_dir = Path(config.output_dir)
    for name, task_class in PARTS.items():
        if config.part not in ("all", name):
            continue
        steps = getattr(config, f"{name}_steps") or config.train.max_steps
        part_config = replace(config, part=name, train=replace(config.train, max_steps=steps))
        train(task_class, part_config, output_dir / name)
    finished = output_dir / "unet" / "model"
    if finished.is_dir() and PartialState().is_main_process:
        write_folder(output_dir / "model", lambda folder: shutil.copytree(finished, folder, dirs_exist_ok=True))
