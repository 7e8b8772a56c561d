"""AirNet's two phases: its encoder learns by contrast, then the whole network."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import gather
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from diffrestorer.baselines.airnet import AirNet
from diffrestorer.baselines.moco import KeyQueue, update_momentum
from diffrestorer.baselines.registry import build_baseline
from diffrestorer.config.schema import BaselineConfig
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.pairs import PairBatch
from diffrestorer.models.weight_files import save_tensors
from diffrestorer.training.baseline_task import PIXEL_LOSSES, PRETRAINING, BaselineTask, load_pretrained
from diffrestorer.training.task import Losses, to_unit

Images = Float[Tensor, "b 3 h w"]
Crops = Float[Tensor, "b 3 p p"]
Scalar = Float[Tensor, ""]

CONTRAST = "contrast.safetensors"
"""File in the model folder of the first phase: the queue and the optimiser's state, for the second phase."""


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
            raise ValueError(
                f"patch_size={config.patch_size} must fit into the crop, data.size={config.data.size}"
            )
        if config.patch_size > config.window_size:
            raise ValueError(
                f"patch_size={config.patch_size} must fit into the window, window_size={config.window_size}"
            )
        if config.queue_length % config.train.global_batch_size:
            raise ValueError(
                f"queue_length={config.queue_length} must be a multiple of train.global_batch_size="
                f"{config.train.global_batch_size}"
            )
        if config.train.hardware.shard_optimizer:
            raise ValueError(
                "train.hardware.shard_optimizer=true is not for AirNet, whose first phase hands its optimiser's state "
                "to the second: leave it out"
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

    def save_model(
        self,
        folder: Path,
        dtype: torch.dtype,
    ) -> None:
        """Write the network, and beside it what the second phase goes on with."""
        super().save_model(folder, dtype)
        assert self._optimizer is not None, "the loop has asked for it"
        tensors = {f"queue.{name}": value for name, value in self.queue.state_dict().items()}
        for name, parameter in self.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        save_tensors(tensors, folder / CONTRAST)

    def crops(
        self,
        batch: PairBatch,
        images: Images,
        view: str,
    ) -> Crops:
        """Return one crop of each image, drawn by counter. `view` names the stream of draws.

        All crops of an image come from one window, which lies anywhere in it.
        """
        seed, size, side = self.config.seed, self.config.patch_size, images.shape[-1]
        window = min(self.config.window_size, side)
        crops = []
        for image, position in zip(images, batch.positions, strict=True):
            corner = counter_rng(seed, "window", batch.step, position).integers(
                side - window + 1, size=2
            )
            inside = counter_rng(seed, view, batch.step, position).integers(window - size + 1, size=2)
            top, left = corner + inside
            crops.append(image[:, top : top + size, left : left + size])
        return torch.stack(crops)

    def _contrast(self, guidance: Float[Tensor, "b c p p"], key_crops: Crops) -> Scalar:
        """Return InfoNCE of the query crops against their keys and the queue.

        Only training moves the momentum copy and the queue. Validation leaves both as they are.
        """
        query = self.model.encoder.embed(guidance)

        # Keys come from the momentum copy, without a gradient.
        key_encoder = self.model.key_encoder
        with torch.no_grad():
            if self.training:
                update_momentum(key_encoder, self.model.encoder, self.config.momentum)
            keys = key_encoder.embed(key_encoder.guidance(key_crops))

        # The positive is in column 0. Keys of all processes join the queue.
        logits = self.queue.logits(query, keys, self.config.temperature)
        if self.training:
            self.queue.push(gather(keys))
        return F.cross_entropy(
            logits.float(), torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        )

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
            self.model.load_state_dict(load_pretrained(config).state_dict())
            path = Path(config.output_dir) / PRETRAINING / "model" / CONTRAST
            if not path.is_file():
                raise ValueError(
                    f"{path} is missing: remove {path.parent.parent} and train the first phase again"
                )
            self.carried = load_file(path)
            self.queue.load_state_dict(
                {name: self.carried[f"queue.{name}"] for name in ("keys", "position")}
            )

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
                moments = {
                    key: value.to(parameter.device) for key, value in state.items() if key != "step"
                }
                optimizer.state[parameter] = {**state, **moments}
        return [optimizer]

    def save_model(
        self,
        folder: Path,
        dtype: torch.dtype,
    ) -> None:
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
