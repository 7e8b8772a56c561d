"""The components of a model folder: which classes may stand where, built from a config, written, read and checked.

A model folder is a diffusers pipeline on disk: `model_index.json`, and a folder a component with `config.json` and
safetensors. Reading is strict: a missing, truncated or mismatched file, or an unknown key, is one clear sentence.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from diffrestorer.config.schema import ModelConfig
from diffrestorer.models.backbones import ImageEncoder
from diffrestorer.models.control import ControlEncoder, ControlNetwork
from diffrestorer.models.decoder import DegradationAwareDecoder
from diffrestorer.models.mini import (
    MiniControlEncoder,
    MiniDecoder,
    MiniImageEncoder,
    PatchAutoencoderKL,
)
from diffrestorer.models.older_form import current_form
from diffrestorer.models.prompt_processor import PromptProcessor
from diffrestorer.models.weight_files import (
    STEM,
    WeightFileError,
    find_variant,
    find_weights,
    list_shards,
    save_tensors,
)

COMPONENTS: dict[str, tuple[type[ModelMixin], ...]] = {
    "vae": (AutoencoderKL, PatchAutoencoderKL),
    "image_encoder": (ImageEncoder, MiniImageEncoder),
    "prompt_processor": (PromptProcessor,),
    "unet": (UNet2DConditionModel,),
    "control_encoder": (ControlEncoder, MiniControlEncoder),
    "control_network": (ControlNetwork,),
    "decoder": (DegradationAwareDecoder, MiniDecoder),
}
"""Component name -> the classes that may stand there."""

EQUAL_WIDTHS: tuple[tuple[str, str], ...] = (
    ("image_encoder.embed_dim", "prompt_processor.clip_dim"),
    ("prompt_processor.semantic_dim", "unet.cross_attention_dim"),
    ("prompt_processor.degradation_dim", "control_encoder.degradation_dim"),
    ("prompt_processor.degradation_dim", "decoder.degradation_dim"),
    ("vae.latent_channels", "unet.in_channels"),
    ("vae.latent_channels", "decoder.latent_channels"),
    ("unet.cross_attention_dim", "control_network.cross_attention_dim"),
    ("unet.block_out_channels", "control_network.block_out_channels"),
)
"""Constructor arguments that must agree, since one network's output is another's input."""

WEIGHTS_NAME = f"{STEM}.safetensors"


class ModelFolderError(ValueError):
    """A model folder that cannot be used; the message names the file and what is wrong with it."""


def build_component(cls: type[Any], arguments: Mapping[str, Any], key: str) -> Any:
    """Constructs a component, refusing arguments it does not have (diffusers would only warn)."""
    unknown = sorted(set(arguments) - set(cls._get_init_keys(cls)))
    if unknown:
        raise ValueError(f"{key}.{unknown[0]} is not an argument of {cls.__name__}")
    return cls(**arguments)


def check_networks(components: Mapping[str, ModelMixin], prefix: str) -> None:
    """Refuse networks that do not fit one another (`EQUAL_WIDTHS`).

    Raises:
        ValueError: names both widths, after `prefix`.
    """

    def width(key: str) -> Any:
        name, argument = key.split(".")
        value = components[name].config[argument]
        return list(value) if isinstance(value, Sequence) else value

    for key, other in EQUAL_WIDTHS:
        if width(key) != width(other):
            raise ValueError(f"{prefix}: {key} ({width(key)}) must equal {other} ({width(other)})")
    control, unet = width("control_encoder.block_out_channels"), width("unet.block_out_channels")
    if control[-1] != unet[0]:
        raise ValueError(
            f"{prefix}: control_encoder's last width ({control[-1]}) must equal unet's first ({unet[0]})"
        )


def component_class(component: str, name: str) -> type[Any]:
    """Return the class of that name that may stand as a component, such as `vae`.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    classes = {cls.__name__: cls for cls in COMPONENTS[component]}
    if name not in classes:
        raise ValueError(
            f"model.{component}_class={name} is unknown; choose one of {', '.join(classes)}"
        )
    return classes[name]


def build_vae(config: ModelConfig) -> AutoencoderKL:
    """Return a VAE with random weights."""
    return build_component(component_class("vae", config.vae_class), config.vae, "model.vae")


def build_image_encoder(config: ModelConfig) -> ImageEncoder:
    """Return an image encoder with random weights."""
    cls = component_class("image_encoder", config.image_encoder_class)
    return build_component(cls, config.image_encoder, "model.image_encoder")


def build_unet(config: ModelConfig) -> UNet2DConditionModel:
    """Return a UNet with random weights."""
    return build_component(UNet2DConditionModel, config.unet, "model.unet")


def save_component(component: ModelMixin, folder: Path, dtype: torch.dtype) -> None:
    """Writes `config.json` and safetensors of `dtype`, leaving the component as it was."""
    component.save_config(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)  # where it was read from is nobody's business
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in component.state_dict().items()
    }
    save_tensors(tensors, folder / WEIGHTS_NAME, {"format": "pt"})


def load_component(folder: Path, name: str | None = None) -> ModelMixin:
    """Reads one component of Diff-Restorer in float32, strictly.

    Args:
        folder: with `config.json` and the weights.
        name: of the component in `COMPONENTS`; the folder's own name if None.

    Raises:
        ModelFolderError: what is missing, truncated or does not fit.
    """
    return load_folder(folder, COMPONENTS[name or folder.name])


def load_weights(component: ModelMixin, folder: Path) -> None:
    """Gives a component the weights of the same one in `folder`, which need not be for the same image size.

    A prompt processor of other classes gives those of the classifier's rows whose class both have.

    Raises:
        ModelFolderError: there is no such folder, or its networks are of other sizes.
    """
    if not folder.is_dir():
        raise ModelFolderError(f"{folder.parent} holds no {folder.name} to begin with")
    source = load_component(folder)
    weights = source.state_dict()
    if isinstance(component, ControlNetwork):
        weights = component.complete(weights)
    try:  # what only the folder's has (prototypes) is left there
        if isinstance(component, PromptProcessor) and isinstance(source, PromptProcessor):
            weights |= component.classifier_of(source)
        component.load_state_dict({name: weights[name] for name in component.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ModelFolderError(
            f"{folder} is of other sizes than this run's {folder.name}: {error}"
        ) from None


def load_folder(folder: Path, classes: Sequence[type[ModelMixin]]) -> ModelMixin:
    """Reads a network that is one of `classes` in float32, strictly.

    Raises:
        ModelFolderError: what is missing, truncated or does not fit.
    """
    component = _empty_component(folder, classes)
    paths = _weights_of(folder, find_variant(folder))
    _check_weights(paths, component.state_dict())
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= load_safetensors(path)
    component.to_empty(device="cpu")
    component.load_state_dict(tensors)  # copied into the component's own types
    return component.eval()


def check_model_folder(folder: Path, variant: str | None = None) -> None:
    """Refuses a model folder in which anything is missing, truncated or mismatched; reads no weights.

    Args:
        variant: of the weights, such as `fp16`.

    Raises:
        ModelFolderError: the first thing that is wrong, with the file's path.
    """
    index = _read_json(folder / "model_index.json")
    missing = [name for name in COMPONENTS if name not in index]
    if missing:
        raise ModelFolderError(
            f"{folder / 'model_index.json'} is not Diff-Restorer's: it lacks {', '.join(missing)}"
        )
    for name, classes in COMPONENTS.items():
        _check_entry(folder / "model_index.json", name, index[name], classes)
    _read_json(folder / "scheduler" / "scheduler_config.json")
    components = {
        name: _empty_component(folder / name, classes) for name, classes in COMPONENTS.items()
    }
    for name, component in components.items():
        _check_weights(_weights_of(folder / name, variant), component.state_dict())
    try:
        check_networks(components, "its networks do not fit")
    except ValueError as error:
        raise ModelFolderError(f"{folder}: {error}") from None


def read_classes(folder: Path) -> tuple[str, ...]:
    """Return the classes of a model folder, in the order of their index; reads no weights.

    A folder that was saved before models had classes of their own has the paper's eight.

    Raises:
        ModelFolderError: its prompt processor's configuration is missing or unusable.
    """
    processor = _empty_component(folder / "prompt_processor", COMPONENTS["prompt_processor"])
    assert isinstance(processor, PromptProcessor)
    return processor.classes


def read_older_form(folder: Path) -> dict[str, Any]:
    """Return what of a model folder diffusers would not read as it was meant: arguments of the pipeline, by name.

    These are the components of a folder that was saved before mini had classes of its own, and whether its predictions
    were relative, which then followed from the control encoder's configuration. Of a newer folder there are none.
    """
    found: dict[str, Any] = {}
    for name in ("control_encoder", "decoder"):
        config = _read_json(folder / name / "config.json")
        if current_form(config) != config:
            found[name] = load_component(folder / name)
    if isinstance(found.get("control_encoder"), MiniControlEncoder):
        found["relative_prediction"] = True
    return found


def read_relative_prediction(folder: Path) -> bool:
    """Return whether the UNet of a model folder predicts the difference to the degraded image's latents."""
    index = _read_json(folder / "model_index.json")
    return bool(index.get("relative_prediction") or read_older_form(folder).get("relative_prediction"))


def check_finite(folder: Path, components: Mapping[str, ModelMixin]) -> None:
    """Refuses components whose weights hold a NaN or an infinity, which would spoil every image.

    Raises:
        ModelFolderError: names the component and the tensor.
    """
    for name, component in components.items():
        for key, value in component.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value.sum(dtype=torch.float64)):
                raise ModelFolderError(
                    f"{folder / name}: {key} holds numbers that are not finite (NaN or infinity)"
                )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelFolderError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path} cannot be read: it holds no JSON object")
    return content


def _check_entry(path: Path, name: str, entry: Any, classes: Sequence[type[ModelMixin]]) -> None:
    """Refuse an index that names a class of other modules, which diffusers would import."""
    known = {cls.__name__ for cls in classes}
    if isinstance(entry, list) and len(entry) == 2 and entry[1] in known:
        package = str(entry[0]).partition(".")[0]
        if package in ("diffusers", "diffrestorer"):
            return
    raise ModelFolderError(f"{path} gives {name} as {entry}, where {' or '.join(known)} is expected")


def _empty_component(folder: Path, classes: Sequence[type[ModelMixin]]) -> ModelMixin:
    """The network a folder describes, one of `classes`, without weights."""
    path = folder / "config.json"
    config = current_form(_read_json(path))
    by_name = {cls.__name__: cls for cls in classes}
    if config.get("_class_name") not in by_name:
        raise ModelFolderError(
            f"{path} describes a {config.get('_class_name')}, where {' or '.join(by_name)} is expected"
        )
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with torch.device("meta"):
            return build_component(by_name[config["_class_name"]], arguments, str(path))
    except Exception as error:  # a wrong value may break the construction anywhere
        raise ModelFolderError(
            f"{path} does not describe a usable {config['_class_name']}: {error}"
        ) from None


def _weights_of(folder: Path, variant: str | None) -> list[Path]:
    """Return the files of a network's weights."""
    usual = ".".join(word for word in (STEM, variant, "safetensors") if word)
    path = find_weights(folder).get(variant, folder / usual)
    try:
        return list_shards(path)
    except WeightFileError as error:
        raise ModelFolderError(f"{path} is {error}") from None


def _check_weights(paths: Sequence[Path], expected: Mapping[str, Tensor]) -> None:
    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise ModelFolderError(f"{path} is missing") from None
        except (OSError, SafetensorError) as error:
            raise ModelFolderError(f"{path} is damaged or truncated ({error})") from None
    path = paths[0]
    wanted = {name: tuple(value.shape) for name, value in expected.items()}
    differing = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    if differing:
        first, more = differing[0], f" ({len(differing)} tensors differ: {', '.join(differing[:5])})"
        raise ModelFolderError(
            f"{path} does not fit its config.json: {first} is {found.get(first, 'missing')} there, "
            f"{wanted.get(first, 'not part of the model')} by the config{more if len(differing) > 1 else ''}"
        )
