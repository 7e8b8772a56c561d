"""The identity of a model: a digest of its weights, and whether it is the ablation that its row claims."""

import hashlib
import json
from typing import Any

import torch

from diffrestorer.evaluation.ablations import ABLATIONS
from diffrestorer.evaluation.methods import Method
from diffrestorer.inference.pipeline import DiffRestorerPipeline


def check_ablation(method: Method, pipe: DiffRestorerPipeline) -> None:
    """Compare a model's config with the ablation that its row claims.

    Raises:
        ValueError: the model was not trained so.
    """
    ablation = ABLATIONS.get(method.base)
    if ablation is None or not ablation.component:
        return
    found = getattr(pipe, ablation.component).config[ablation.key]
    if found != ablation.value:
        raise ValueError(
            f"{method.source} was not trained with ablation={method.base}: its {ablation.component} says "
            f"{ablation.key}={found}; train it: {ablation.command(method.base, 'outputs')}"
        )


def weights_digest(components: dict[str, Any]) -> str:
    """Return the SHA-256 of every component's configuration and weights, wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, component in sorted(components.items()):
        # Diffusers' own notes on a configuration begin with an underscore, and are no part of the model.
        config = dict(component.config)
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        digest.update(f"{name}{json.dumps(config, sort_keys=True, default=str)}".encode())

        # Weights by name, type, shape and bytes.
        if isinstance(component, torch.nn.Module):
            for key, value in sorted(component.state_dict().items()):
                digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
                flat = value.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
