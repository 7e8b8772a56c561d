"""The Prompt Processor (section III-B): CLIP's embedding, split into a semantic and a degradation embedding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffrestorer.config.degradations import CLEAN, DEGRADATIONS, check_class_names, nearest


@dataclass(frozen=True)
class VisualPrompts:
    """The embeddings of a degraded image that steer the model.

    Attributes:
        clip_embedding: P_CLIP, the image encoder's embedding.
        semantic_embedding: P_S, the one cross-attention token of the UNet and of the control network.
        degradation_embedding: P_D, which modulates control encoder and decoder.
        degradation_logits: d = C(P_D), in the order of the model's classes.
    """

    clip_embedding: Float[Tensor, "b d"]
    semantic_embedding: Float[Tensor, "b 1 s"]
    degradation_embedding: Float[Tensor, "b g"]
    degradation_logits: Float[Tensor, "b k"]

    @property
    def probabilities(self) -> Float[Tensor, "b k"]:
        """Probability of each class, in float32."""
        return self.degradation_logits.float().softmax(dim=-1)


def _mlp(*dims: int) -> nn.Sequential:
    """Return linear layers of these widths, each but the last followed by LayerNorm and LeakyReLU."""
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
        semantic: False makes P_CLIP itself the token (ablation `no_semantic`; needs `clip_dim == semantic_dim`).
        degradation: False makes P_D a zero vector, in training and test (ablation `no_degradation`).
        prototypes: whether the weights hold each class's mean P_D (see `record_prototypes`).
        classes: the names of the classes, in the order of the classifier's outputs; by default the paper's eight.

    Raises:
        ValueError: the widths do not fit, or a class has no valid name.
    """

    class_prototypes: Float[Tensor, "k g"]

    @register_to_config
    def __init__(
        self,
        clip_dim: int = 768,
        semantic_dim: int = 768,
        hidden_dim: int = 512,
        degradation_dim: int = 256,
        semantic: bool = True,
        degradation: bool = True,
        prototypes: bool = False,
        classes: Sequence[str] = DEGRADATIONS,
    ) -> None:
        super().__init__()

        # Refuse what can't work before anything is built.
        check_class_names(classes)
        if set(classes) == {CLEAN}:
            raise ValueError(f"classes names {CLEAN} alone: name a degradation as well")
        if not semantic and clip_dim != semantic_dim:
            raise ValueError(
                f"without a semantic branch the CLIP embedding is the token: clip_dim ({clip_dim}) must equal "
                f"semantic_dim ({semantic_dim})"
            )

        # The two branches, and the classifier on top of one.
        self.semantic_branch = (
            _mlp(clip_dim, clip_dim, clip_dim, semantic_dim) if semantic else nn.Identity()
        )
        self.degradation_branch = _mlp(clip_dim, hidden_dim, degradation_dim)
        self.classifier = nn.Linear(degradation_dim, len(classes))
        if prototypes:
            self.register_buffer("class_prototypes", torch.zeros(len(classes), degradation_dim))

    @property
    def classes(self) -> tuple[str, ...]:
        """The model's classes, in the order of the classifier's outputs."""
        return tuple(self.config.classes)

    def forward(self, clip_embedding: Float[Tensor, "b d"]) -> VisualPrompts:
        clip_embedding = clip_embedding.to(self.dtype)
        degradation_embedding = self.degradation_branch(clip_embedding)
        if not self.config.degradation:
            degradation_embedding = torch.zeros_like(degradation_embedding)
        return VisualPrompts(
            clip_embedding=clip_embedding,
            semantic_embedding=self.semantic_branch(clip_embedding)[:, None],
            degradation_embedding=degradation_embedding,
            degradation_logits=self.classifier(degradation_embedding),
        )

    def set_trainable(self, trainable: bool) -> None:
        """Require gradients, or none. A branch that nothing reads (ablation `no_degradation`) never does.

        Processes that share a step wait for the gradient of every parameter that requires one.
        """
        self.requires_grad_(trainable)
        if not self.config.degradation:
            self.degradation_branch.requires_grad_(False)

    def restrain(self, prompts: VisualPrompts, threshold: float) -> VisualPrompts:
        """Take images without a clear degradation for clean ones: their P_D becomes the mean P_D of clean images.

        Beyond the paper. A model without the class `clean`, or without its prototype, reads every image as it is.

        Args:
            threshold: probability, from 0 to 1, from which a degradation is clear; 0 leaves all prompts as they are.

        Raises:
            ValueError: it is no probability.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be from 0 to 1, not {threshold}")
        if CLEAN not in self.classes or not self.config.prototypes:
            return prompts

        # The probability of the image's most probable degradation.
        clean = self.classes.index(CLEAN)
        probabilities = prompts.probabilities
        degraded = torch.cat([probabilities[:, :clean], probabilities[:, clean + 1 :]], dim=1)
        clear = degraded.amax(dim=1, keepdim=True) >= threshold

        # Decided on the device, so that nothing waits for it. A prototype that was never learned is zero.
        prototype = self.class_prototypes[clean]
        keep = clear | ~prototype.any()
        restrained = torch.where(keep, prompts.degradation_embedding, prototype)
        return replace(prompts, degradation_embedding=restrained)

    def record_prototypes(
        self, clip_embeddings: Float[Tensor, "n d"], labels: Int[Tensor, " n"]
    ) -> None:
        """Store each class's mean P_D, which is used where a caller names the degradation.

        Args:
            clip_embeddings: of example images.
            labels: class indices of the examples. A class without examples keeps its prototype, zero if it has none.
        """
        embeddings = self(clip_embeddings).degradation_embedding
        prototypes = torch.zeros(len(self.classes), embeddings.shape[1], device=embeddings.device)
        if self.config.prototypes:
            prototypes.copy_(self.class_prototypes)
        for label in labels.unique():
            prototypes[label] = embeddings[labels == label].mean(dim=0)
        self.register_to_config(prototypes=True)
        self.register_buffer("class_prototypes", prototypes)

    def prototype(self, degradation: str) -> Float[Tensor, "1 g"]:
        """Return the mean P_D of a class.

        Raises:
            ValueError: the model has no such class, or has not learned its prototype.
        """
        # The class has to be one of the model's.
        classes = self.classes
        if degradation not in classes:
            near = nearest(degradation, classes)
            raise ValueError(
                f"degradation must be one of {', '.join(classes)}, not {degradation!r}{near}"
            )

        # Its prototype is zero where stage 1 saw no example of it.
        row = self.class_prototypes[classes.index(degradation)] if self.config.prototypes else None
        if row is None or not row.any():
            raise ValueError(
                f"this model holds no prototype of {degradation}, so its degradation can't be given: leave it to the "
                "model, or train stage 1 again (it records them when it ends)"
            )
        return row[None]

    def classifier_of(self, other: "PromptProcessor") -> dict[str, Tensor]:
        """Return the classifier's weights with the rows that `other` has of the same classes.

        Classes that only this model has keep the rows they have here.
        """
        weights = {
            f"classifier.{name}": value.clone() for name, value in self.classifier.state_dict().items()
        }
        source = other.classifier.state_dict()
        for index, name in enumerate(self.classes):
            if name in other.classes:
                for key, value in source.items():
                    weights[f"classifier.{key}"][index] = value[other.classes.index(name)]
        return weights
