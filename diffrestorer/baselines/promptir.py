"""PromptIR: Restormer's layout with learned prompts in its decoder. Potlapalli et al., NeurIPS 2023, arXiv 2306.13090.

The authors' network has six 1x1 convolutions that its forward pass never uses (0.22 M of 35.59 M parameters). They are
left out here.
"""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffrestorer.baselines.restormer import RestormerLike, RestormerNetwork, TransformerBlock

Features = Float[Tensor, "b c h w"]


class PromptGeneration(nn.Module):
    """A prompt for the features: a mixture of learned prompts, resized to the features' size.

    Source: section 3.1.1 of PromptIR (PGM).

    Args:
        feature_dim: channels of the features, which choose the mixture.
        prompt_dim, prompt_size: channels and side of the learned prompts.
        num_prompts: number of learned prompts.
    """

    def __init__(self, feature_dim: int, prompt_dim: int, prompt_size: int, num_prompts: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.rand(num_prompts, prompt_dim, prompt_size, prompt_size))
        self.mixture = nn.Linear(feature_dim, num_prompts)
        self.convolution = nn.Conv2d(prompt_dim, prompt_dim, 3, padding=1, bias=False)

    def forward(self, features: Features) -> Float[Tensor, "b p h w"]:
        weights = self.mixture(features.mean(dim=(2, 3))).softmax(dim=-1)
        prompt = torch.einsum("bn,nphw->bphw", weights, self.prompts)
        return self.convolution(F.interpolate(prompt, features.shape[-2:], mode="bilinear"))


class PromptInteraction(nn.Module):
    """A transformer block over the features and their prompt, and a reduction of its channels.

    Source: section 3.1.2 of PromptIR (PIM).
    """

    def __init__(
        self,
        generation: PromptGeneration,
        feature_dim: int,
        prompt_dim: int,
        out_dim: int,
        num_heads: int,
        expansion: float,
    ) -> None:
        super().__init__()
        self.generation = generation
        self.block = TransformerBlock(feature_dim + prompt_dim, num_heads, expansion)
        self.reduce = nn.Conv2d(feature_dim + prompt_dim, out_dim, 1, bias=False)

    def forward(self, features: Features) -> Float[Tensor, "b c2 h w"]:
        return self.reduce(self.block(torch.cat([features, self.generation(features)], dim=1)))


class PromptIR(RestormerLike):
    """PromptIR; the defaults are the paper's.

    Args:
        dim, num_blocks, num_heads, num_refinement_blocks, expansion: see `RestormerNetwork`.
        num_prompts: learned prompts of each prompt block; 0 for no prompt blocks, which is plain Restormer.
        prompt_dims, prompt_sizes: channels and sides of the prompts, the lowest size of the decoder first.
        prompt_heads: attention heads of the blocks that join prompts and features.
    """

    authors_names = (
        *(
            (f"network.interactions.{i}.generation.prompts", f"prompt{3 - i}.prompt_param")
            for i in range(3)
        ),
        *(
            (f"network.interactions.{i}.generation.mixture.", f"prompt{3 - i}.linear_layer.")
            for i in range(3)
        ),
        *(
            (f"network.interactions.{i}.generation.convolution.", f"prompt{3 - i}.conv3x3.")
            for i in range(3)
        ),
        *((f"network.interactions.{i}.block.", f"noise_level{3 - i}.") for i in range(3)),
        *((f"network.interactions.{i}.reduce.", f"reduce_noise_level{3 - i}.") for i in range(3)),
        *RestormerLike.authors_names,
    )
    authors_unused = ("chnl_reduce", "reduce_noise_channel_")

    @register_to_config
    def __init__(
        self,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        num_refinement_blocks: int = 4,
        expansion: float = 2.66,
        num_prompts: int = 5,
        prompt_dims: Sequence[int] = (320, 128, 64),
        prompt_sizes: Sequence[int] = (16, 32, 64),
        prompt_heads: int = 4,
    ) -> None:
        super().__init__()
        num_doublings = len(num_blocks) - 1
        if num_prompts and not len(prompt_dims) == len(prompt_sizes) == num_doublings:
            raise ValueError(
                "prompt_dims and prompt_sizes need one entry for each upsampling of the decoder"
            )

        # One prompt block before each upsampling. The authors halve the lowest features here already.
        interactions: list[PromptInteraction] = []
        out_dims: list[int] = []
        for i in range(num_doublings if num_prompts else 0):
            feature_dim = dim * 2 ** (num_doublings - i)
            out_dims.append(feature_dim if i else feature_dim // 2)
            generation = PromptGeneration(feature_dim, prompt_dims[i], prompt_sizes[i], num_prompts)
            interactions.append(
                PromptInteraction(
                    generation, feature_dim, prompt_dims[i], out_dims[i], prompt_heads, expansion
                )
            )
        self.network = RestormerNetwork(
            dim, num_blocks, num_heads, num_refinement_blocks, expansion, interactions, out_dims
        )
