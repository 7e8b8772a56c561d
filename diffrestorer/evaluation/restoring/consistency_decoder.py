"""OpenAI's Consistency Decoder through diffusers, a row of Table V."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import ConsistencyDecoderVAE
from jaxtyping import Float
from torch import Tensor

from diffrestorer.evaluation.restoring.precision import place_network
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.components import WEIGHTS_NAME
from diffrestorer.models.hub_files import find_hub_file


class UnavailableError(ValueError):
    """A method that can't run here; the message becomes the reason in its rows."""


def load_consistency_decoder(source: str, pipe: DiffRestorerPipeline) -> ConsistencyDecoderVAE:
    """Load the decoder on the pipeline's device and in its dtype.

    Args:
        source: a folder or a hub id.
        pipe: the pipeline whose latents it decodes.

    Raises:
        UnavailableError: its weights can't be had, or the model's latents are not Stable Diffusion's.
    """
    try:
        folder = Path(source)
        if not folder.is_dir():
            folder = find_hub_file(source, ["config.json"]).parent
            find_hub_file(source, [WEIGHTS_NAME])
        vae = ConsistencyDecoderVAE.from_pretrained(
            folder, dtype=pipe.dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"no Consistency Decoder at {source!r} ({str(error).splitlines()[0]}): give consistency_decoder=FOLDER "
            "with its config.json and diffusion_pytorch_model.safetensors"
        ) from None
    if vae.config.latent_channels != pipe.vae.config.latent_channels:
        raise UnavailableError(
            f"the Consistency Decoder reads latents of {vae.config.latent_channels} channels, Stable Diffusion's; this "
            f"model's have {pipe.vae.config.latent_channels}"
        )
    place_network(vae, pipe.device)
    return vae.eval()


def decode_consistently(
    vae: ConsistencyDecoderVAE | None,
    latents: Float[Tensor, "b l h8 w8"],
    seeds: Sequence[int],
) -> Float[Tensor, "b 3 h w"]:
    """Decode image by image: the decoder draws noise, and each image has a generator of its own."""
    assert vae is not None
    images = []
    rows = (latents / vae.config.scaling_factor).to(vae.dtype).split(1)
    for row, seed in zip(rows, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        images.append(vae.decode(row, generator=generator).sample / 2 + 0.5)
    return torch.cat(images)
