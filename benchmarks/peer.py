"""diffusers' own ControlNet pipeline around a restorer's networks: what ours is compared with."""

import copy

import torch
from diffusers import StableDiffusionControlNetPipeline, UniPCMultistepScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

from diffrestorer.models.restorer import Restorer


class Embedding(nn.Module):
    """Our control encoder where a ControlNet has its image embedding: run at every step, as diffusers does.

    Attributes:
        degradation_embedding: P_D of the images that come next, (b, d).
    """

    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        self.restorer = [restorer]  # not a submodule
        self.degradation_embedding = torch.zeros(1, restorer.control_encoder.config.degradation_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the control features of images in [0, 1], as the control network takes them."""
        restorer = self.restorer[0]
        return restorer.control_network.enter(
            restorer.control_encoder(images, self.degradation_embedding)
        )


class Peer:
    """`StableDiffusionControlNetPipeline` with a restorer's VAE, UNet and control network, SDPA, no guidance.

    Args:
        restorer: VAE and UNet are used as they are and belong to this peer; the control network is copied.
        scheduler: UniPC, as the product's.
    """

    def __init__(self, restorer: Restorer, scheduler: UniPCMultistepScheduler) -> None:
        self.restorer = restorer
        self.embedding = Embedding(restorer)
        controlnet = copy.deepcopy(restorer.control_network)
        controlnet.controlnet_cond_embedding = self.embedding
        self.pipe = StableDiffusionControlNetPipeline(
            vae=restorer.vae,
            text_encoder=None,
            tokenizer=None,
            unet=restorer.unet,
            controlnet=controlnet.eval(),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.pipe.set_progress_bar_config(disable=True)
        for network in (self.pipe.unet, self.pipe.controlnet):
            network.set_attn_processor(
                AttnProcessor2_0()
            )  # diffusers' own, where ours takes a shortcut

    @torch.no_grad()
    def read_prompts(self, images: torch.Tensor) -> torch.Tensor:
        """Set P_D for these images; return P_S, their one token, (b, 1, s)."""
        prompts = self.restorer.read_prompts(images)
        self.embedding.degradation_embedding = prompts.degradation_embedding
        return prompts.semantic_embedding

    def run(
        self,
        token: torch.Tensor,
        images: torch.Tensor,
        seed: int,
        steps: int,
        output_type: str = "latent",
    ) -> torch.Tensor:
        """Return latents of restored images, or with `output_type="pt"` the images in [0, 1]."""
        return self.pipe(
            image=images,
            prompt_embeds=token,
            guidance_scale=1.0,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type=output_type,
        ).images
