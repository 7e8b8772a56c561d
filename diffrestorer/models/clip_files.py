"""CLIP's weights as people have them: open_clip's, OpenAI's and transformers' files, folders, tags and hub ids."""

from pathlib import Path

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from torch import Tensor, nn

from diffrestorer.models.clip_names import open_clip_names
from diffrestorer.models.hub_files import HubError, check_network, find_hub_file
from diffrestorer.models.weight_files import WeightFileError, read_tensors

CLIP_NAMES: tuple[str, ...] = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "model.fp16.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
"""Files of a folder or a repository that hold CLIP, the best first."""


class ClipError(ValueError):
    """CLIP's weights can't be had or do not fit.

    Attributes:
        reason: a clause that says why.
        wanted: what to fetch: a file, and its repository or folder.
    """

    def __init__(self, reason: str, wanted: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wanted = wanted


def find_clip(architecture: str, weights: str | None) -> Path:
    """Return the file of CLIP's weights; reads nothing of it.

    Args:
        architecture: open_clip's name of the network.
        weights: a file, a folder or a hub id with one of `CLIP_NAMES`, or a tag of open_clip such as `openai`, from
            Hugging Face's cache or by download.

    Raises:
        ClipError: there is none.
    """
    # On this machine.
    source = str(weights)
    if Path(source).is_file():
        return Path(source)
    if Path(source).is_dir():
        return _in_folder(Path(source))

    # By a tag of open_clip, which stands for a repository or an address; by a repository.
    settings = get_pretrained_cfg(architecture, source) or {}
    repository, _, name = settings.get("hf_hub", "").rpartition("/")
    names = CLIP_NAMES if not name else (f"{Path(name).stem}.safetensors", name)
    if not settings and source.count("/") == 1 and not source.startswith((".", "/")):
        repository = source
    if repository:
        try:
            return find_hub_file(repository, names)
        except HubError as error:
            raise ClipError(str(error), f"{names[0]} of {repository}") from None
    if "url" in settings:
        return _by_address(settings["url"])
    tags = ", ".join(list_pretrained_tags_by_model(architecture))
    raise ClipError(
        f"{source} is no file, no folder, no hub id and none of open_clip's {tags}",
        f"open_clip's {architecture}",
    )


def read_clip(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Read CLIP's tensors by open_clip's names.

    Args:
        path: the file.
        prefix: keeps the tensors whose names begin with it, without it: `visual.` for the image tower.

    Raises:
        ClipError: the file is damaged, or holds something else.
    """
    try:
        tensors = open_clip_names(read_tensors(path))
    except (WeightFileError, KeyError) as error:
        raise ClipError(f"{path} cannot be read: {error}", str(path)) from None
    found = {
        name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
    }
    if not found:
        raise ClipError(f"{path} holds no image tower of CLIP", str(path))
    return found


def load_whole_clip(architecture: str, weights: str) -> open_clip.CLIP:
    """Load CLIP with its text tower.

    Raises:
        ClipError: the weights can't be had or are of another network.
    """
    path = find_clip(architecture, weights)
    settings = open_clip.get_model_config(architecture)
    assert settings is not None, "a name of open_clip's"
    clip = open_clip.CLIP(**settings)
    load_into(clip, read_clip(path), path)
    return clip.eval()


def load_into(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Give a network the tensors of a file, which may hold more than it has.

    Raises:
        ClipError: one that it has is missing or of another shape.
    """
    own = network.state_dict()
    for name, value in own.items():
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        if found != tuple(value.shape):
            raise ClipError(
                f"{path} is of another network: {name} is {found}, not {tuple(value.shape)}", str(path)
            )
    network.load_state_dict({name: tensors[name] for name in own})


def _in_folder(folder: Path) -> Path:
    """Return CLIP's file in a folder of open_clip or transformers, or in a repository's folder of the hub's cache."""
    snapshots = sorted(folder.glob("snapshots/*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for place in (folder, *snapshots):
        for name in CLIP_NAMES:
            if (place / name).is_file():
                return place / name
    raise ClipError(f"{folder} has no model.safetensors", f"model.safetensors in {folder}")


def _by_address(url: str) -> Path:
    """Return a file that open_clip fetches from an address, with the checksum in it; once fetched it is kept."""
    name = url.rpartition("/")[2]
    kept = Path.home() / ".cache" / "clip" / name
    try:
        if not kept.is_file():
            check_network()
        return Path(open_clip.download_pretrained_from_url(url))
    except (OSError, RuntimeError, HubError) as error:
        raise ClipError(str(error).splitlines()[0], f"{name} from {url}") from None
