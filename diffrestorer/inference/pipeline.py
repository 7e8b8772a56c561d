"""The pipeline: from degraded images to restored ones, as diffusers' users know it."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor

from diffrestorer.data.tensors import ImageInput, as_tensors, from_tensor
from diffrestorer.inference.choices import (
    ONE_STEP,
    THRESHOLD,
    Decoder,
    OutputType,
    Tile,
    check_decoder,
    check_option,
)
from diffrestorer.inference.component_pipeline import ComponentPipeline
from diffrestorer.inference.results import DiffRestorerOutput, SampledLatents, mark_infinite
from diffrestorer.inference.sampler import Generator, draw_noise, run_scheduler
from diffrestorer.inference.stages import Stages
from diffrestorer.inference.tiling import group_images, smaller_sides, tile_side, until_it_fits
from diffrestorer.inference.unipc_table import Edit
from diffrestorer.models.attention import install_one_token_attention
from diffrestorer.models.backbones import PATCH
from diffrestorer.models.blocks import pad_to_multiple
from diffrestorer.models.prompt_processor import VisualPrompts

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""Diffusers' `callback_on_step_end`: pipeline, step, timestep and `{"latents": ...}` to the values it changes."""


class DiffRestorerPipeline(ComponentPipeline):
    """Restores images of any size and any of the degradations it was trained on, without being told which.

    `DiffRestorerPipeline.from_pretrained("mini")` loads the weights that ship with the package; a folder or a hub id
    loads others.
    """

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        num_inference_steps: int | None = None,
        generator: Generator = None,
        decoder: Decoder = "refined",
        fidelity: float = 1.0,
        output_type: OutputType = "pil",
        degradation: str | None = None,
        tile: Tile = "auto",
        tile_batch_size: int | None = None,
        on_step: Callable[[int], object] | None = None,
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        threshold: float = THRESHOLD,
    ) -> DiffRestorerOutput | tuple[list[Any], Float[Tensor, "b k"]]:
        """Restore one image or a list of images of any size; those of one size run as one batch.

        Args:
            image: RGB; PIL, array (h, w, 3) of uint8, uint16 or floats in [0, 1], tensor (3, h, w) or (b, 3, h, w).
            num_inference_steps: denoising steps; None: `default_steps`. A student takes one, whatever is asked.
            generator: of the starting noise (a one-step student draws none); a list gives each image its own.
            decoder: `refined` (the Degradation-aware Decoder) or `sd` (the VAE's own).
            fidelity: weight in [0, 1] of what the refined decoder takes from the degraded image; 0 is `sd`.
            output_type: `pil`, `np`, `pt`, or `latent` for latents that are not decoded.
            degradation: one of `classes`, to be removed in place of what the model detects.
            tile, tile_batch_size, on_step, callback_on_step_end: see `sample`.
            return_dict: False returns a tuple of images and probabilities.
            threshold: probability from which a degradation is clear: see `PromptProcessor.restrain`. 0: any is.

        Raises:
            ValueError: an image or an option is not usable; nothing has been restored.
        """
        # Refuse what can't be used before anything is computed.
        images: list[Any] = list(as_tensors(image))
        if isinstance(generator, Sequence) and len(generator) != len(images):
            raise ValueError(f"{len(generator)} generators were given for {len(images)} images")
        check_decoder(decoder, fidelity)
        check_option("output_type", output_type, OutputType)

        restored: list[Any] = [None] * len(images)
        probabilities = torch.empty(len(images), len(self.classes))
        for indices in group_images([image.shape[1:] for image in images], tile, self._multiple):
            # Restore the images of one size together.
            own = [generator[i] for i in indices] if isinstance(generator, Sequence) else generator
            lq, size = self._take_batch(images, indices)
            options = (degradation, tile, tile_batch_size, on_step, size, callback_on_step_end)
            sampled = self.sample(lq, num_inference_steps, own, *options, threshold=threshold)
            sampled = _ready_to_decode(sampled)
            probabilities[indices] = sampled.condition.prompts.probabilities.cpu()
            outputs = self._outputs(sampled, decoder, fidelity, output_type)
            for output, index in zip(outputs, indices, strict=True):
                restored[index] = output

            # Nothing of this batch is held beside the next one.
            del lq, sampled, outputs

        self.maybe_free_model_hooks()
        result = DiffRestorerOutput(restored, probabilities)
        return result if return_dict else result.to_tuple()

    @torch.no_grad()
    def detect(self, image: ImageInput | Sequence[ImageInput]) -> Float[Tensor, "b k"]:
        """Return the degradation probabilities of each image, in the order of `classes`; restore nothing."""
        rows = [self._to_device(tensor[None]) for tensor in as_tensors(image)]
        probabilities = torch.cat([self.restorer.read_prompts(row).probabilities for row in rows])
        self.maybe_free_model_hooks()
        return probabilities.cpu()

    @torch.no_grad()
    def sample(
        self,
        lq: Float[Tensor, "b 3 h w"],
        num_inference_steps: int | None = None,
        generator: Generator = None,
        degradation: str | None = None,
        tile: Tile = "auto",
        tile_batch_size: int | None = None,
        on_step: Callable[[int], object] | None = None,
        size: Sequence[int] | None = None,
        callback_on_step_end: StepCallback | None = None,
        threshold: float = THRESHOLD,
    ) -> SampledLatents:
        """Sample the latents of restored images; `decode` turns them into pixels.

        Args:
            lq: degraded images in [0, 1], one size. They are padded by reflection to what the UNet needs.
            num_inference_steps: None: `default_steps`.
            tile: `auto` restores more than 1024x1024 pixels by tiles, smaller ones where memory falls short; `none`
                takes any image whole; a number is the side of the largest tile.
            tile_batch_size: tiles at a time; None: as many as make 1024x1024 pixels.
            on_step: called after every denoising step with the number of images it was a step of.
            size: height and width before `lq` was padded; None: it has not been.
            callback_on_step_end: diffusers' own, see `StepCallback`.

        Raises:
            ValueError: an option is not usable, or several images that need tiles were given at once.
        """
        # Refuse what can't be done.
        height, width = size or lq.shape[-2:]
        side = self._tile_side(tile, height, width, len(lq))
        steps = self._steps(num_inference_steps)

        # Cross-attention to the one token costs next to nothing, in networks that were assigned since, too.
        for network in (self.unet, self.control_network):
            install_one_token_attention(network)

        # The noise is copied before the device is busy: the host waits for the copy.
        padded = pad_to_multiple(self._to_device(lq), self._multiple)
        noise = self._noise(padded, generator)
        prompts = self._read_prompts(padded[..., :height, :width], degradation, threshold)

        def run(side: int | None, batch_size: int | None) -> SampledLatents:
            stages = Stages.over(self.restorer, padded, self._multiple, side, batch_size)
            condition = stages.condition(padded, prompts)
            predict = stages.predictor(condition)
            with self.progress_bar(total=steps) as bar:

                def count() -> None:
                    bar.update()
                    if on_step is not None:
                        on_step(len(padded))

                edit = self._after_step(steps, count, callback_on_step_end)
                calls = (noise, predict, edit, generator)
                latents = run_scheduler(self.scheduler, steps, condition, *calls)
            place = (padded, height, width, side, batch_size, tile == "auto")
            return SampledLatents(latents, condition, *place)

        return until_it_fits(run, self._sides(side, padded, tile == "auto"), tile_batch_size)

    @torch.no_grad()
    def decode(
        self, sampled: SampledLatents, decoder: Decoder = "refined", fidelity: float = 1.0
    ) -> Float[Tensor, "b 3 h w"]:
        """Decode latents to images in [0, 1] of the original size."""
        check_decoder(decoder, fidelity)
        refined = decoder == "refined" and fidelity > 0
        latents, lq, condition = sampled.latents, sampled.lq, sampled.condition

        def run(side: int | None, batch_size: int | None) -> Float[Tensor, "b 3 hp wp"]:
            stages = Stages.over(self.restorer, lq, self._multiple, side, batch_size)
            return stages.decode(latents, lq, condition, refined, fidelity)

        images = until_it_fits(
            run, self._sides(sampled.side, lq, sampled.shrink), sampled.tile_batch_size
        )
        return mark_infinite(images)[..., : sampled.height, : sampled.width].clamp_(0, 1)

    def _take_batch(
        self, images: list[Any], indices: Sequence[int]
    ) -> tuple[Float[Tensor, "b 3 hp wp"], Sequence[int]]:
        """Move images out of a list into a padded batch, so that a large one is held once; return it and their size."""
        batch = images[indices[0]][None]
        if len(indices) > 1:
            batch = torch.stack([images[index] for index in indices])
        for index in indices:
            images[index] = None
        return pad_to_multiple(batch, self._multiple), batch.shape[-2:]

    def _steps(self, asked: int | None) -> int:
        """Return the number of steps, with a warning where another one was asked for."""
        steps = self.choose_steps(asked)
        if asked not in (None, steps):
            warnings.warn(f"{ONE_STEP}: num_inference_steps={asked} changes nothing", stacklevel=4)
        return steps

    def _after_step(
        self, steps: int, count: Callable[[], object], callback: StepCallback | None
    ) -> Edit:
        """Return what runs after each call of the networks: progress, and the caller's callback."""
        order = self.scheduler.order

        def edit(
            index: int, timestep: Real[Tensor, "..."], latents: Float[Tensor, "b l h w"]
        ) -> Float[Tensor, "b l h w"]:
            # Some schedulers call the networks more than once per step.
            if index % order == 0 and index // order < steps:
                count()
            changed = (
                callback(self, index, timestep, {"latents": latents}) if callback is not None else {}
            )
            return changed.get("latents", latents)

        return edit

    def _outputs(
        self, sampled: SampledLatents, decoder: Decoder, fidelity: float, output_type: OutputType
    ) -> list[Any]:
        """Return the images of a batch as the caller wants them."""
        if output_type == "latent":
            return list(sampled.latents)

        decoded = self.decode(sampled, decoder, fidelity).float().cpu()
        return [from_tensor(image, output_type) for image in decoded]

    def _read_prompts(
        self, lq: Float[Tensor, "b 3 h w"], degradation: str | None, threshold: float
    ) -> VisualPrompts:
        """Return the prompts of images, with the P_D of a named degradation, or of clean images where none is clear."""
        prompts = self.restorer.read_prompts(lq)
        if degradation is None:
            return self.prompt_processor.restrain(prompts, threshold)
        own = self.prompt_processor.prototype(degradation).expand(len(lq), -1)
        return replace(prompts, degradation_embedding=own)

    def _noise(
        self, padded: Float[Tensor, "b 3 hp wp"], generator: Generator
    ) -> Float[Tensor, "b l h8 w8"]:
        """Return the starting noise of padded images, drawn on the generator's device."""
        height, width = padded.shape[-2] // PATCH, padded.shape[-1] // PATCH
        shape = (len(padded), self.unet.config.in_channels, height, width)
        return draw_noise(shape, generator, self._execution_device)

    def _tile_side(self, tile: Tile, height: int, width: int, count: int) -> int | None:
        """Return the side of the largest tile, None for whole images, and refuse several images that need tiles."""
        side = tile_side(tile, height, width, self._multiple)
        if side is not None and count > 1:
            raise ValueError(
                f"images of {width}x{height} pixels are restored by tiles: sample them one by one"
            )
        return side

    def _sides(self, side: int | None, lq: Float[Tensor, "b 3 h w"], shrink: bool) -> list[int | None]:
        """Return the tile sides to try, one after the other where memory falls short."""
        return (
            [side, *smaller_sides(side, lq.shape[-2:], self._multiple)]
            if shrink and len(lq) == 1
            else [side]
        )


def _ready_to_decode(sampled: SampledLatents) -> SampledLatents:
    """Return what was sampled without the control features, which a large image's decoding needs the memory of."""
    features = sampled.condition.control_features[:, :0].clone()
    return replace(sampled, condition=replace(sampled.condition, control_features=features))
