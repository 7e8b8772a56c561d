"""Files of weights: written as safetensors, and read in the forms that people have, without executing anything.

Those forms are safetensors, PyTorch's files (`weights_only`), and TorchScript archives such as OpenAI's CLIP. PyTorch
reads the last only by making their program runnable. Here their tensors alone are read.
"""

import json
import pickle
import secrets
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""PyTorch's names of typed storages -> the type of their numbers."""


STEM = "diffusion_pytorch_model"
"""Beginning of the names of a diffusers network's files of weights."""

DEEPEST = 50
"""Modules within modules that a network may have."""


class WeightFileError(ValueError):
    """A file of weights that cannot be read; the message says why, without the file's name."""


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors, readable by whoever may read other new files of the folder."""
    save_file(dict(tensors), path, metadata=metadata)
    share_like_new_files(path)


def share_like_new_files(*paths: Path) -> None:
    """Give files the permissions of new ones in their folder; safetensors makes its files private to their owner."""
    for path in paths:
        # Only a file tells what the process's mask and the folder's rules come to.
        probe = path.with_name(f".{secrets.token_hex(8)}.tmp")
        probe.touch(exist_ok=False)
        try:
            path.chmod(probe.stat().st_mode & 0o777)
        finally:
            probe.unlink()


def find_weights(folder: Path) -> dict[str | None, Path]:
    """Return a diffusers network's weights by variant, such as `fp16`; those of no variant (None) come first.

    Each is a safetensors file, or the index of several: `diffusion_pytorch_model.safetensors.index.fp16.json`.
    """
    found: dict[str | None, Path] = {}
    for path in sorted(folder.glob(f"{STEM}.*safetensors*")):
        words = path.name.removeprefix(f"{STEM}.").removesuffix(".json").split(".")
        variant = ".".join(word for word in words if word not in ("safetensors", "index"))
        if "-of-" not in path.name:
            found.setdefault(variant or None, path)
    return {variant: found[variant] for variant in sorted(found, key=lambda name: name or "")}


def find_variant(folder: Path) -> str | None:
    """Return the variant of a network's weights that is read unless another one is asked for."""
    return next(iter(find_weights(folder)), None)


def list_shards(path: Path) -> list[Path]:
    """Return the safetensors files of an index, or the file itself if it is none.

    Raises:
        WeightFileError: the index is damaged, or names files elsewhere.
    """
    if path.suffix != ".json":
        return [path]
    try:
        names = set(json.loads(path.read_text())["weight_map"].values())
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("it names no files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightFileError(f"damaged, {explain_unreadable(error)}") from None
    return [path.with_name(name) for name in sorted(names)]


def remove_older_form(folder: Path) -> None:
    """Where weights lie both in one file and in several, remove those that were there before the last save."""
    for index in folder.glob(f"{STEM}.safetensors.index*.json"):
        variant = index.name.removeprefix(f"{STEM}.safetensors.index").removesuffix(".json")
        single = folder / f"{STEM}{variant}.safetensors"
        if single.exists():
            newer = index.stat().st_mtime_ns > single.stat().st_mtime_ns
            (single if newer else index).unlink()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name, in the types they are stored in.

    A PyTorch file may hold them directly, or below `state_dict`; a prefix `module.` is dropped.

    Raises:
        WeightFileError: the file is missing, damaged, holds no tensors, or more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_torchscript(path):
            return read_torchscript(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except WeightFileError:
        raise
    except Exception as error:  # a damaged file may break its reader anywhere
        raise WeightFileError(explain_unreadable(error)) from None

    # Checkpoints of training runs hold the weights beside the optimizer's state.
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = (
        {
            str(name).removeprefix("module."): value
            for name, value in content.items()
            if isinstance(value, Tensor)
        }
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise WeightFileError("it holds no tensors by name")
    return tensors


def explain_unreadable(error: Exception) -> str:
    """Return a clause for the error of a reader of weights; PyTorch's on pickles goes on for paragraphs."""
    if isinstance(error, pickle.UnpicklingError):
        return "a file holds more than tensors, which would be executed, or is no file of PyTorch"
    first = (str(getattr(error, "reason", error)).splitlines() or [type(error).__name__])[0]
    return f"damaged, {first}" if isinstance(error, EOFError | SafetensorError) else first


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive: a zip file with a program beside its data."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = [PurePosixPath(name).parts[1:] for name in archive.namelist()]
    return any(parts[:1] in {("code",), ("constants.pkl",)} for parts in names)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive by name; its program is left alone.

    Raises:
        WeightFileError: the archive is damaged or describes something else than modules of tensors.
    """
    with zipfile.ZipFile(path) as archive:
        (data,) = [
            name for name in archive.namelist() if PurePosixPath(name).parts[1:] == ("data.pkl",)
        ]
        with archive.open(data) as file:
            try:
                root = _ArchiveReader(file, archive, data.removesuffix(".pkl")).load()
            except Exception as error:  # a damaged description may break anywhere
                raise WeightFileError(explain_unreadable(error)) from None

    tensors: dict[str, Tensor] = {}
    if isinstance(root, _Module):
        _collect(root, "", tensors, depth=0)
    if not tensors:
        raise WeightFileError("it holds no tensors by name")
    return tensors


def _collect(module: Any, prefix: str, tensors: dict[str, Tensor], depth: int) -> None:
    """Add the tensors of a module and of the modules in it, by their names from the outermost module."""
    if depth > DEEPEST:
        raise WeightFileError("its modules are nested without end")
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", tensors, depth + 1)


class _Module:
    """A scripted module: its attributes, and none of its program."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class _ArchiveReader(pickle.Unpickler):
    """A reader of a TorchScript archive's `data.pkl` that knows modules, lists and tensors, and calls nothing else."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive = archive
        self.folder = folder

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name in the file; names that are not on the list are refused."""
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _rebuild_tensor
        if module == "torch.jit._pickle" and (name.startswith("build_") or name == "restore_type_tag"):
            return _first
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of weights")

    def persistent_load(self, pid: Any) -> Shaped[Tensor, "n"]:
        """Return the numbers of a storage, one after the other."""
        _, dtype, key, *_ = pid
        data = self.archive.read(f"{self.folder}/{key}")
        return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _rebuild_tensor(
    storage: Shaped[Tensor, "n"], offset: int, size: Sequence[int], stride: Sequence[int], *_: Any
) -> Shaped[Tensor, "..."]:
    """Return a tensor over a storage; PyTorch refuses one that reaches beyond it."""
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _first(value: Any, *_: Any) -> Any:
    """Return the list that TorchScript marks with the type of its elements."""
    return value
