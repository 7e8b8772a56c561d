"""DA-CLIP's controller: a trainable copy of CLIP's image encoder steers the frozen one and names the degradation."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffrestorer.models.backbones import ImageEncoder


def tower_blocks(encoder: ImageEncoder) -> list[tuple[nn.Module, int]]:
    """The blocks that are controlled, and their widths: a ViT's transformer blocks, a timm network's stages."""
    visual: Any = encoder.visual
    if hasattr(visual, "transformer"):
        return [(block, visual.transformer.width) for block in visual.transformer.resblocks]
    return [(visual.trunk.get_submodule(info["module"]), info["num_chs"]) for info in visual.trunk.feature_info]


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
    """Embeddings of what an image shows, as if it were clean, and of what is wrong with it.

    Section 3.1 of DA-CLIP. `clip` is frozen; `control`, a copy of it, puts out the degradation embedding, and its
    blocks are added to those of `clip` through layers that start at zero: at step 0 the content is CLIP's own.
    `class_embeddings` stand for the text embeddings of the degradations' names.
    """

    def __init__(self, clip: ImageEncoder, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(False)
        self.control = copy.deepcopy(clip).requires_grad_(True)
        self.zeros = nn.ModuleList(ZeroProjection(dim) for _, dim in tower_blocks(clip))
        self.class_embeddings = nn.Parameter(torch.randn(num_classes, embed_dim) * embed_dim**-0.5)
        self.train()

    def start_control_at_clip(self) -> None:
        """Copies the frozen encoder's weights, loaded meanwhile, to the controller."""
        self.control.load_state_dict(self.clip.state_dict())

    def train(self, mode: bool = True) -> "ControlledClip":
        """Both towers stay in evaluation mode: statistics of a BatchNorm are CLIP's."""
        super().train(mode)
        self.clip.eval()
        self.control.eval()
        return self

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Content and degradation embeddings of images in [0, 1], each of unit length."""
        outputs: list[Float[Tensor, "b ..."]] = []
        keep = [
            block.register_forward_hook(lambda _, inputs, output: outputs.append(output))
            for block, _ in tower_blocks(self.control)
        ]
        degradation = self.control(images)
        controls = iter([zero(output) for zero, output in zip(self.zeros, outputs, strict=True)])
        add = [
            block.register_forward_hook(lambda _, inputs, output: output + next(controls))
            for block, _ in tower_blocks(self.clip)
        ]
        content = self.clip(images)
        for handle in (*keep, *add):
            handle.remove()
        return F.normalize(content, dim=-1), F.normalize(degradation, dim=-1)
