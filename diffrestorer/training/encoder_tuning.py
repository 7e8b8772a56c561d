"""The image encoder of mini, tuned to tell degradations apart, in a base or in a finished model."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diffrestorer.config.classes import model_classes
from diffrestorer.config.degradations import CLEAN
from diffrestorer.config.schema import BaseConfig
from diffrestorer.data.pairs import PairBatch
from diffrestorer.inference.model_folder import save_model_folder
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.components import build_component, load_component, save_component
from diffrestorer.models.mini import StageStatistics
from diffrestorer.models.prompt_processor import PromptProcessor, VisualPrompts
from diffrestorer.training.finished import load_to_train
from diffrestorer.training.losses import degradation_loss
from diffrestorer.training.stage1 import record_prototypes
from diffrestorer.training.task import Losses, Task, adamw, to_unit

LABEL_SMOOTHING = 0.05
"""Share of the probability that every class gets: of crops that may be several things, none is certain."""

VISIBLE_ERROR = 255**2 / 10**4.2
"""Mean squared error in grey levels below which (42 dB) a degradation counts as `clean`: nobody could tell it."""

NOT_USED = ("conv_head", "bn2", "classifier")
"""Parts of timm's tower behind its last stage, which the statistics do not read."""


class ImageEncoderTask(Task):
    """The tower, its projection and a prompt processor learn by the cross-entropy of the degradation classifier.

    Without `teacher` it is a base's encoder that is saved, alone. With it, encoder and prompt processor are those of a
    finished model, whose other networks must understand what they now say. So P_S and P_D stay near the teacher's:

        L = cross-entropy + lambda_prompts (|P_S - P_S_teacher|^2 + |P_D - P_D_target|^2)

    P_D_target is the teacher's P_D where its classifier is right, and the mean P_D of the true class elsewhere.

    Raises:
        ValueError: the teacher's image encoder is not mini's, or it holds no prototypes.
    """

    def __init__(self, config: BaseConfig) -> None:
        super().__init__()
        self.config = config

        # As items of lists, the teacher and the networks that stay are no part of what trains.
        self._pipeline: list[DiffRestorerPipeline] = []
        self._teacher: list[nn.Module] = []
        if config.teacher is None:
            self.image_encoder = load_component(fitted_folder(config) / "model" / "image_encoder")
            arguments = {**config.model.prompt_processor, "classes": model_classes(config.data)}
            self.prompt_processor = build_component(
                PromptProcessor, arguments, "model.prompt_processor"
            )
        else:
            pipeline = load_to_train(config.teacher)
            _check_teacher(pipeline, config.teacher)
            self._pipeline = [pipeline]
            self.image_encoder, self.prompt_processor = (
                pipeline.image_encoder,
                pipeline.prompt_processor,
            )
            parts = (self.image_encoder, self.prompt_processor)
            self._teacher = [copy.deepcopy(part).requires_grad_(False).eval() for part in parts]
        self._freeze()

    def _freeze(self) -> None:
        """Leave gradients to what the statistics read, the projection and the prompt processor's used branches."""
        self.image_encoder.requires_grad_(False)
        visual = self.image_encoder.visual
        visual.project.requires_grad_(True)
        for name, parameter in visual.tower.named_parameters():
            parameter.requires_grad_(not name.startswith(NOT_USED))
        self.prompt_processor.set_trainable(True)
        self.prompt_processor.semantic_branch.requires_grad_(bool(self._teacher))

    def train(self, mode: bool = True) -> "ImageEncoderTask":
        """Set the prompt processor's mode. The encoder's BatchNorms keep their statistics, so batches may be small."""
        super().train(mode)
        self.image_encoder.eval()
        return self

    def forward(self, batch: PairBatch) -> Losses:
        prompts = self.prompt_processor(self.image_encoder(to_unit(batch.lq)))
        labels = self._labels(batch)
        degradation = degradation_loss(prompts.degradation_logits, labels, LABEL_SMOOTHING)
        imitation = degradation.new_zeros(())
        if self._teacher:
            imitation = self._imitation(prompts, batch, labels)
        parts = {"degradation": degradation, "prompts": imitation}
        return Losses(degradation + self.config.lambda_prompts * imitation, parts)

    def _labels(self, batch: PairBatch) -> Int[Tensor, "b"]:
        """Return the class of each crop: `clean`, if the model has it, for degradations that nobody could see."""
        classes = self.prompt_processor.classes
        if CLEAN not in classes:
            return batch.label
        error = (batch.lq.float() - batch.gt.float()).square().mean(dim=(1, 2, 3))
        return batch.label.masked_fill(error < VISIBLE_ERROR, classes.index(CLEAN))

    def _imitation(
        self, prompts: VisualPrompts, batch: PairBatch, labels: Int[Tensor, "b"]
    ) -> Float[Tensor, ""]:
        """Return how far P_S and P_D are from what the model's other networks have learned to read."""
        encoder, processor = (part.to(batch.lq.device) for part in self._teacher)
        assert isinstance(processor, PromptProcessor)
        with torch.no_grad():
            told = processor(encoder(to_unit(batch.lq)))
            right = told.degradation_logits.argmax(dim=-1) == labels
            known = processor.class_prototypes[labels]
            target = torch.where(right[:, None], told.degradation_embedding, known)
        semantic = F.mse_loss(prompts.semantic_embedding.float(), told.semantic_embedding.float())
        return semantic + F.mse_loss(prompts.degradation_embedding.float(), target.float())

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return one AdamW."""
        return [adamw([p for p in self.parameters() if p.requires_grad], self.config.train)]

    def conclude(self) -> None:
        """Measure the classes' prototypes of a finished model again."""
        for pipeline in self._pipeline:
            record_prototypes(pipeline.restorer, self.config, self._labels)

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """Save the image encoder, or with a teacher the whole model."""
        for pipeline in self._pipeline:
            save_model_folder(pipeline.restorer, pipeline.scheduler, folder, dtype)
        if not self._pipeline:
            save_component(self.image_encoder, folder / "image_encoder", dtype)

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """Return degraded and clean crops."""
        return [to_unit(batch.lq), to_unit(batch.gt)]


def fitted_folder(config: BaseConfig) -> Path:
    """Return where the image encoder that a base's tuning begins with is kept: ImageNet's, its projection fitted."""
    return Path(config.output_dir) / "image_encoder_fitted"


def _check_teacher(pipeline: DiffRestorerPipeline, name: str) -> None:
    """Refuse a model whose image encoder is not mini's, or whose classes have no mean P_D."""
    if not isinstance(pipeline.image_encoder.visual, StageStatistics):
        raise ValueError(f"teacher={name} has another image encoder than mini's, which alone is tuned")
    for degradation in pipeline.classes:
        pipeline.prompt_processor.prototype(degradation)
