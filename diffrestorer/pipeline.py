"""From a degraded image to a restored one: the sampler around the networks, as a diffusers pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel, UniPCMultistepScheduler
from diffusers.utils import BaseOutput
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffrestorer.models.backbones import PATCH, ImageEncoder
from diffrestorer.models.blocks import pad_to_multiple
from diffrestorer.models.components import ModelFolderError, check_model_folder, save_component
from diffrestorer.models.control import ControlEncoder, ControlNetwork
from diffrestorer.models.decoder import DegradationAwareDecoder
from diffrestorer.models.prompt_processor import PromptProcessor
from diffrestorer.models.restorer import Conditioning, Restorer

ImageTensor = Float[Tensor, "3 _ _"]
ImageInput = Image.Image | np.ndarray | Float[Tensor, "..."]
Decoder = Literal["refined", "sd"]
OutputType = Literal["pil", "np", "pt"]


@dataclass
class DiffRestorerOutput(BaseOutput):
    """What a call returns.

    Attributes:
        images: restored images in the order and of the sizes of the input: PIL, or float arrays (h, w, 3) in [0, 1],
            or float tensors (3, h, w) in [0, 1], by `output_type`.
        degradation_probabilities: the classifier's softmax, in the order of `diffrestorer.degradations.DEGRADATIONS`.
    """

    images: list[Any]
    degradation_probabilities: Float[Tensor, "b 8"]


@dataclass(frozen=True)
class SampledLatents:
    """Restored latents before they are decoded, so that one sampling can serve both decoders."""

    latents: Float[Tensor, "b l h8 w8"]
    condition: Conditioning
    height: int
    width: int


def sample_latents(
    restorer: Restorer,
    scheduler: UniPCMultistepScheduler,
    condition: Conditioning,
    noise: Float[Tensor, "b l h8 w8"],
    num_inference_steps: int,
    on_step: Callable[[], object] | None = None,
) -> Float[Tensor, "b l h8 w8"]:
    """Runs the reverse diffusion from `noise`; no classifier-free guidance. The paper: UniPC, 20 steps."""
    scheduler.set_timesteps(num_inference_steps, device=noise.device)
    latents = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        model_output = restorer.denoise(scheduler.scale_model_input(latents, timestep), timestep, condition)
        latents = scheduler.step(model_output, timestep, latents, return_dict=False)[0]
        if on_step is not None:
            on_step()
    return latents


class DiffRestorerPipeline(DiffusionPipeline):
    """Restores images of any size and any of the eight degradations, without being told which.

    `DiffRestorerPipeline.from_pretrained("mini")` loads the weights that ship with the package; a folder or a hub id
    loads others.
    """

    model_cpu_offload_seq = "image_encoder->prompt_processor->vae->control_encoder->control_network->unet->decoder"

    def __init__(
        self,
        vae: AutoencoderKL,
        image_encoder: ImageEncoder,
        prompt_processor: PromptProcessor,
        unet: UNet2DConditionModel,
        control_encoder: ControlEncoder,
        control_network: ControlNetwork,
        decoder: DegradationAwareDecoder,
        scheduler: UniPCMultistepScheduler,
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
        self.restorer = Restorer(**networks)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path = "mini", **kwargs: Any) -> Any:
        """Loads a model folder after checking every file of it.

        Args:
            pretrained_model_name_or_path: `mini` (bundled), a model folder, the output folder of a training run, or a
                hub id.
            kwargs: diffusers' own, such as `torch_dtype` (float32 by default, whatever the files hold).

        Raises:
            ModelFolderError: nothing is there, or a file is missing, truncated or does not fit.
        """
        folder = find_model(pretrained_model_name_or_path)
        check_model_folder(folder)
        return super().from_pretrained(folder, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        num_inference_steps: int = 20,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        decoder: Decoder = "refined",
        fidelity: float = 1.0,
        output_type: OutputType = "pil",
    ) -> DiffRestorerOutput:
        """Restores one image or a list of images; those of one size run as one batch.

        Args:
            image: RGB; PIL, an array (h, w, 3) of uint8, uint16 or floats in [0, 1], or a float tensor (3, h, w) in
                [0, 1] or (b, 3, h, w).
            num_inference_steps: denoising steps.
            generator: of the starting noise; a list gives each image its own, so that batching changes nothing.
            decoder: `refined` (the Degradation-aware Decoder) or `sd` (the VAE's own).
            fidelity: weight of the refinement in [0, 1].
        """
        images = _as_tensors(image)
        if isinstance(generator, Sequence) and len(generator) != len(images):
            raise ValueError(f"{len(generator)} generators were given for {len(images)} images")
        _check_option("decoder", decoder, Decoder)
        _check_option("output_type", output_type, OutputType)
        restored: list[Any] = [None] * len(images)
        probabilities = torch.empty(len(images), self.prompt_processor.classifier.out_features)
        for indices in _group_by_size(images):
            own = [generator[i] for i in indices] if isinstance(generator, Sequence) else generator
            sampled = self.sample(torch.stack([images[i] for i in indices]), num_inference_steps, own)
            decoded = self.decode(sampled, decoder, fidelity).float().cpu()
            logits = sampled.condition.prompts.degradation_logits.float().cpu()
            for row, i in enumerate(indices):
                restored[i] = _convert(decoded[row], output_type)
                probabilities[i] = logits[row].softmax(dim=-1)
        return DiffRestorerOutput(restored, probabilities)

    @torch.no_grad()
    def detect(self, image: ImageInput | Sequence[ImageInput]) -> Float[Tensor, "b 8"]:
        """Degradation probabilities of each image, in the order of `DEGRADATIONS`; restores nothing."""
        rows = [self._to_device(tensor[None]) for tensor in _as_tensors(image)]
        logits = torch.cat([self.restorer.read_prompts(row).degradation_logits for row in rows])
        return logits.float().softmax(dim=-1).cpu()

    @torch.no_grad()
    def sample(
        self,
        lq: Float[Tensor, "b 3 h w"],
        num_inference_steps: int = 20,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> SampledLatents:
        """Latents of restored images; `decode` turns them into pixels.

        Args:
            lq: degraded images in [0, 1], one size. They are padded by reflection to what the UNet needs.
        """
        lq = self._to_device(lq)
        prompts = self.restorer.read_prompts(lq)
        multiple = PATCH * 2 ** (len(self.unet.config.block_out_channels) - 1)  # what VAE and UNet divide by
        condition = self.restorer.condition(pad_to_multiple(lq, multiple), prompts)
        shape = condition.encoded.latents.shape[1:]
        sources = list(generator) if isinstance(generator, Sequence) else [generator] * len(lq)
        noise = torch.stack([torch.randn(shape, generator=own, device=own.device if own else "cpu") for own in sources])
        with self.progress_bar(total=num_inference_steps) as bar:
            latents = sample_latents(
                self.restorer, self.scheduler, condition, self._to_device(noise), num_inference_steps, bar.update
            )
        return SampledLatents(latents, condition, lq.shape[-2], lq.shape[-1])

    @torch.no_grad()
    def decode(
        self, sampled: SampledLatents, decoder: Decoder = "refined", fidelity: float = 1.0
    ) -> Float[Tensor, "b 3 h w"]:
        """Images in [0, 1] of the original size."""
        _check_option("decoder", decoder, Decoder)
        images = self.restorer.decode(sampled.latents, sampled.condition, decoder == "refined", fidelity)
        return images[..., : sampled.height, : sampled.width].clamp(0, 1)

    def _to_device(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return tensor.to(self._execution_device, self.unet.dtype)


def find_model(name: str | Path) -> Path:
    """The folder behind `mini`, a model folder, a training run's output folder, or a hub id (downloaded).

    Raises:
        ModelFolderError: nothing is there.
    """
    if str(name) == "mini":
        return Path(str(files("diffrestorer") / "weights" / "mini"))
    folder = Path(name)
    if (folder / "model" / "model_index.json").exists():
        return folder / "model"
    if folder.is_dir():
        return folder
    try:
        return Path(DiffusionPipeline.download(str(name)))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFolderError(f"no model at {name!r}: it is no folder, and as a hub id: {reason}") from None


def save_model_folder(
    restorer: Restorer, scheduler: UniPCMultistepScheduler, folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Writes a model folder whose weights are of `dtype`; `DiffRestorerPipeline.from_pretrained` reads it."""
    pipeline = DiffRestorerPipeline(**restorer.components(), scheduler=scheduler)
    pipeline.save_config(folder)
    scheduler.save_config(folder / "scheduler")
    for name, component in restorer.components().items():
        save_component(component, folder / name, dtype)


def _check_option(name: str, value: str, options: Any) -> None:
    *first, last = map(repr, get_args(options))
    if value not in get_args(options):
        raise ValueError(f"{name} must be {', '.join(first)} or {last}, not {value!r}")


def _as_tensors(image: ImageInput | Sequence[ImageInput]) -> list[ImageTensor]:
    if isinstance(image, Image.Image | np.ndarray) or (isinstance(image, Tensor) and image.ndim == 3):
        image = [image]
    return [_as_tensor(item) for item in image]


def _as_tensor(image: ImageInput) -> ImageTensor:
    """One image as floats in [0, 1]."""
    if isinstance(image, Tensor):
        tensor = image
    else:
        array = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        scale = {"uint8": 255, "uint16": 65535, "float16": 1, "float32": 1, "float64": 1}.get(array.dtype.name)
        if scale is None:
            raise ValueError(f"an image array must be uint8, uint16 or floats in [0, 1], not {array.dtype}")
        if array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"an image array must be (height, width, 3), not {array.shape}")
        tensor = torch.from_numpy(array.astype(np.float32) / scale).permute(2, 0, 1)
    if tensor.ndim != 3 or tensor.shape[0] != 3 or not tensor.is_floating_point():
        raise ValueError(f"an image tensor must be floats (3, height, width), not {tensor.dtype} {tuple(tensor.shape)}")
    if not tensor.numel():
        raise ValueError(f"an image must have pixels, and this one is {tuple(tensor.shape)}")
    low, high = (value.item() for value in tensor.aminmax())
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise ValueError(f"an image's floats must lie in [0, 1], and these lie in [{low:g}, {high:g}]")
    return tensor


def _group_by_size(images: Sequence[ImageTensor]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(i)
    return list(groups.values())


def _convert(image: Float[Tensor, "3 h w"], output_type: str) -> Image.Image | np.ndarray | Float[Tensor, "3 h w"]:
    if output_type == "pt":
        return image
    array = image.permute(1, 2, 0).numpy()
    return array if output_type == "np" else Image.fromarray((array * 255).round().astype(np.uint8))
