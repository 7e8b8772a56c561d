"""The Prompt Processor: CLIP's embedding of the degraded image, split into what it shows and what is wrong with it."""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from diffrestorer.degradations import DEGRADATIONS


@dataclass(frozen=True)
class VisualPrompts:
    """What the model reads off a degraded image.

    Attributes:
        clip_embedding: P_CLIP, the image encoder's embedding.
        semantic_embedding: P_S, the one cross-attention token of the UNet and of the control network.
        degradation_embedding: P_D, which modulates control encoder and decoder.
        degradation_logits: d = C(P_D), in the order of `DEGRADATIONS`.
    """

    clip_embedding: Float[Tensor, "b d"]
    semantic_embedding: Float[Tensor, "b 1 s"]
    degradation_embedding: Float[Tensor, "b g"]
    degradation_logits: Float[Tensor, "b k"]


def _mlp(*dims: int) -> nn.Sequential:
    """Linear layers, each but the last followed by LayerNorm and LeakyReLU."""
    layers: list[nn.Module] = []
    for in_dim, out_dim in zip(dims[:-2], dims[1:-1], strict=True):
        layers += [nn.Linear(in_dim, out_dim), nn.LayerNorm(out_dim), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(dims[-2], dims[-1]))


class PromptProcessor(ModelMixin, ConfigMixin):
    """P_S = B_s(P_CLIP) and P_D = B_d(P_CLIP), with the classifier d = C(P_D).

    Paper: Eq. 2 (section III-B). Three linear layers for B_s, two for B_d, one for C.

    Args:
        clip_dim: width of P_CLIP.
        semantic_dim: width of P_S: the UNet's `cross_attention_dim`.
        hidden_dim: width between the two layers of B_d.
        degradation_dim: width of P_D.
        semantic: False hands P_CLIP on as the token (ablation `no_semantic`; needs `clip_dim == semantic_dim`).
        degradation: False makes P_D a zero vector, in training and test (ablation `no_degradation`).
    """

    @register_to_config
    def __init__(
        self,
        clip_dim: int = 768,
        semantic_dim: int = 768,
        hidden_dim: int = 512,
        degradation_dim: int = 256,
        semantic: bool = True,
        degradation: bool = True,
    ) -> None:
        super().__init__()
        if not semantic and clip_dim != semantic_dim:
            raise ValueError(
                f"without a semantic branch the CLIP embedding is the token: clip_dim ({clip_dim}) must equal "
                f"semantic_dim ({semantic_dim})"
            )
        self.semantic_branch = _mlp(clip_dim, clip_dim, clip_dim, semantic_dim) if semantic else nn.Identity()
        self.degradation_branch = _mlp(clip_dim, hidden_dim, degradation_dim)
        self.classifier = nn.Linear(degradation_dim, len(DEGRADATIONS))

    def forward(self, clip_embedding: Float[Tensor, "b d"]) -> VisualPrompts:
        degradation_embedding = self.degradation_branch(clip_embedding)
        if not self.config.degradation:
            degradation_embedding = torch.zeros_like(degradation_embedding)
        return VisualPrompts(
            clip_embedding=clip_embedding,
            semantic_embedding=self.semantic_branch(clip_embedding)[:, None],
            degradation_embedding=degradation_embedding,
            degradation_logits=self.classifier(degradation_embedding),
        )
