"""The pipeline: from degraded images to restored ones, as diffusers' users know it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from diffrestorer.data.tensors import ImageInput, ImageTensor, as_tensors, from_tensor
from diffrestorer.inference.choices import Decoder, Tile
from diffrestorer.inference.devices import choose_dtype, find_device, place
from diffrestorer.inference.model_folder import find_model, no_loading_bar, plain_components, write_model_card
from diffrestorer.inference.one_step import OneStepScheduler
from diffrestorer.inference.results import DiffRestorerOutput, SampledLatents
from diffrestorer.inference.sampler import Generator, check_steps, run_scheduler
from diffrestorer.inference.stages import Stages
from diffrestorer.inference.tiling import Grid, smaller_sides, tile_side, until_it_fits
from diffrestorer.models.attention import install_one_token_attention
from diffrestorer.models.backbones import PATCH, ImageEncoder
from diffrestorer.models.blocks import pad_to_multiple
from diffrestorer.models.components import COMPONENTS, check_finite, check_model_folder, read_older_form
from diffrestorer.models.control import ControlEncoder, ControlNetwork
from diffrestorer.models.decoder import DegradationAwareDecoder
from diffrestorer.models.prompt_processor import PromptProcessor, VisualPrompts
from diffrestorer.models.restorer import Restorer

OutputType = Literal["pil", "np", "pt", "latent"]

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""Diffusers' `callback_on_step_end`: pipeline, step, timestep and `{"latents": ...}` to the values it changes."""


class DiffRestorerPipeline(DiffusionPipeline):
    """Restores images of any size and any of the degradations it was trained on, without being told which.

    `DiffRestorerPipeline.from_pretrained("mini")` loads the weights that ship with the package; a folder or a hub id
    loads others. The pipeline holds no second reference to a component: one that is assigned, compiled, hooked,
    adapted or offloaded is the one that runs and is saved.
    """

    # Each network leaves the GPU when the next one runs. The control network, which alternates with the UNet, stays.
    model_cpu_offload_seq = "image_encoder->prompt_processor->vae->control_encoder->unet->decoder"

    # PyTorch's attention in CLIP reads the weights of a layer that it never calls: offloading layer by layer would miss
    # them. The encoder runs once per image.
    _exclude_from_cpu_offload = ["image_encoder"]

    def __init__(
        self,
        vae: AutoencoderKL,
        image_encoder: ImageEncoder,
        prompt_processor: PromptProcessor,
        unet: UNet2DConditionModel,
        control_encoder: ControlEncoder,
        control_network: ControlNetwork,
        decoder: DegradationAwareDecoder,
        scheduler: SchedulerMixin,
        relative_prediction: bool = False,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            image_encoder=image_encoder,
            prompt_processor=prompt_processor,
            unet=unet,
            control_encoder=control_encoder,
            control_network=control_network,
            decoder=decoder,
            scheduler=scheduler,
        )
        self.register_to_config(relative_prediction=relative_prediction)

    @property
    def restorer(self) -> Restorer:
        """A view of the present networks as one module; made for each access."""
        networks = {name: getattr(self, name) for name in COMPONENTS}
        return Restorer(**networks, relative_prediction=self.config.relative_prediction)

    @property
    def classes(self) -> tuple[str, ...]:
        """The degradations that the model tells apart, in the order of their probabilities."""
        return self.prompt_processor.classes

    @property
    def default_steps(self) -> int:
        """Denoising steps unless told otherwise: 1 for a one-step student, else the paper's 20 (section IV-A)."""
        return 1 if isinstance(self.scheduler, OneStepScheduler) else 20

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path = "mini", **kwargs: Any) -> Any:
        """Load a model folder after checking every file of it.

        Args:
            pretrained_model_name_or_path: `mini` (bundled), a model folder, the output folder of a training run, or a
                hub id.
            kwargs: diffusers' own, such as `dtype` (float32 by default, whatever the files hold).

        Raises:
            ModelFolderError: nothing is there, or a file is missing, truncated or does not fit, or holds a NaN.
        """
        folder = find_model(pretrained_model_name_or_path)
        check_model_folder(folder)
        with no_loading_bar():
            options = {"use_safetensors": True, **read_older_form(folder), **kwargs}
            pipeline = super().from_pretrained(folder, **options)
        check_finite(folder, pipeline.restorer.components())
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write a model folder, with a model card where it has none.

        LoRA adapters are added to the weights that are written; the pipeline's own stay as they are.

        Args:
            kwargs: diffusers' own.
        """
        relative = self.config.relative_prediction
        written = type(self)(**plain_components(self.components), relative_prediction=relative)
        super(DiffRestorerPipeline, written).save_pretrained(save_directory, **kwargs)
        write_model_card(written.restorer, Path(save_directory))

    def prepare(
        self, device: str | torch.device = "auto", dtype: torch.dtype | None = None, compile: bool = False
    ) -> "DiffRestorerPipeline":
        """Move the networks to a device in the layout that is fastest there; return the pipeline.

        Args:
            device: `auto` is a GPU if there is one, else the CPU.
            dtype: of the weights; None: bfloat16 on GPUs that have it, float32 elsewhere.
            compile: whether the denoising networks run through torch.compile. That pays for many images of one size.
        """
        target = find_device(device)
        default = choose_dtype("float32" if target.type == "cpu" else "auto", target)
        place(self, target, dtype or default)
        if compile:
            self.unet.compile()
            self.control_network.compile()
        return self

    def enable_group_offload(self, *args: Any, offload_type: str = "block_level", **kwargs: Any) -> None:
        """Offload groups of layers, as diffusers does; layer by layer the image encoder stays on the device."""
        if offload_type == "leaf_level":
            excluded = kwargs.pop("exclude_modules", None) or []
            excluded = [excluded] if isinstance(excluded, str) else list(excluded)
            kwargs["exclude_modules"] = [*excluded, *self._exclude_from_cpu_offload]
        super().enable_group_offload(*args, offload_type=offload_type, **kwargs)

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
    ) -> DiffRestorerOutput | tuple[list[Any], Float[Tensor, "b k"]]:
        """Restore one image or a list of images of any size; those of one size run as one batch.

        Args:
            image: RGB; PIL, an array (h, w, 3) of uint8, uint16 or floats in [0, 1], or a float tensor (3, h, w) in
                [0, 1] or (b, 3, h, w).
            num_inference_steps: denoising steps; None: `default_steps`.
            generator: of the starting noise (a one-step student draws none); a list gives each image its own.
            decoder: `refined` (the Degradation-aware Decoder) or `sd` (the VAE's own).
            fidelity: weight in [0, 1] of what the refined decoder takes from the degraded image; 0 is `sd`.
            output_type: `pil`, `np`, `pt`, or `latent` for latents that are not decoded; see `DiffRestorerOutput`.
            degradation: one of `classes`: what to remove, instead of what the model detects. The probabilities
                in the result stay those detected.
            tile, tile_batch_size, callback_on_step_end: see `sample`.
            on_step: called after every denoising step with the number of images it was a step of.
            return_dict: False returns a tuple of images and probabilities.

        Raises:
            ValueError: an image or an option is not usable; nothing has been restored.
        """
        # Refuse what can't be used before anything is computed.
        images: list[Any] = list(as_tensors(image))
        if isinstance(generator, Sequence) and len(generator) != len(images):
            raise ValueError(f"{len(generator)} generators were given for {len(images)} images")
        _check_decoder(decoder, fidelity)
        _check_option("output_type", output_type, OutputType)

        restored: list[Any] = [None] * len(images)
        probabilities = torch.empty(len(images), len(self.classes))
        for indices in self._batches(images, tile):
            # Pad one batch. A large image is held once.
            own = [generator[i] for i in indices] if isinstance(generator, Sequence) else generator
            lq = torch.stack([images[i] for i in indices]) if len(indices) > 1 else images[indices[0]][None]
            size, lq = lq.shape[-2:], pad_to_multiple(lq, self._multiple)
            for i in indices:
                images[i] = None

            sampled = self.sample(
                lq, num_inference_steps, own, degradation, tile, tile_batch_size, on_step, size, callback_on_step_end
            )
            probabilities[indices] = sampled.condition.prompts.degradation_logits.float().softmax(dim=-1).cpu()
            outputs = self._outputs(sampled, decoder, fidelity, output_type)
            for row, i in enumerate(indices):
                restored[i] = outputs[row]
            del lq, sampled, outputs  # before the next batch's

        self.maybe_free_model_hooks()
        result = DiffRestorerOutput(restored, probabilities)
        return result if return_dict else result.to_tuple()

    @torch.no_grad()
    def detect(self, image: ImageInput | Sequence[ImageInput]) -> Float[Tensor, "b k"]:
        """Return the degradation probabilities of each image, in the order of `classes`; restore nothing."""
        rows = [self._to_device(tensor[None]) for tensor in as_tensors(image)]
        logits = torch.cat([self.restorer.read_prompts(row).degradation_logits for row in rows])
        self.maybe_free_model_hooks()
        return logits.float().softmax(dim=-1).cpu()

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
    ) -> SampledLatents:
        """Sample the latents of restored images; `decode` turns them into pixels.

        Args:
            lq: degraded images in [0, 1], one size. They are padded by reflection to what the UNet needs.
            num_inference_steps: None: `default_steps`.
            tile: `auto` takes up to 1024x1024 pixels whole and a larger image by tiles of at most 1024x1024, smaller
                ones where memory falls short; `none` takes any whole; a number is the side of the largest tile.
            tile_batch_size: tiles at a time; None: as many as make 1024x1024 pixels.
            size: height and width before `lq` was padded; None: it has not been.
            callback_on_step_end: diffusers' own: gets the pipeline, the step, the timestep and `{"latents": ...}`; may
                return other latents under the same key.

        Raises:
            ValueError: an option is not usable, or several images that need tiles were given at once.
        """
        # Refuse what can't be done.
        height, width = size or lq.shape[-2:]
        side = tile_side(tile, height, width, self._multiple)
        if side is not None and len(lq) > 1:
            raise ValueError(f"images of {width}x{height} pixels are restored by tiles: sample them one by one")
        steps = self.default_steps if num_inference_steps is None else num_inference_steps
        check_steps(self.scheduler, steps)

        # Cross-attention to the one token costs next to nothing, in networks that were assigned since, too.
        for network in (self.unet, self.control_network):
            install_one_token_attention(network)

        # The noise is copied before the device is busy: the host waits for the copy.
        padded = pad_to_multiple(self._to_device(lq), self._multiple)
        noise = self._noise(padded, generator)
        prompts = self._read_prompts(padded[..., :height, :width], degradation)

        def run(side: int | None, batch_size: int | None) -> SampledLatents:
            stages = self._stages(padded, side, batch_size)
            condition = stages.condition(padded, prompts)
            with self.progress_bar(total=steps) as bar:

                def after_step(index: int, timestep: Tensor, latents: Tensor) -> Tensor:
                    # Some schedulers run the networks more than once per step.
                    if index % self.scheduler.order == 0 and index // self.scheduler.order < steps:
                        bar.update()
                        if on_step is not None:
                            on_step(len(padded))
                    if callback_on_step_end is None:
                        return latents
                    changed = callback_on_step_end(self, index, timestep, {"latents": latents})
                    return changed.get("latents", latents)

                predict = stages.predictor(condition)
                latents = run_scheduler(self.scheduler, steps, condition, noise, predict, after_step, generator)
            return SampledLatents(latents, condition, padded, height, width, side, batch_size, tile == "auto")

        return until_it_fits(run, self._sides(side, padded, tile == "auto"), tile_batch_size)

    @torch.no_grad()
    def decode(
        self, sampled: SampledLatents, decoder: Decoder = "refined", fidelity: float = 1.0
    ) -> Float[Tensor, "b 3 h w"]:
        """Decode latents to images in [0, 1] of the original size."""
        _check_decoder(decoder, fidelity)
        refined = decoder == "refined" and fidelity > 0
        latents, lq, condition = sampled.latents, sampled.lq, sampled.condition

        def run(side: int | None, batch_size: int | None) -> Float[Tensor, "b 3 hp wp"]:
            stages = self._stages(lq, side, batch_size)
            return stages.decode(latents, lq, condition, refined, fidelity)

        images = until_it_fits(run, self._sides(sampled.side, lq, sampled.shrink), sampled.tile_batch_size)
        return images[..., : sampled.height, : sampled.width].clamp_(0, 1)

    def _outputs(
        self, sampled: SampledLatents, decoder: Decoder, fidelity: float, output_type: OutputType
    ) -> list[Any]:
        """Return the images of a batch as the caller wants them."""
        if output_type == "latent":
            return list(sampled.latents)

        # Decoding needs no control features: of a large image, the largest of what is held.
        features = sampled.condition.control_features[:, :0].clone()
        sampled = replace(sampled, condition=replace(sampled.condition, control_features=features))
        decoded = self.decode(sampled, decoder, fidelity).float().cpu()
        return [from_tensor(image, output_type) for image in decoded]

    def _read_prompts(self, lq: Float[Tensor, "b 3 h w"], degradation: str | None) -> VisualPrompts:
        prompts = self.restorer.read_prompts(lq)
        if degradation is None:
            return prompts
        own = self.prompt_processor.prototype(degradation).expand(len(lq), -1)
        return replace(prompts, degradation_embedding=own)

    def _noise(self, padded: Float[Tensor, "b 3 hp wp"], generator: Generator) -> Float[Tensor, "b l h8 w8"]:
        shape = (self.unet.config.in_channels, padded.shape[-2] // PATCH, padded.shape[-1] // PATCH)
        sources = list(generator) if isinstance(generator, Sequence) else [generator] * len(padded)
        noise = [torch.randn(shape, generator=own, device=own.device if own else "cpu") for own in sources]
        return torch.stack(noise).to(self._execution_device)

    def _stages(self, lq: Float[Tensor, "b 3 hp wp"], side: int | None, batch_size: int | None) -> Stages:
        """Return the stages for padded images, whole or by tiles of at most `side` pixels."""
        grid = None if side is None else Grid.over(lq.shape[-2:], side, self._multiple, PATCH, batch_size)
        return Stages(self.restorer, self._multiple, grid)

    def _sides(self, side: int | None, lq: Float[Tensor, "b 3 h w"], shrink: bool) -> list[int | None]:
        """Return the tile sides to try, one after the other where memory falls short."""
        return [side, *smaller_sides(side, lq.shape[-2:], self._multiple)] if shrink and len(lq) == 1 else [side]

    def _batches(self, images: Sequence[ImageTensor], tile: Tile) -> list[list[int]]:
        """Return the positions of the images that run together: of one size, and alone where tiles are needed."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            side = tile_side(tile, image.shape[1], image.shape[2], self._multiple)
            groups.setdefault((*image.shape, 0 if side is None else i), []).append(i)
        return list(groups.values())

    @property
    def _multiple(self) -> int:
        """Pixels that a side of a padded image is a multiple of: what VAE and UNet divide by."""
        return PATCH * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def _to_device(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return tensor.to(self._execution_device, self.unet.dtype)


def _check_option(name: str, value: str, options: Any) -> None:
    *first, last = map(repr, get_args(options))
    if value not in get_args(options):
        raise ValueError(f"{name} must be {', '.join(first)} or {last}, not {value!r}")


def _check_decoder(decoder: str, fidelity: float) -> None:
    _check_option("decoder", decoder, Decoder)
    if not 0 <= fidelity <= 1:
        raise ValueError(f"fidelity must be from 0 to 1, not {fidelity}")
