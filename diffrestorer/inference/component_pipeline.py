"""A pipeline's components: loading, saving, placing and offloading them, as diffusers' users know it."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin, SchedulerMixin, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from diffrestorer.inference.devices import choose_dtype, find_device, lay_out, place
from diffrestorer.inference.model_folder import (
    find_model,
    name_pipeline_class,
    no_loading_bar,
    plain_components,
    write_model_card,
)
from diffrestorer.inference.one_step import OneStepScheduler
from diffrestorer.inference.sampler import check_steps
from diffrestorer.models.backbones import PATCH, ImageEncoder
from diffrestorer.models.components import (
    COMPONENTS,
    ModelFolderError,
    check_finite,
    check_model_folder,
    read_older_form,
)
from diffrestorer.models.control import ControlEncoder, ControlNetwork
from diffrestorer.models.decoder import DegradationAwareDecoder
from diffrestorer.models.mini import (
    MiniControlEncoder,
    MiniDecoder,
    MiniImageEncoder,
    PatchAutoencoderKL,
)
from diffrestorer.models.prompt_processor import PromptProcessor
from diffrestorer.models.restorer import Restorer
from diffrestorer.models.weight_files import find_variant, remove_older_form, share_like_new_files


class ComponentPipeline(DiffusionPipeline):
    """The seven networks and the scheduler of a model.

    It holds no second reference to a component: one that is assigned, compiled, hooked, adapted or offloaded is the one
    that runs and is saved.
    """

    # Each network leaves the GPU when the next one runs. The control network, which alternates with the UNet, stays.
    model_cpu_offload_seq = "image_encoder->prompt_processor->vae->control_encoder->unet->decoder"

    # PyTorch's attention in CLIP reads the weights of a layer that it never calls: offloading layer by layer would miss
    # them. The encoder runs once per image.
    _exclude_from_cpu_offload = ["image_encoder"]

    def __init__(
        self,
        vae: AutoencoderKL | PatchAutoencoderKL,
        image_encoder: ImageEncoder | MiniImageEncoder,
        prompt_processor: PromptProcessor,
        unet: UNet2DConditionModel,
        control_encoder: ControlEncoder | MiniControlEncoder,
        control_network: ControlNetwork,
        decoder: DegradationAwareDecoder | MiniDecoder,
        scheduler: SchedulerMixin,
        relative_prediction: bool = False,
    ) -> None:
        # Diffusers' `from_pipe` takes over components of exactly the classes named above.
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

    def choose_steps(self, asked: int | None) -> int:
        """Return the number of steps that the model samples in: as asked for, or its own; a student's is always 1.

        Raises:
            ValueError: there are no steps, or the scheduler's settings don't work out.
        """
        return check_steps(self.scheduler, self.default_steps if asked is None else asked)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path = "mini", **kwargs: Any) -> Any:
        """Load a model folder after checking every file of it.

        Args:
            pretrained_model_name_or_path: `mini` (bundled), a model folder, the output folder of a training run, or a
                hub id.
            kwargs: diffusers' own, such as `dtype` (float32 by default, whatever the files hold) or `variant`, which
                may be left out where a folder holds that one alone.

        Raises:
            ModelFolderError: nothing is there, or a file is missing, truncated or does not fit, or holds a NaN.
        """
        if kwargs.get("use_safetensors") is False:
            raise ModelFolderError("weights are read from safetensors alone: leave use_safetensors out")
        folder = find_model(pretrained_model_name_or_path)
        variant = kwargs.pop("variant", None) or find_variant(folder / "unet")
        check_model_folder(folder, variant)

        # An older folder's mini needs its components read by us.
        older = read_older_form(folder)
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        if isinstance(dtype, torch.dtype):
            older = {
                name: part.to(dtype) if isinstance(part, ModelMixin) else part
                for name, part in older.items()
            }

        with no_loading_bar():
            pipeline = super().from_pretrained(
                folder, **{"use_safetensors": True, "variant": variant, **older, **kwargs}
            )
        networks = pipeline.restorer.components()
        check_finite(folder, networks)

        # The caller's own networks stay as they are.
        for name in networks.keys() - kwargs.keys():
            lay_out(networks[name])
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write a model folder, with a model card where it has none.

        LoRA adapters are added to the weights that are written; the pipeline's own stay as they are.

        Args:
            kwargs: diffusers' own, such as `variant`, `max_shard_size`, `push_to_hub`.

        Raises:
            ValueError: an option asks for other files than `from_pretrained` reads.
        """
        # Every reader checks a model folder file by file, and reads safetensors alone.
        for key, usual in {"safe_serialization": True, "use_flashpack": False}.items():
            if kwargs.get(key, usual) != usual:
                raise ValueError(
                    f"a model folder holds its weights as safetensors: leave {key}={kwargs[key]} out"
                )

        relative = self.config.relative_prediction
        written = type(self)(**plain_components(self.components), relative_prediction=relative)
        super(ComponentPipeline, written).save_pretrained(str(save_directory), **kwargs)
        for name in COMPONENTS:
            remove_older_form(Path(save_directory) / name)
        write_model_card(written.restorer, Path(save_directory))

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `model_index.json`, and a file by which diffusers finds this class; the last step of saving."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        name_pipeline_class(folder)
        share_like_new_files(*folder.glob("*/*.safetensors"))

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Read `model_index.json`. The class that it names is this one, and no file of the folder is executed."""
        found = super().load_config(*args, **kwargs)
        config = found[0] if isinstance(found, tuple) else found
        config["_class_name"] = cls.__name__
        return found

    def prepare(
        self,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        compile: bool = False,
    ) -> Any:
        """Move the networks to a device in the layout that is fastest there; return the pipeline.

        Args:
            device: `auto` is a GPU if there is one, else the CPU.
            dtype: of the weights; None: bfloat16 on GPUs that have it, float32 elsewhere.
            compile: whether the denoising networks run through torch.compile. That pays for many images of one size.
        """
        target = find_device(device)
        default = choose_dtype("float32" if target.type == "cpu" else "auto", target)
        self.to(target)  # diffusers refuses to move what is offloaded
        place(self.restorer, target, dtype or default)
        if compile:
            self.unet.compile()
            self.control_network.compile()
        return self

    def enable_group_offload(
        self, *args: Any, offload_type: str = "block_level", **kwargs: Any
    ) -> None:
        """Offload groups of layers, as diffusers does; layer by layer the image encoder stays on the device."""
        if offload_type == "leaf_level":
            excluded = kwargs.pop("exclude_modules", None) or []
            excluded = [excluded] if isinstance(excluded, str) else list(excluded)
            kwargs["exclude_modules"] = [*excluded, *self._exclude_from_cpu_offload]
        super().enable_group_offload(*args, offload_type=offload_type, **kwargs)

    @property
    def _multiple(self) -> int:
        """Pixels that a side of a padded image is a multiple of: what VAE and UNet divide by."""
        return PATCH * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def _check_types(self) -> None:
        """Refuse networks of different types, which could not take each other's outputs.

        Autocast brings them together.

        Raises:
            ValueError: names the types and their networks.
        """
        if torch.is_autocast_enabled(self._execution_device.type):
            return
        names_of: dict[str, list[str]] = {}
        for name in COMPONENTS:
            dtype = getattr(getattr(self, name), "dtype", None)
            if dtype is not None:
                names_of.setdefault(str(dtype).removeprefix("torch."), []).append(name)
        if len(names_of) > 1:
            found = "; ".join(f"{dtype}: {', '.join(names)}" for dtype, names in names_of.items())
            raise ValueError(
                f"the networks are of different types ({found}): give them one, as by pipe.to(torch.float32)"
            )

    def _to_device(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return images as the networks take them.

        Raises:
            ValueError: the networks do not take the same.
        """
        self._check_types()
        return tensor.to(self._execution_device, self.unet.dtype)
