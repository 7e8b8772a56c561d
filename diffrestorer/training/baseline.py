"""The compared methods' training: a task for each way they learn, and their phases one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffrestorer.baselines.airnet import AirNet, KeyQueue, update_momentum
from diffrestorer.baselines.da_clip.model import DaClip
from diffrestorer.baselines.protocol import Baseline
from diffrestorer.baselines.registry import build_baseline, load_baseline
from diffrestorer.config.classes import model_classes
from diffrestorer.config.schema import BaselineConfig
from diffrestorer.data.counter import counter_normal, counter_rng, to_device
from diffrestorer.data.pairs import PairBatch
from diffrestorer.models.blocks import pad_to_multiple
from diffrestorer.models.components import save_component
from diffrestorer.models.pretrained import load_clip_weights
from diffrestorer.training.loop import train
from diffrestorer.training.losses import psnr_loss
from diffrestorer.training.perceptual import PerceptualLoss
from diffrestorer.training.task import Losses, Task, to_unit

PIXEL_LOSSES: dict[str, Callable[[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]], Float[Tensor, ""]]] = {
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "psnr": psnr_loss,
}
PRETRAINING = "pretraining"
"""Folder of the first phase, below the run's."""

CLIP_LOGIT_SCALE = 100.0
"""What OpenAI's CLIP learned for the temperature of its contrastive loss, inverted."""


class BaselineTask(Task):
    """What the methods share: one model, one optimiser, and what is written and shown."""

    model: Baseline

    def __init__(self, config: BaselineConfig, model: Baseline) -> None:
        super().__init__()
        self.config = config
        self.model = model

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """One Adam or AdamW over what trains."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.config.optimizer]
        first, second = self.config.betas
        settings = self.config.train
        return [cls(parameters, settings.lr, (first, second), weight_decay=settings.weight_decay)]

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """The network: what `evaluate.py --method NAME=DIR` loads."""
        save_component(self.model, folder, dtype)

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """Degraded, restored, clean."""
        return [to_unit(batch.lq), self.restore(batch), to_unit(batch.gt)]

    def restore(self, batch: PairBatch) -> Float[Tensor, "b 3 h w"]:
        """As `evaluate.py` restores."""
        was_training = self.model.training
        self.model.eval()  # statistics of a BatchNorm are not this batch's to change
        restored = self.model.restore(to_unit(batch.lq), self.config.seed)
        self.model.train(was_training)
        return restored


class RegressionTask(BaselineTask):
    """NAFNet, Restormer, PromptIR, TransWeather: a pixel loss, and a perceptual one where the method has it."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config, build_baseline(config.method, config.network))
        network = config.perceptual if config.lambda_perceptual else "none"
        self.perceptual = PerceptualLoss(network, config.perceptual_weights)

    def forward(self, batch: PairBatch) -> Losses:
        lq, gt = to_unit(batch.lq), to_unit(batch.gt)
        height, width = lq.shape[-2:]
        restored = self.model(pad_to_multiple(lq, self.model.multiple))[..., :height, :width]
        pixel = PIXEL_LOSSES[self.config.loss](restored, gt)
        perceptual = self.perceptual(restored, gt)
        return Losses(pixel + self.config.lambda_perceptual * perceptual, {"pixel": pixel, "perceptual": perceptual})


class AirNetEncoderTask(BaselineTask):
    """AirNet's first phase: two crops of an image share their degradation, those of other images do not.

    Its BatchNorm, as that of the second phase, takes its statistics from the batch of a process: these two tasks alone
    depend on how a batch is split.
    """

    model: AirNet
    averaged = ("model.key_encoder",)

    def __init__(self, config: BaselineConfig) -> None:
        model = build_baseline(config.method, config.network)
        assert isinstance(model, AirNet)
        super().__init__(config, model)
        if config.patch_size > config.data.size:
            raise ValueError(f"patch_size={config.patch_size} must fit into the crop, data.size={config.data.size}")
        if config.queue_length % config.train.global_batch_size:
            raise ValueError(
                f"queue_length={config.queue_length} must be a multiple of train.global_batch_size="
                f"{config.train.global_batch_size}"
            )
        self.queue = KeyQueue(config.queue_length, model.config.embedding_dim)
        self._choose_what_trains()

    def _choose_what_trains(self) -> None:
        self.model.requires_grad_(False)
        self.model.encoder.requires_grad_(True)

    def _crops(self, batch: PairBatch, images: Float[Tensor, "b 3 h w"], view: str) -> Float[Tensor, "b 3 p p"]:
        """One crop of each image, where the counter says."""
        size = self.config.patch_size
        room = images.shape[-1] - size + 1
        crops = []
        for image, position in zip(images, batch.positions, strict=True):
            top, left = counter_rng(self.config.seed, view, batch.step, position).integers(room, size=2)
            crops.append(image[:, top : top + size, left : left + size])
        return torch.stack(crops)

    def _contrast(self, guidance: Float[Tensor, "b c p p"], key_crops: Float[Tensor, "b 3 p p"]) -> Float[Tensor, ""]:
        """InfoNCE of the query crops against their keys and the queue."""
        query = self.model.encoder.embed(guidance)
        with torch.no_grad():
            update_momentum(self.model.key_encoder, self.model.encoder, self.config.momentum)
            key_encoder = self.model.key_encoder
            keys = key_encoder.embed(key_encoder.guidance(key_crops))
        logits = self.queue.logits(query, keys, self.config.temperature)
        self.queue.push(gather(keys))
        return F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.int64, device=logits.device))

    def forward(self, batch: PairBatch) -> Losses:
        lq = to_unit(batch.lq)
        guidance = self.model.encoder.guidance(self._crops(batch, lq, "query"))
        contrastive = self._contrast(guidance, self._crops(batch, lq, "key"))
        return Losses(contrastive, {"contrastive": contrastive})


class AirNetTask(AirNetEncoderTask):
    """AirNet's second phase: all of it, L1 + lambda times the contrastive term, from the first phase's encoder."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        if config.pretraining.max_steps:
            self.model.load_state_dict(_pretrained(config).state_dict())

    def _choose_what_trains(self) -> None:
        self.model.requires_grad_(True)
        self.model.key_encoder.requires_grad_(False)

    def forward(self, batch: PairBatch) -> Losses:
        lq, gt = to_unit(batch.lq), to_unit(batch.gt)
        query_crops = self._crops(batch, lq, "query")
        guidance = self.model.encoder.guidance(query_crops)
        contrastive = self._contrast(guidance, self._crops(batch, lq, "key"))
        restored = self.model.restore_guided(query_crops, guidance)
        pixel = PIXEL_LOSSES[self.config.loss](restored, self._crops(batch, gt, "query"))
        total = pixel + self.config.lambda_contrastive * contrastive
        return Losses(total, {"pixel": pixel, "contrastive": contrastive})


class ControllerTask(BaselineTask):
    """DA-CLIP's first phase: from a degraded image, the clean image's CLIP embedding and the degradation's class.

    Each content embedding must find its clean image among those of the whole global batch, which need no gradient: so
    the loss does not depend on how the batch is split.
    """

    model: DaClip

    def __init__(self, config: BaselineConfig) -> None:
        arguments = {**config.network, "num_classes": len(model_classes(config.data))}
        model = build_baseline(config.method, arguments)
        assert isinstance(model, DaClip)
        super().__init__(config, model)
        if config.clip not in (None, "none"):
            load_clip_weights(model.controller.clip, "ViT-B-32-quickgelu", config.clip, "clip")
        model.controller.start_control_at_clip()
        model.unet.requires_grad_(False)

    def forward(self, batch: PairBatch) -> Losses:
        controller = self.model.controller
        content, degradation = controller(to_unit(batch.lq))
        with torch.no_grad():
            wanted = gather(F.normalize(controller.clip(to_unit(batch.gt)), dim=-1))
            own_positions = to_device(np.array(batch.positions), content.device)
            positions = gather(own_positions)
        own = (own_positions[:, None] == positions).int().argmax(dim=1)
        content_loss = F.cross_entropy(CLIP_LOGIT_SCALE * content @ wanted.T, own)
        classes = F.normalize(controller.class_embeddings, dim=-1)
        degradation_loss = F.cross_entropy(CLIP_LOGIT_SCALE * degradation @ classes.T, batch.label)
        return Losses(content_loss + degradation_loss, {"content": content_loss, "degradation": degradation_loss})


class IRSDETask(BaselineTask):
    """DA-CLIP's second phase: the U-Net learns the best reverse step of IR-SDE, told by the frozen controller.

    Source: Eq. 14 of IR-SDE, L1 instead of its square as in its experiments. The step is the sampler's: Euler's and the
    posterior's agree only where steps are small.
    """

    model: DaClip

    def __init__(self, config: BaselineConfig) -> None:
        model = _pretrained(config) if config.pretraining.max_steps else build_baseline(config.method, config.network)
        assert isinstance(model, DaClip)
        super().__init__(config, model.train())
        model.requires_grad_(False)
        model.unet.requires_grad_(True)

    def forward(self, batch: PairBatch) -> Losses:
        lq, gt, sde, seed = to_unit(batch.lq), to_unit(batch.gt), self.model.sde, self.config.seed
        with torch.no_grad():
            content, degradation = self.model.controller(lq)
        drawn = [int(counter_rng(seed, "timestep", batch.step, p).integers(sde.num_steps)) + 1 for p in batch.positions]
        steps = to_device(np.array(drawn), lq.device)
        noise = counter_normal(lq.shape[1:], seed, "noise", batch.step, batch.positions, lq.device)
        state = sde.mean(gt, lq, steps) + sde.deviation(steps, lq) * noise
        predicted = self.model.unet(state, lq, steps, content, degradation)
        best = sde.previous_mean(state, gt, lq, steps)
        matching = F.l1_loss(self.model.step_mean(state, lq, predicted, steps), best)
        return Losses(matching, {"matching": matching})


def _pretrained(config: BaselineConfig) -> Baseline:
    return load_baseline(Path(config.output_dir) / PRETRAINING, config.method)


FIRST_PHASES: dict[str, type[BaselineTask]] = {"airnet": AirNetEncoderTask, "da_clip": ControllerTask}
PHASES: dict[str, type[BaselineTask]] = {"airnet": AirNetTask, "da_clip": IRSDETask}
"""Tasks by method; the others are a `RegressionTask`."""


def train_baseline(config: BaselineConfig) -> None:
    """Trains a method; a first phase goes to `output_dir/pretraining/`, everything else straight to `output_dir`.

    Raises:
        ValueError: as `train`; `pretraining.max_steps` is set for a method without a first phase.
    """
    output_dir = Path(config.output_dir)
    if config.pretraining.max_steps:
        if config.method not in FIRST_PHASES:
            raise ValueError(f"pretraining.max_steps: {config.method} has no first phase; {', '.join(FIRST_PHASES)} do")
        changed = {name: value for name, value in vars(config.pretraining).items() if value is not None}
        first = replace(config, train=replace(config.train, **changed))
        train(FIRST_PHASES[config.method], first, output_dir / PRETRAINING)
    train(PHASES.get(config.method, RegressionTask), config, output_dir)
