"""The authors' own checkpoints, read into our networks: names are translated, tensors copied, nothing half-loaded.

Covered: NAFNet, Restormer (with biased LayerNorm), PromptIR and AirNet. TransWeather's and DA-CLIP's are not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from spandrel.util import get_seq_len
from torch import Tensor

from diffrestorer.baselines.airnet import AirNet
from diffrestorer.baselines.nafnet import NAFNet
from diffrestorer.baselines.promptir import PromptIR
from diffrestorer.baselines.protocol import Baseline
from diffrestorer.baselines.restormer import Restormer
from diffrestorer.models.components import ModelFolderError

Names = Sequence[tuple[str, str]]

_RESTORMER: Names = (
    ("network.embed.", "patch_embed.proj."),
    *((f"network.encoders.{level}.", f"encoder_level{level + 1}.") for level in range(3)),
    ("network.encoders.3.", "latent."),
    *((f"network.downsamples.{i}.0.", f"down{i + 1}_{i + 2}.body.0.") for i in range(3)),
    *((f"network.upsamples.{i}.0.", f"up{4 - i}_{3 - i}.body.0.") for i in range(3)),
    *((f"network.reductions.{i}.", f"reduce_chan_level{3 - i}.") for i in range(2)),
    *((f"network.decoders.{i}.", f"decoder_level{3 - i}.") for i in range(3)),
    ("network.", ""),
    (".attention.qkv_depthwise.", ".attn.qkv_dwconv."),
    (".attention.", ".attn."),
    (".feed_forward.depthwise.", ".ffn.dwconv."),
    (".feed_forward.", ".ffn."),
    (".norm1.", ".norm1.body."),
    (".norm2.", ".norm2.body."),
)
_PROMPTS: Names = tuple(
    (f"network.interactions.{i}.{ours}", f"{theirs}")
    for i in range(3)
    for ours, theirs in (
        ("generation.prompts", f"prompt{3 - i}.prompt_param"),
        ("generation.mixture.", f"prompt{3 - i}.linear_layer."),
        ("generation.convolution.", f"prompt{3 - i}.conv3x3."),
        ("block.", f"noise_level{3 - i}."),
        ("reduce.", f"reduce_noise_level{3 - i}."),
    )
)
_AIRNET: Names = (
    ("key_encoder.", "E.E.encoder_k."),
    ("encoder.", "E.E.encoder_q."),
    ("_q.first.", "_q.E_pre."),
    ("_k.first.", "_k.E_pre."),
    ("_q.body.", "_q.E."),
    ("_k.body.", "_k.E."),
    ("_q.head.", "_q.mlp."),
    ("_k.head.", "_k.mlp."),
    ("groups.", "R.body."),
    *((f".blocks.{i}.", f".body.{i}.") for i in range(5)),
    (".module", ".dgm"),
    (".convolution.offset_and_mask.", ".dcn.conv_offset_mask."),
    (".convolution.", ".dcn."),
    (".transform.scale.", ".sft.conv_gamma."),
    (".transform.shift.", ".sft.conv_beta."),
    *((f"R.body.{i}.conv.", f"R.body.{i}.body.5.") for i in range(5)),
)
_AIRNET_WHOLE = {"head": "R.head.0", "conv": "R.body.5", "tail": "R.tail.0"}
"""Layers of AirNet whose whole name changes, beside parts of others that are named alike."""

CLASSES: dict[str, type[Baseline]] = {
    "airnet": AirNet,
    "nafnet": NAFNet,
    "restormer": Restormer,
    "promptir": PromptIR,
}
"""The methods whose authors' files can be read."""

UNUSED = {
    "promptir": ("chnl_reduce", "reduce_noise_channel_"),
    "airnet": ("E.E.queue",),
}
"""Beginnings of names in the authors' files that their forward pass does not use."""


def authors_name(method: str, name: str) -> str:
    """What the authors call one of our tensors."""
    layer, _, kind = name.rpartition(".")
    if method == "airnet" and layer in _AIRNET_WHOLE:
        return f"{_AIRNET_WHOLE[layer]}.{kind}"
    names = {"nafnet": (("network.", ""),), "restormer": _RESTORMER, "airnet": _AIRNET}
    for ours, theirs in (*_PROMPTS, *_RESTORMER) if method == "promptir" else names[method]:
        name = name.replace(ours, theirs)
    return name


def load_published(method: str, path: Path) -> Baseline:
    """Reads the authors' checkpoint of a method at its published size (NAFNet: any size).

    Raises:
        ModelFolderError: there is no map for the method; the file is no state dict, or another network's: the first
            names that differ are listed.
    """
    if method not in CLASSES:
        raise ModelFolderError(f"{path}: the authors' checkpoints of {method} can't be read here; give a model folder")
    theirs = _state_dict(path)
    model: Baseline = _nafnet_like(theirs, path) if method == "nafnet" else CLASSES[method]()
    state, differing = {}, []
    for name, value in model.state_dict().items():
        own = authors_name(method, name)
        tensor = theirs.get(own)
        if tensor is not None and own.endswith("prompt_param") and tensor.ndim == value.ndim + 1:
            tensor = tensor[0]
        if tensor is None or tensor.shape != value.shape:
            found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}, not {tuple(value.shape)}"
            differing.append(f"{own} ({found})")
        else:
            state[name] = tensor
    wanted = {authors_name(method, name) for name in model.state_dict()}
    unused = UNUSED.get(method, ())
    unexpected = [name for name in theirs if name not in wanted and not name.startswith(unused)]
    differing += [f"{name} (unexpected)" for name in unexpected]
    if differing:
        raise ModelFolderError(f"{path} is not {method}'s: {len(differing)} tensors differ: {', '.join(differing[:5])}")
    model.load_state_dict(state)
    return model.eval()


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, out of whatever the authors wrapped them in."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file, or one with more than weights, fails in many ways
        reason = str(error).splitlines()[0]
        raise ModelFolderError(f"{path} can't be read as weights only: {reason}") from None
    for wrapper in ("params_ema", "params", "state_dict"):
        if isinstance(content, Mapping) and wrapper in content:
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelFolderError(f"{path} holds no state dict")
    return {name.removeprefix("module.").removeprefix("net."): value for name, value in content.items()}


def _nafnet_like(state: Mapping[str, Tensor], path: Path) -> NAFNet:
    """NAFNet of the size that these tensors have."""
    if "intro.weight" not in state:
        raise ModelFolderError(f"{path} is not nafnet's: intro.weight is missing")
    counts = {
        part: [get_seq_len(state, f"{part}.{i}") for i in range(get_seq_len(state, part))]
        for part in ("encoders", "decoders")
    }
    return NAFNet(
        width=state["intro.weight"].shape[0],
        encoder_blocks=counts["encoders"],
        middle_blocks=get_seq_len(state, "middle_blks"),
        decoder_blocks=counts["decoders"],
    )
