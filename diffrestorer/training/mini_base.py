"""mini's base, trained from photos since no pretrained one exists: VAE, image encoder and UNet, one task each.

Each replaces a download of sd15: Stable Diffusion's VAE, CLIP's image encoder, Stable Diffusion's UNet.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import DDPMScheduler, ModelMixin
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffrestorer.config.schema import BaseConfig
from diffrestorer.data.counter import counter_normal, to_device
from diffrestorer.data.pairs import PairBatch, collate_pairs
from diffrestorer.data.prepared import open_pairs
from diffrestorer.inference.model_folder import keep_own_files
from diffrestorer.models.backbones import ImageEncoder, decode_latents, encode_image, encode_posterior
from diffrestorer.models.components import (
    build_image_encoder,
    build_unet,
    build_vae,
    load_component,
    load_weights,
    save_component,
)
from diffrestorer.models.mini import StageStatistics
from diffrestorer.models.pretrained import find_base, load_imagenet_tower
from diffrestorer.training.checkpoint import write_folder
from diffrestorer.training.diffusion import add_noise
from diffrestorer.training.encoder_tuning import ImageEncoderTask, fitted_folder
from diffrestorer.training.kept_files import DamagedFileError, read_sealed, write_sealed
from diffrestorer.training.launcher import join_processes
from diffrestorer.training.loop import train
from diffrestorer.training.losses import diffusion_loss
from diffrestorer.training.model_classes import with_classes
from diffrestorer.training.shared_work import share_out
from diffrestorer.training.task import Losses, Task, adamw, to_unit

LOG = logging.getLogger("diffrestorer.training")

CROPS_PER_BATCH = 16
"""Crops of which the image encoder is fitted at a time."""

FIT = "fitted.json"
"""File beside a fitted image encoder that says what it was fitted with."""

FIT_FREE = ("root", "validation_root", "lq", "gt", "cache_gb", "cache_dir", "skip_unreadable")
"""Keys of `data` that a fit does not depend on, or that say only where the data lie."""


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


@torch.no_grad()
def fit_image_encoder(config: BaseConfig, output_dir: Path) -> None:
    """Save mini's image encoder into `output_dir/model`, its projection fitted to degraded crops of every class.

    The tower is ImageNet's. Principal components of its stages' statistics tell degradations apart as well as a trained
    projection does (docs/mini.md), and take a minute.

    Args:
        config: its data, seed, `init` and `image_encoder_batches` count.
        output_dir: where it goes. A finished one stays as it is.

    Raises:
        ValueError: the ImageNet weights are not installed, there are too few crops, or the finished one was fitted with
            other settings.
    """
    folder = output_dir / "model"
    state = join_processes()
    settings = _fit_settings(config)
    if folder.is_dir():
        _check_fit(output_dir, settings)
        state.wait_for_everyone()
        return

    # Each process looks at some of the crops, and all fit the same numbers.
    image_encoder = _begin(config.init, "image_encoder", build_image_encoder(config.model))
    visual = image_encoder.visual
    assert isinstance(visual, StageStatistics)
    if config.init is None:
        load_imagenet_tower(visual)
        image_encoder.to(state.device).eval()
        visual.fit(_crops_statistics(config, image_encoder, visual).to(state.device))
    state.wait_for_everyone()

    if state.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_sealed(output_dir / FIT, settings)
        write_folder(
            folder, lambda part: save_component(image_encoder, part / "image_encoder", torch.float32)
        )
    state.wait_for_everyone()


def _fit_settings(config: BaseConfig) -> dict[str, Any]:
    """Return what a fitted image encoder depends on, besides the contents of the photos."""
    data = {f"data.{key}": value for key, value in asdict(config.data).items() if key not in FIT_FREE}
    counts = {key: getattr(config, key) for key in ("seed", "init", "image_encoder_batches")}
    settings = {**counts, "model.image_encoder": config.model.image_encoder, **data}
    return {"root": config.data.root, "settings": json.loads(json.dumps(settings))}


def _check_fit(output_dir: Path, fit: dict[str, Any]) -> None:
    """Refuse a finished image encoder of other settings, and say so where it saw another folder of photos."""
    try:
        known = read_sealed(output_dir / FIT)
    except (FileNotFoundError, DamagedFileError):
        return  # earlier versions kept none

    changed = sorted(
        key for key, value in fit["settings"].items() if known["settings"].get(key) != value
    )
    if changed:
        raise ValueError(
            f"{output_dir} holds an image encoder fitted with another {', '.join(changed)}: give another output_dir"
        )
    if known["root"] != fit["root"]:
        LOG.warning(
            "the image encoder in %s stays: it was fitted to the photos of %s",
            output_dir,
            known["root"],
        )


def _crops_statistics(
    config: BaseConfig, image_encoder: ImageEncoder, visual: StageStatistics
) -> Float[Tensor, "n s2"]:
    """Return the stages' statistics of degraded training crops, on the CPU. Processes share the crops."""
    pairs = open_pairs(config.data, config.seed, CROPS_PER_BATCH)

    def look(step: int) -> Float[Tensor, "b s2"]:
        batch = collate_pairs([pairs[step, position] for position in range(CROPS_PER_BATCH)])
        images = to_unit(batch.to(image_encoder.device).lq)
        return visual.statistics(image_encoder.prepare(images)).cpu()

    return torch.cat(share_out(look, config.image_encoder_batches))


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


TASKS: dict[str, type[VAETask] | type[ImageEncoderTask] | type[UNetTask]] = {
    "vae": VAETask,
    "image_encoder": ImageEncoderTask,
    "unet": UNetTask,
}
"""The parts that are trained: the image encoder with `image_encoder_steps` alone. The UNet needs the two others."""


def train_base(config: BaseConfig) -> None:
    """Train the parts into `output_dir/PART/`, then gather them in `output_dir/model/`.

    Raises:
        ValueError: as `train`; or a part is asked for before those it needs are finished, or `teacher` for other parts
            than the image encoder.
    """
    config = with_classes(config)
    output_dir = Path(config.output_dir)
    for name in ("vae", "image_encoder", "unet"):
        if config.part not in ("all", name):
            continue
        if name == "image_encoder" and not config.image_encoder_steps:
            fit_image_encoder(replace(config, part=name), output_dir / name)
            continue
        if name == "image_encoder" and config.teacher is None:
            fit_image_encoder(replace(config, part=name), fitted_folder(config))

        # Each part may have a number of steps of its own.
        steps = getattr(config, f"{name}_steps") or config.train.max_steps
        part_config = replace(config, part=name, train=replace(config.train, max_steps=steps))
        train(TASKS[name], part_config, output_dir / name)

    # The UNet's folder holds all three.
    finished = output_dir / "unet" / "model"
    if finished.is_dir() and join_processes().is_main_process:
        model = output_dir / "model"

        def write(folder: Path) -> None:
            shutil.copytree(finished, folder, dirs_exist_ok=True)
            keep_own_files(model, folder)

        write_folder(model, write)
