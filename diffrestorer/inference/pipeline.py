"""From a degraded image to a restored one: the sampler around the networks, as a diffusers pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from jaxtyping import Float
from torch import Tensor

from diffrestorer.data.tensors import ImageInput, ImageTensor, OutputType, as_tensors, from_tensor
from diffrestorer.inference.engines.choice import EngineName, open_engine, place
from diffrestorer.inference.engines.engine import Engine
from diffrestorer.inference.model_folder import find_model, no_loading_bar, write_model_card
from diffrestorer.inference.one_step import OneStepScheduler, Scheduler
from diffrestorer.inference.sampler import sampling_table, starting_latents
from diffrestorer.inference.stages import Stages
from diffrestorer.inference.tiling import Grid, Tile, smaller_sides, tile_side, until_it_fits
from diffrestorer.models.backbones import PATCH, ImageEncoder
from diffrestorer.models.blocks import pad_to_multiple
from diffrestorer.models.components import check_finite, check_model_folder, read_older_form
from diffrestorer.models.control import ControlEncoder, ControlNetwork
from diffrestorer.models.decoder import DegradationAwareDecoder
from diffrestorer.models.prompt_processor import PromptProcessor, VisualPrompts
from diffrestorer.models.restorer import Conditioning, Restorer

Decoder = Literal["refined", "sd"]


@dataclass
class DiffRestorerOutput(BaseOutput):
    """Restored images, and what was detected.

    Attributes:
        images: restored images in the order and of the sizes of the input: PIL, or float arrays (h, w, 3) in [0, 1],
            or float tensors (3, h, w) in [0, 1], by `output_type`.
        degradation_probabilities: the classifier's softmax, in the order of the pipeline's `classes`.
    """

    images: list[Any]
    degradation_probabilities: Float[Tensor, "b k"]


@dataclass(frozen=True)
class SampledLatents:
    """Restored latents before they are decoded, so that one sampling can serve both decoders.

    Attributes:
        lq: the degraded images, padded; `height`, `width` are those before.
        side: of the largest tile in pixels; None: the images are taken whole.
        tile_batch_size, shrink: tiles at a time, and whether smaller ones may be taken where memory falls short.
    """

    latents: Float[Tensor, "b l h8 w8"]
    condition: Conditioning
    lq: Float[Tensor, "b 3 hp wp"]
    height: int
    width: int
    side: int | None = None
    tile_batch_size: int | None = None
    shrink: bool = False


class DiffRestorerPipeline(DiffusionPipeline):
    """Restores images of any size and any of the degradations it was trained on, without being told which.

    `DiffRestorerPipeline.from_pretrained("mini")` loads the weights that ship with the package; a folder or a hub id
    loads others.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        image_encoder: ImageEncoder,
        prompt_processor: PromptProcessor,
        unet: UNet2DConditionModel,
        control_encoder: ControlEncoder,
        control_network: ControlNetwork,
        decoder: DegradationAwareDecoder,
        scheduler: Scheduler,
        relative_prediction: bool = False,
    ) -> None:
        super().__init__()
        networks = {
            "vae": vae,
            "image_encoder": image_encoder,
            "prompt_processor": prompt_processor,
            "unet": unet,
            "control_encoder": control_encoder,
            "control_network": control_network,
            "decoder": decoder,
        }
        self.register_modules(**networks, scheduler=scheduler)
        self.register_to_config(relative_prediction=relative_prediction)
        self.restorer = Restorer(**networks, relative_prediction=relative_prediction)
        self.engine = Engine(self.restorer)

    @property
    def classes(self) -> tuple[str, ...]:
        """The degradations that the model tells apart, in the order of their probabilities."""
        return self.prompt_processor.classes

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path = "mini", **kwargs: Any) -> Any:
        """Loads a model folder after checking every file of it.

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
        """Writes a model folder, with a model card where it has none; `kwargs` are diffusers' own."""
        super().save_pretrained(save_directory, **kwargs)
        write_model_card(self.restorer, Path(save_directory))

    def prepare(
        self,
        device: str | torch.device = "auto",
        engine: EngineName = "eager",
        dtype: torch.dtype | None = None,
    ) -> "DiffRestorerPipeline":
        """Moves the networks to a device and chooses what runs them; returns the pipeline.

        Args:
            device: `auto` is a GPU if there is one, else the CPU.
            engine: `eager`, `compile`, `graphs` or `openvino`; see `diffrestorer.inference.engines.choice`.
            dtype: of the weights; None: bfloat16 on GPUs, float32 on CPUs.

        Raises:
            ValueError: there is no such engine, it can't run on the device, or it is not installed.
        """
        target = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        opened = open_engine(engine, self.restorer, target)
        place(self.restorer, target, dtype)
        self.engine = opened
        return self

    def enable_model_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Not supported: the denoiser runs UNet and control network layer by layer, past the offloading hooks.

        Raises:
            ValueError: always; it says what saves memory instead.
        """
        raise ValueError(
            "offloading to the CPU is not supported: prepare() keeps the weights in bfloat16 on a GPU; where "
            "memory falls short all the same, give a smaller tile (tile=512)"
        )

    enable_sequential_cpu_offload = enable_model_cpu_offload
    enable_group_offload = enable_model_cpu_offload

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        decoder: Decoder = "refined",
        fidelity: float = 1.0,
        output_type: OutputType = "pil",
        degradation: str | None = None,
        tile: Tile = "auto",
        tile_batch_size: int | None = None,
        on_step: Callable[[int], object] | None = None,
    ) -> DiffRestorerOutput:
        """Restores one image or a list of images of any size; those of one size run as one batch.

        Args:
            image: RGB; PIL, an array (h, w, 3) of uint8, uint16 or floats in [0, 1], or a float tensor (3, h, w) in
                [0, 1] or (b, 3, h, w).
            num_inference_steps: denoising steps; None: `default_steps`.
            generator: of the starting noise (a one-step student draws none); a list gives each image its own.
            decoder: `refined` (the Degradation-aware Decoder) or `sd` (the VAE's own).
            fidelity: weight in [0, 1] of what the refined decoder takes from the degraded image; 0 is `sd`.
            degradation: one of `classes`: what to remove, instead of what the model detects. The probabilities
                in the result stay those detected.
            tile, tile_batch_size: see `sample`.
            on_step: called after every denoising step with the number of images it was a step of.

        Raises:
            ValueError: an image or an option is not usable; nothing has been restored.
        """
        images: list[Any] = list(as_tensors(image))
        if isinstance(generator, Sequence) and len(generator) != len(images):
            raise ValueError(f"{len(generator)} generators were given for {len(images)} images")
        _check_decoder(decoder, fidelity)
        _check_option("output_type", output_type, OutputType)
        restored: list[Any] = [None] * len(images)
        probabilities = torch.empty(len(images), len(self.classes))
        for indices in self._batches(images, tile):
            own = [generator[i] for i in indices] if isinstance(generator, Sequence) else generator
            lq = torch.stack([images[i] for i in indices]) if len(indices) > 1 else images[indices[0]][None]
            size, lq = lq.shape[-2:], pad_to_multiple(lq, self._multiple)
            for i in indices:
                images[i] = None  # a large image is held once
            sampled = self.sample(lq, num_inference_steps, own, degradation, tile, tile_batch_size, on_step, size)
            # Decoding needs no control features: of a large image, the largest of what is held.
            features = sampled.condition.control_features[:, :0].clone()
            sampled = replace(sampled, condition=replace(sampled.condition, control_features=features))
            decoded = self.decode(sampled, decoder, fidelity).float().cpu()
            probabilities[indices] = sampled.condition.prompts.degradation_logits.float().softmax(dim=-1).cpu()
            for row, i in enumerate(indices):
                restored[i] = from_tensor(decoded[row], output_type)
            del lq, sampled, decoded  # before the next one's
        return DiffRestorerOutput(restored, probabilities)

    @property
    def default_steps(self) -> int:
        """Denoising steps unless told otherwise: 1 for a one-step student, else the paper's 20 (section IV-A)."""
        return 1 if isinstance(self.scheduler, OneStepScheduler) else 20

    @torch.no_grad()
    def detect(self, image: ImageInput | Sequence[ImageInput]) -> Float[Tensor, "b k"]:
        """Degradation probabilities of each image, in the order of `classes`; restores nothing."""
        rows = [self._to_device(tensor[None]) for tensor in as_tensors(image)]
        logits = torch.cat([self.engine.read_prompts(row).degradation_logits for row in rows])
        return logits.float().softmax(dim=-1).cpu()

    @torch.no_grad()
    def sample(
        self,
        lq: Float[Tensor, "b 3 h w"],
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        degradation: str | None = None,
        tile: Tile = "auto",
        tile_batch_size: int | None = None,
        on_step: Callable[[int], object] | None = None,
        size: Sequence[int] | None = None,
    ) -> SampledLatents:
        """Latents of restored images; `decode` turns them into pixels.

        Args:
            lq: degraded images in [0, 1], one size. They are padded by reflection to what the UNet needs.
            num_inference_steps: None: `default_steps`.
            tile: `auto` takes up to 1024x1024 pixels whole and a larger image by tiles of at most 1024x1024, smaller
                ones where memory falls short; `none` takes any whole; a number is the side of the largest tile.
            tile_batch_size: tiles at a time; None: as many as make 1024x1024 pixels.
            size: height and width before `lq` was padded; None: it has not been.

        Raises:
            ValueError: an option is not usable, or several images that need tiles were given at once.
        """
        height, width = size or lq.shape[-2:]
        side = tile_side(tile, height, width, self._multiple)
        if side is not None and len(lq) > 1:
            raise ValueError(f"images of {width}x{height} pixels are restored by tiles: sample them one by one")
        steps = self.default_steps if num_inference_steps is None else num_inference_steps
        table = sampling_table(self.scheduler, steps, self._execution_device, torch.float32)
        padded = pad_to_multiple(self._to_device(lq), self._multiple)
        noise = self._noise(padded, generator)  # copied before the device is busy: the host waits for the copy
        prompts = self._read_prompts(padded[..., :height, :width], degradation)

        def run(side: int | None, batch_size: int | None) -> SampledLatents:
            stages = self._stages(padded, side, batch_size)
            condition = stages.condition(padded, prompts)

            def count() -> None:
                bar.update()
                if on_step is not None:
                    on_step(len(padded))

            start = starting_latents(self.scheduler, condition, noise)
            with self.progress_bar(total=steps) as bar:
                latents = table.sample(start, stages.predictor(condition, table.timesteps), count)
            return SampledLatents(latents, condition, padded, height, width, side, batch_size, tile == "auto")

        return until_it_fits(run, self._sides(side, padded, tile == "auto"), tile_batch_size)

    @torch.no_grad()
    def decode(
        self, sampled: SampledLatents, decoder: Decoder = "refined", fidelity: float = 1.0
    ) -> Float[Tensor, "b 3 h w"]:
        """Images in [0, 1] of the original size."""
        _check_decoder(decoder, fidelity)
        refined = decoder == "refined" and fidelity > 0
        latents, lq, condition = sampled.latents, sampled.lq, sampled.condition

        def run(side: int | None, batch_size: int | None) -> Float[Tensor, "b 3 hp wp"]:
            stages = self._stages(lq, side, batch_size)
            return stages.decode(latents, lq, condition, refined, fidelity)

        images = until_it_fits(run, self._sides(sampled.side, lq, sampled.shrink), sampled.tile_batch_size)
        return images[..., : sampled.height, : sampled.width].clamp_(0, 1)

    def _read_prompts(self, lq: Float[Tensor, "b 3 h w"], degradation: str | None) -> VisualPrompts:
        prompts = self.engine.read_prompts(lq)
        if degradation is None:
            return prompts
        own = self.prompt_processor.prototype(degradation).expand(len(lq), -1)
        return replace(prompts, degradation_embedding=own)

    def _noise(
        self, padded: Float[Tensor, "b 3 hp wp"], generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> Float[Tensor, "b l h8 w8"]:
        shape = (self.unet.config.in_channels, padded.shape[-2] // PATCH, padded.shape[-1] // PATCH)
        sources = list(generator) if isinstance(generator, Sequence) else [generator] * len(padded)
        noise = [torch.randn(shape, generator=own, device=own.device if own else "cpu") for own in sources]
        return torch.stack(noise).to(self._execution_device)

    def _stages(self, lq: Float[Tensor, "b 3 hp wp"], side: int | None, batch_size: int | None) -> Stages:
        """For padded images, whole or by tiles of at most `side` pixels."""
        grid = None if side is None else Grid.over(lq.shape[-2:], side, self._multiple, PATCH, batch_size)
        return Stages(self.engine, self._multiple, grid)

    def _sides(self, side: int | None, lq: Float[Tensor, "b 3 h w"], shrink: bool) -> list[int | None]:
        return [side, *smaller_sides(side, lq.shape[-2:], self._multiple)] if shrink and len(lq) == 1 else [side]

    def _batches(self, images: Sequence[ImageTensor], tile: Tile) -> list[list[int]]:
        """Positions of the images that run together: of one size, and alone where tiles are needed."""
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
