"""Training of the compared methods: one task per way of learning, and two phases where a method has them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from diffrestorer.baselines.airnet import AirNet, KeyQueue, update_momentum
from diffrestorer.baselines.da_clip.clip_weights import load_clip
from diffrestorer.baselines.da_clip.controller import MAX_LOGIT_SCALE
from diffrestorer.baselines.da_clip.model import DaClip
from diffrestorer.baselines.protocol import Baseline
from diffrestorer.baselines.registry import build_baseline, load_baseline
from diffrestorer.config.classes import model_classes
from diffrestorer.config.schema import BaselineConfig
from diffrestorer.data.counter import counter_normal, counter_rng, to_device
from diffrestorer.data.pairs import PairBatch
from diffrestorer.models.components import save_component
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
"""Folder of the first phase, inside the run's."""

CONTRAST = "contrast.safetensors"
"""File in the model folder of AirNet's first phase: the queue and the optimiser's state, for the second phase."""


class BaselineTask(Task):
    """The part that all methods share: one model, one optimiser, what is saved and shown."""

    model: Baseline

    def __init__(self, config: BaselineConfig, model: Baseline) -> None:
        super().__init__()
        self.config = config
        self.model = model

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return one Adam or AdamW over everything that trains."""
        config, settings = self.config, self.config.train
        cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
        betas = (config.betas[0], config.betas[1])
        return [cls(self._groups(), settings.lr, betas, config.eps, settings.weight_decay)]

    def _groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups of parameters."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the network, which `evaluate.py --method NAME=DIR` loads."""
        save_component(self.model, folder, dtype)

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """Return degraded, restored and clean images."""
        return [to_unit(batch.lq), self.restore(batch), to_unit(batch.gt)]

    def restore(self, batch: PairBatch) -> Float[Tensor, "b 3 h w"]:
        """Restore as `evaluate.py` does."""
        # In evaluation mode, so that this batch does not change the statistics of a BatchNorm.
        was_training = self.model.training
        self.model.eval()
        restored = self.model.restore(to_unit(batch.lq), self.config.seed)
        self.model.train(was_training)
        return restored


class RegressionTask(BaselineTask):
    """NAFNet, Restormer, PromptIR, TransWeather: a pixel loss, and a perceptual loss where the method has one."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config, build_baseline(config.method, config.network))
        network = config.perceptual if config.lambda_perceptual else "none"
        self.perceptual = PerceptualLoss(network, config.perceptual_weights)

    def forward(self, batch: PairBatch) -> Losses:
        lq, gt = to_unit(batch.lq), to_unit(batch.gt)
        height, width = lq.shape[-2:]
        restored = self.model(self.model.pad(lq))[..., :height, :width]
        pixel = PIXEL_LOSSES[self.config.loss](restored, gt)
        perceptual = self.perceptual(restored, gt)
        total = pixel + self.config.lambda_perceptual * perceptual
        return Losses(total, {"pixel": pixel, "perceptual": perceptual})


class AirNetEncoderTask(BaselineTask):
    """AirNet's first phase: two crops of an image share their degradation, crops of other images do not.

    BatchNorm takes its statistics from the batch of a process, here and in the second phase. These two tasks alone
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
        if config.patch_size > config.window_size:
            raise ValueError(
                f"patch_size={config.patch_size} must fit into the window, window_size={config.window_size}"
            )
        if config.queue_length % config.train.global_batch_size:
            raise ValueError(
                f"queue_length={config.queue_length} must be a multiple of train.global_batch_size="
                f"{config.train.global_batch_size}"
            )
        self.queue = KeyQueue(config.queue_length, model.config.embedding_dim)
        self._optimizer: torch.optim.Optimizer | None = None
        self._choose_what_trains()

    def _choose_what_trains(self) -> None:
        self.model.requires_grad_(False)
        self.model.encoder.requires_grad_(True)

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return Adam, and keep it: its state goes on in the second phase."""
        (self._optimizer,) = optimizers = super().optimizers()
        return optimizers

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the network, and beside it what the second phase goes on with."""
        super().save_model(folder, dtype)
        assert self._optimizer is not None, "the loop has asked for it"
        tensors = {f"queue.{name}": value for name, value in self.queue.state_dict().items()}
        for name, parameter in self.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        save_file(tensors, folder / CONTRAST)

    def crops(self, batch: PairBatch, images: Float[Tensor, "b 3 h w"], view: str) -> Float[Tensor, "b 3 p p"]:
        """Return one crop of each image, drawn by counter. `view` names the stream of draws.

        All crops of an image come from one window, which lies anywhere in it.
        """
        seed, size, side = self.config.seed, self.config.patch_size, images.shape[-1]
        window = min(self.config.window_size, side)
        crops = []
        for image, position in zip(images, batch.positions, strict=True):
            corner = counter_rng(seed, "window", batch.step, position).integers(side - window + 1, size=2)
            inside = counter_rng(seed, view, batch.step, position).integers(window - size + 1, size=2)
            top, left = corner + inside
            crops.append(image[:, top : top + size, left : left + size])
        return torch.stack(crops)

    def _contrast(self, guidance: Float[Tensor, "b c p p"], key_crops: Float[Tensor, "b 3 p p"]) -> Float[Tensor, ""]:
        """Return InfoNCE of the query crops against their keys and the queue."""
        query = self.model.encoder.embed(guidance)

        # Keys come from the momentum copy, without a gradient.
        with torch.no_grad():
            update_momentum(self.model.key_encoder, self.model.encoder, self.config.momentum)
            key_encoder = self.model.key_encoder
            keys = key_encoder.embed(key_encoder.guidance(key_crops))

        # The positive is in column 0. Keys of all processes join the queue.
        logits = self.queue.logits(query, keys, self.config.temperature)
        self.queue.push(gather(keys))
        return F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.int64, device=logits.device))

    def forward(self, batch: PairBatch) -> Losses:
        lq = to_unit(batch.lq)
        guidance = self.model.encoder.guidance(self.crops(batch, lq, "query"))
        contrastive = self._contrast(guidance, self.crops(batch, lq, "key"))
        return Losses(contrastive, {"contrastive": contrastive})


class AirNetTask(AirNetEncoderTask):
    """AirNet's second phase: the whole network, L1 plus lambda times the contrastive loss.

    The first phase's encoder, its queue and its optimiser's state go on.
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        self.carried: dict[str, Tensor] = {}
        if config.pretraining.max_steps:
            self.model.load_state_dict(_pretrained(config).state_dict())
            path = Path(config.output_dir) / PRETRAINING / "model" / CONTRAST
            if not path.is_file():
                raise ValueError(f"{path} is missing: remove {path.parent.parent} and train the first phase again")
            self.carried = load_file(path)
            self.queue.load_state_dict({name: self.carried[f"queue.{name}"] for name in ("keys", "position")})

    def _choose_what_trains(self) -> None:
        self.model.requires_grad_(True)
        self.model.key_encoder.requires_grad_(False)

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return Adam with the first phase's state of the encoder."""
        (optimizer,) = super().optimizers()
        for name, parameter in self.named_parameters():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in self.carried]
            if keys:
                # The moments lie where the parameter does, the number of steps stays on the host.
                state = {key: self.carried[f"{key}.{name}"] for key in keys}
                moments = {key: value.to(parameter.device) for key, value in state.items() if key != "step"}
                optimizer.state[parameter] = {**state, **moments}
        return [optimizer]

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the network alone."""
        BaselineTask.save_model(self, folder, dtype)

    def forward(self, batch: PairBatch) -> Losses:
        lq, gt = to_unit(batch.lq), to_unit(batch.gt)

        # The query crop is both contrasted and restored.
        query_crops = self.crops(batch, lq, "query")
        guidance = self.model.encoder.guidance(query_crops)
        contrastive = self._contrast(guidance, self.crops(batch, lq, "key"))
        restored = self.model.restore_guided(query_crops, guidance)
        pixel = PIXEL_LOSSES[self.config.loss](restored, self.crops(batch, gt, "query"))
        total = pixel + self.config.lambda_contrastive * contrastive
        return Losses(total, {"pixel": pixel, "contrastive": contrastive})


class ControllerTask(BaselineTask):
    """DA-CLIP's first phase: from a degraded image, the clean image's CLIP embedding and the degradation's class.

    Each content embedding must find its clean image among those of the whole global batch. These need no gradient, so
    the loss does not depend on how the batch is split.
    """

    model: DaClip

    def __init__(self, config: BaselineConfig) -> None:
        arguments = {**config.network, "num_classes": len(model_classes(config.data))}
        model = build_baseline(config.method, arguments)
        assert isinstance(model, DaClip)
        super().__init__(config, model)
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

    def forward(self, batch: PairBatch) -> Losses:
        controller = self.model.controller

        # CLIP bounds its logit scale after every step, which is before the next one.
        with torch.no_grad():
            controller.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        scale = controller.logit_scale.exp()
        content, degradation = (F.normalize(embedding, dim=-1) for embedding in controller(to_unit(batch.lq)))

        # The clean images of all processes, and which of them are this process's.
        with torch.no_grad():
            wanted = gather(F.normalize(controller.clip_embedding(to_unit(batch.gt)), dim=-1))
            own_positions = to_device(np.array(batch.positions), content.device)
            positions = gather(own_positions)
        own = (own_positions[:, None] == positions).int().argmax(dim=1)

        # Both embeddings choose among candidates: clean images, and classes.
        content_loss = F.cross_entropy(scale * content @ wanted.T, own)
        classes = F.normalize(controller.class_embeddings, dim=-1)
        degradation_loss = F.cross_entropy(scale * degradation @ classes.T, batch.label)
        return Losses(content_loss + degradation_loss, {"content": content_loss, "degradation": degradation_loss})


class IRSDETask(BaselineTask):
    """DA-CLIP's second phase: the U-Net learns the best reverse step of IR-SDE, conditioned by the frozen controller.

    The step is the sampler's: Euler's and the posterior's agree only where steps are small.

    Source: Eq. 14 of IR-SDE, with L1 in place of its square, as in its experiments.
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

        # A step from 1 to T and noise for each image, drawn by counter.
        generators = [counter_rng(seed, "timestep", batch.step, position) for position in batch.positions]
        drawn = [int(generator.integers(sde.num_steps)) + 1 for generator in generators]
        steps = to_device(np.array(drawn), lq.device)
        noise = counter_normal(lq.shape[1:], seed, "noise", batch.step, batch.positions, lq.device)

        # The predicted noise leads to a step, which is compared with the best one.
        state = sde.mean(gt, lq, steps) + sde.deviation(steps, lq) * noise
        predicted = self.model.unet(state, lq, steps, content, degradation)
        best = sde.previous_mean(state, gt, lq, steps)
        matching = F.l1_loss(self.model.step_mean(state, lq, predicted, steps), best)
        return Losses(matching, {"matching": matching})


def _pretrained(config: BaselineConfig) -> Baseline:
    return load_baseline(Path(config.output_dir) / PRETRAINING, config.method)


FIRST_PHASES: dict[str, type[BaselineTask]] = {"airnet": AirNetEncoderTask, "da_clip": ControllerTask}
PHASES: dict[str, type[BaselineTask]] = {"airnet": AirNetTask, "da_clip": IRSDETask}
"""Tasks by method. A method that is not listed is a `RegressionTask`."""


def first_phase(config: BaselineConfig) -> BaselineConfig:
    """Return the configuration of a method's first phase: the second's, where `pretraining` does not differ."""
    changed = {name: value for name, value in vars(config.pretraining).items() if value is not None}
    optimiser = {name: changed.pop(name) for name in ("betas", "eps") if name in changed}
    return replace(config, **optimiser, train=replace(config.train, **changed))


def train_baseline(config: BaselineConfig) -> None:
    """Train a method. A first phase goes to `output_dir/pretraining/`, everything else straight to `output_dir`.

    Raises:
        ValueError: as `train`; `pretraining.max_steps` is set for a method without a first phase.
    """
    output_dir = Path(config.output_dir)
    if config.pretraining.max_steps:
        if config.method not in FIRST_PHASES:
            raise ValueError(f"pretraining.max_steps: {config.method} has no first phase; {', '.join(FIRST_PHASES)} do")
        train(FIRST_PHASES[config.method], first_phase(config), output_dir / PRETRAINING)
    train(PHASES.get(config.method, RegressionTask), config, output_dir)
