"""DA-CLIP's controller: a trainable copy of CLIP's image encoder that steers the frozen one."""

import copy
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize

from diffrestorer.models.backbones import ImageEncoder

Images = Float[Tensor, "b 3 h w"]
Embedding = Float[Tensor, "b d"]

MAX_LOGIT_SCALE = math.log(100)
"""Logarithm of the inverse temperature that OpenAI's and LAION's CLIP ended with; CLIP lets it grow no further."""


def tower_blocks(encoder: ImageEncoder) -> list[tuple[nn.Module, int]]:
    """Return the controlled blocks and their widths: a ViT's transformer blocks, or a timm network's stages."""
    visual: Any = encoder.visual
    if hasattr(visual, "transformer"):
        return [(block, visual.transformer.width) for block in visual.transformer.resblocks]
    return [
        (visual.trunk.get_submodule(info["module"]), info["num_chs"])
        for info in visual.trunk.feature_info
    ]


def clip_view(images: Images, side: int) -> Float[Tensor, "b 3 _ _"]:
    """Return the square that CLIP sees: the short side resized to `side`, then the centre.

    Square images are returned as they are, for the encoder to resize.
    """
    if images.shape[-2] == images.shape[-1]:
        return images
    resized = resize(images, [side], InterpolationMode.BICUBIC, antialias=True)
    return center_crop(resized, [side, side]).clamp(0, 1)


class ZeroProjection(nn.Module):
    """A linear layer over channels that starts at zero, for tokens (b n c) and for feature maps (b c h w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        if features.ndim == 3:
            return self.linear(features)
        return self.linear(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ControlledClip(nn.Module):
    """CLIP's embedding of a degraded image, as if it were clean, and an embedding of its degradation.

    `clip` is frozen. `control`, a copy of it, gives the degradation embedding, and its blocks are added to those of
    `clip` through layers that start at zero: at step 0 the content embedding is CLIP's own. A ViT's controls are added
    in reverse order, that of the last block to the first, as in the published weights. A timm network's stages differ
    in shape, so that each gets its own.

    `class_embeddings` stand for the text embeddings of the degradations' names, and `logit_scale` is the logarithm of
    the contrastive losses' inverse temperature. Both are for training only.

    Source: section 3.1 of DA-CLIP.
    """

    def __init__(self, clip: ImageEncoder, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(False)
        self.control = copy.deepcopy(clip).requires_grad_(True)
        self.zeros = nn.ModuleList(ZeroProjection(dim) for _, dim in tower_blocks(clip))
        self.class_embeddings = nn.Parameter(torch.randn(num_classes, embed_dim) * embed_dim**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(MAX_LOGIT_SCALE))
        self.reverses = hasattr(clip.visual, "transformer")
        self.train()

    def start_control_at_clip(self) -> None:
        """Copy the frozen encoder's weights, once they are loaded, to the controller."""
        self.control.load_state_dict(self.clip.state_dict())

    def train(self, mode: bool = True) -> "ControlledClip":
        """Keep both towers in evaluation mode: the statistics of a BatchNorm are CLIP's."""
        super().train(mode)
        self.clip.eval()
        self.control.eval()
        return self

    def clip_embedding(self, images: Images) -> Embedding:
        """Return the frozen encoder's own embedding of images in [0, 1], not normalised."""
        return self.clip(clip_view(images, self.clip.image_size))

    def forward(self, images: Images) -> tuple[Embedding, Embedding]:
        """Return content and degradation embeddings of images in [0, 1] and of any size, not normalised."""
        view = clip_view(images, self.clip.image_size)

        # The controlling copy comes first: its blocks' outputs are the controls.
        outputs: list[Float[Tensor, "b ..."]] = []
        keep = [
            block.register_forward_hook(lambda _, inputs, output: outputs.append(output))
            for block, _ in tower_blocks(self.control)
        ]
        degradation = self.control(view)
        controls = [zero(output) for zero, output in zip(self.zeros, outputs, strict=True)]

        # Each control is added behind a block of the frozen encoder.
        left = iter(reversed(controls) if self.reverses else controls)
        add = [
            block.register_forward_hook(lambda _, inputs, output: output + next(left))
            for block, _ in tower_blocks(self.clip)
        ]
        content = self.clip(view)
        for handle in (*keep, *add):
            handle.remove()
        return content, degradation
