"""The part of training that the compared methods share, and the task of those that learn by a pixel loss."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffrestorer.baselines.protocol import Baseline
from diffrestorer.baselines.registry import build_baseline, load_baseline
from diffrestorer.config.schema import BaselineConfig
from diffrestorer.data.pairs import PairBatch
from diffrestorer.models.components import save_component
from diffrestorer.training.losses import psnr_loss
from diffrestorer.training.perceptual import PerceptualLoss
from diffrestorer.training.task import Losses, Task, to_unit

Images = Float[Tensor, "b 3 h w"]
Scalar = Float[Tensor, ""]

PIXEL_LOSSES: dict[str, Callable[[Images, Images], Scalar]] = {
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "psnr": psnr_loss,
}
PRETRAINING = "pretraining"
"""Folder of the first phase, inside the run's."""


class BaselineTask(Task):
    """The part that all methods share: one model, one optimiser, what is saved and shown.

    Attributes:
        betas, eps: of Adam.
    """

    model: Baseline
    eps = 1e-8

    def __init__(
        self,
        config: BaselineConfig,
        model: Baseline,
    ) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.betas = (config.betas[0], config.betas[1])

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return one Adam or AdamW over everything that trains."""
        config, settings = self.config, self.config.train
        cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
        return [cls(self._groups(), settings.lr, self.betas, self.eps, settings.weight_decay)]

    def _groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups of parameters."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def save_model(
        self,
        folder: Path,
        dtype: torch.dtype,
    ) -> None:
        """Write the network, which `evaluate.py --method NAME=DIR` loads."""
        save_component(self.model, folder, dtype)

    def sample(self, batch: PairBatch) -> list[Images]:
        """Return degraded, restored and clean images."""
        return [to_unit(batch.lq), self.restore(batch), to_unit(batch.gt)]

    def restore(self, batch: PairBatch) -> Images:
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


def load_pretrained(config: BaselineConfig) -> Baseline:
    """Load the network that the run's first phase ended with."""
    return load_baseline(Path(config.output_dir) / PRETRAINING, config.method)
