"""Finished models whose networks train on."""

from pathlib import Path

import torch

from diffrestorer.inference.pipeline import DiffRestorerPipeline


def load_to_train(model: str | Path) -> DiffRestorerPipeline:
    """Load a model folder with its weights in PyTorch's own layout: on CPUs, training channels last corrupts memory.

    Raises:
        ModelFolderError: as `DiffRestorerPipeline.from_pretrained`.
    """
    pipeline: DiffRestorerPipeline = DiffRestorerPipeline.from_pretrained(model)
    pipeline.restorer.to(memory_format=torch.contiguous_format)
    return pipeline
