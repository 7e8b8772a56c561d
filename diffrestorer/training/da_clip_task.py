"""DA-CLIP's two phases: the controller learns content and degradation, then the U-Net learns to restore."""

from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffrestorer.baselines.da_clip.clip_weights import load_clip
from diffrestorer.baselines.da_clip.controller import MAX_LOGIT_SCALE
from diffrestorer.baselines.da_clip.model import DaClip
from diffrestorer.baselines.registry import build_baseline
from diffrestorer.config.classes import model_classes
from diffrestorer.config.schema import BaselineConfig
from diffrestorer.data.counter import counter_normal, counter_rng, to_device
from diffrestorer.data.pairs import PairBatch
from diffrestorer.training.baseline_task import BaselineTask, load_pretrained
from diffrestorer.training.task import Losses, to_unit


class ControllerTask(BaselineTask):
    """DA-CLIP's first phase: from a degraded image, the clean image's CLIP embedding and the degradation's class.

    Each content embedding must find its clean image among those of the whole global batch. These need no gradient, so
    the loss does not depend on how the processes share the batch. Validation scores each batch by itself: there, the
    candidates are the batch's own clean images. Adam has CLIP's betas and epsilon.

    Raises:
        ValueError: a process would take its share in several micro batches.
    """

    model: DaClip
    eps = 1e-6

    def __init__(self, config: BaselineConfig) -> None:
        arguments = {**config.network, "num_classes": len(model_classes(config.data))}
        model = build_baseline(config.method, arguments)
        assert isinstance(model, DaClip)
        super().__init__(config, model)
        _check_whole_batch(config)
        self.betas = (0.9, 0.98)
        if config.clip not in (None, "none"):
            load_clip(model.controller.clip, config.clip)
        model.controller.start_control_at_clip()
        model.unet.requires_grad_(False)

    def _groups(self) -> list[dict[str, Any]]:
        """Return matrices, and apart from them biases, norms and the logit scale, which do not decay."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if parameter.ndim > 1]
        others = [parameter for parameter in trained if parameter.ndim < 2]
        return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]

    def _logit_scale(self) -> Float[Tensor, ""]:
        """Return the logarithm of the inverse temperature, within CLIP's bounds.

        CLIP bounds the parameter after every step, which is before the next one. Only training changes it.
        """
        logit_scale = self.model.controller.logit_scale
        if not self.training:
            return logit_scale.clamp(0, MAX_LOGIT_SCALE)
        with torch.no_grad():
            logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        return logit_scale

    def forward(self, batch: PairBatch) -> Losses:
        controller = self.model.controller
        scale = self._logit_scale().exp()
        content, degradation = (
            F.normalize(embedding, dim=-1) for embedding in controller(to_unit(batch.lq))
        )

        # The candidates are the clean images of all processes in training, and this process's own in validation.
        with torch.no_grad():
            wanted = F.normalize(controller.clip_embedding(to_unit(batch.gt)), dim=-1)
            positions = own_positions = to_device(np.array(batch.positions), content.device)
            if self.training:
                wanted, positions = gather(wanted), gather(positions)
        own = (own_positions[:, None] == positions).int().argmax(dim=1)

        # Both embeddings choose among candidates: clean images, and classes.
        content_loss = F.cross_entropy(scale * content @ wanted.T, own)
        classes = F.normalize(controller.class_embeddings, dim=-1)
        degradation_loss = F.cross_entropy(scale * degradation @ classes.T, batch.label)
        return Losses(
            content_loss + degradation_loss, {"content": content_loss, "degradation": degradation_loss}
        )


def _check_whole_batch(config: BaselineConfig) -> None:
    """Refuse a step of several micro batches, which would compare each image with those of its own micro batch.

    Raises:
        ValueError: naming the key.
    """
    share = config.train.global_batch_size // PartialState().num_processes
    if config.train.micro_batch_size not in (None, share):
        raise ValueError(
            "DA-CLIP's first phase compares all images of a step with each other: leave train.micro_batch_size out"
        )


class IRSDETask(BaselineTask):
    """DA-CLIP's second phase: the U-Net learns the best reverse step of IR-SDE, conditioned by the frozen controller.

    The step is the sampler's: Euler's and the posterior's agree only where steps are small.

    Source: Eq. 14 of IR-SDE, with L1 in place of its square, as in its experiments.
    """

    model: DaClip

    def __init__(self, config: BaselineConfig) -> None:
        model = (
            load_pretrained(config)
            if config.pretraining.max_steps
            else build_baseline(config.method, config.network)
        )
        assert isinstance(model, DaClip)
        super().__init__(config, model.train())
        model.requires_grad_(False)
        model.unet.requires_grad_(True)

    def forward(self, batch: PairBatch) -> Losses:
        lq, gt, sde, seed = to_unit(batch.lq), to_unit(batch.gt), self.model.sde, self.config.seed
        with torch.no_grad():
            content, degradation = self.model.controller(lq)

        # A step from 1 to T and noise for each image, drawn by counter.
        generators = [
            counter_rng(seed, "timestep", batch.step, position) for position in batch.positions
        ]
        drawn = [int(generator.integers(sde.num_steps)) + 1 for generator in generators]
        steps = to_device(np.array(drawn), lq.device)
        noise = counter_normal(lq.shape[1:], seed, "noise", batch.step, batch.positions, lq.device)

        # The predicted noise leads to a step, which is compared with the best one.
        state = sde.mean(gt, lq, steps) + sde.deviation(steps, lq) * noise
        predicted = self.model.unet(state, lq, steps, content, degradation)
        best = sde.previous_mean(state, gt, lq, steps)
        matching = F.l1_loss(self.model.step_mean(state, lq, predicted, steps), best)
        return Losses(matching, {"matching": matching})
