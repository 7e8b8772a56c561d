"""CLIP's tensors by open_clip's names, from the files of OpenAI, open_clip and transformers."""

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

_TOWERS: dict[str, str] = {"vision_model.": "visual.", "text_model.": ""}
"""A tower's prefix in transformers -> in open_clip."""

_PARTS: dict[str, str] = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.": "ln_pre.",
    "post_layernorm.": "ln_post.",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
"""Parts of names in transformers -> in open_clip."""

_PROJECTIONS: dict[str, str] = {
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
"""Matrices that open_clip keeps transposed."""

_UNUSED = ("input_resolution", "context_length", "vocab_size")
"""Numbers among the tensors of OpenAI's files."""


def open_clip_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return CLIP's tensors by open_clip's names, which are OpenAI's.

    Files of transformers keep query, key and value apart, and their projections transposed. Either tower may be
    missing.
    """
    if not any(name.startswith("vision_model.") for name in tensors):
        return {name: value for name, value in tensors.items() if name not in _UNUSED}

    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name in _PROJECTIONS:
            found[_PROJECTIONS[name]] = value.T.contiguous()
        elif not name.endswith("position_ids"):
            found[_open_clip_name(name)] = value
    return _join_attention(found)


def _open_clip_name(name: str) -> str:
    """Return open_clip's name of a tensor of transformers."""
    for old, new in (*_TOWERS.items(), *_PARTS.items()):
        name = name.replace(old, new, 1)
    return name


def _join_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stack query, key and value of every layer into one matrix, as PyTorch's attention has them."""
    joined: dict[str, Tensor] = {}
    for name, value in tensors.items():
        layer = re.fullmatch(r"(.*)\.self_attn\.q_proj\.(weight|bias)", name)
        if layer:
            prefix, kind = layer.groups()
            joined[f"{prefix}.attn.in_proj_{kind}"] = _stack(tensors, prefix, kind)
        elif ".self_attn." not in name:
            joined[name] = value
    return joined


def _stack(tensors: Mapping[str, Tensor], prefix: str, kind: str) -> Float[Tensor, "..."]:
    """Return one layer's query, key and value, one below the other.

    Raises:
        KeyError: key or value is missing.
    """
    return torch.cat([tensors[f"{prefix}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
