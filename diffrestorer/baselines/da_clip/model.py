"""DA-CLIP as one method: the controlled CLIP, the U-Net it conditions, and the sampler of IR-SDE."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor

from diffrestorer.baselines.da_clip.controller import ControlledClip
from diffrestorer.baselines.da_clip.sde import IRSDE
from diffrestorer.baselines.da_clip.unet import DaClipUNet
from diffrestorer.baselines.protocol import Baseline, Pass
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.data.counter import counter_normal
from diffrestorer.models.backbones import ImageEncoder

VIT_B_32 = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}


class DaClip(Baseline):
    """DA-CLIP; the defaults are the paper's.

    Args:
        image_encoder: arguments of `ImageEncoder`, CLIP's; None: OpenAI's ViT-B/32.
        features, multipliers: of the U-Net.
        attention_level: from this level of the U-Net down the content is attended to.
        num_steps, max_sigma: of IR-SDE.
        sampler: `sde` (Euler steps of the reverse-time SDE, the paper's) or `posterior` (x_{t-1} given x_t and the
            predicted x_0, exact for a perfect prediction: it needs fewer steps).
        num_classes: degradations that the controller was taught to tell apart.
    """

    @register_to_config
    def __init__(
        self,
        image_encoder: dict[str, Any] | None = None,
        features: int = 64,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        attention_level: int = 3,
        num_steps: int = 100,
        max_sigma: float = 50.0,
        sampler: str = "sde",
        num_classes: int = len(DEGRADATIONS),
    ) -> None:
        super().__init__()
        if sampler not in ("sde", "posterior"):
            raise ValueError(f"sampler={sampler} is unknown; choose sde or posterior")
        clip = ImageEncoder(**(image_encoder or {"vision_cfg": VIT_B_32, "embed_dim": 512}))
        self.controller = ControlledClip(clip, clip.config.embed_dim, num_classes)
        self.unet = DaClipUNet(features, multipliers, clip.config.embed_dim, attention_level)
        self.sde = IRSDE(num_steps, max_sigma)

    @property
    def multiple(self) -> int:
        """Every level of the U-Net but the last halves the image."""
        return 2 ** (len(self.config.multipliers) - 1)

    def restore_padded(self, lq: Float[Tensor, "b 3 h w"], seed: int, run: Pass) -> Float[Tensor, "b 3 h w"]:
        """Runs the reverse process from the degraded image plus noise.

        CLIP sees the whole image; `run` carries the U-Net over it at every step.
        """
        sde = self.sde
        content, degradation = self.controller(lq)

        def noise(step: int) -> Float[Tensor, "b 3 h w"]:
            drawn = counter_normal(lq.shape[1:], seed, "ir_sde", step, [0], lq.device).to(lq.dtype)
            return drawn.expand(lq.shape)

        state = lq + sde.max_sigma / 255 * noise(sde.num_steps)
        for step in range(sde.num_steps, 0, -1):
            steps = torch.full((len(lq),), step, device=lq.device)
            predict = partial(self._predict, steps=steps, content=content, degradation=degradation)
            mean = self.step_mean(state, lq, run(predict, [state, lq]), steps, clamp=True)
            deviation = sde.previous_deviation if self.config.sampler == "posterior" else sde.reverse_deviation
            state = mean + deviation(steps, state) * noise(step - 1) if step > 1 else mean
        return state

    def _predict(
        self,
        state: Float[Tensor, "t 3 h w"],
        lq: Float[Tensor, "t 3 h w"],
        steps: Int[Tensor, "b"],
        content: Float[Tensor, "b d"],
        degradation: Float[Tensor, "b d"],
    ) -> Float[Tensor, "t 3 h w"]:
        """The U-Net; tiles of one image are all told the same."""
        told = (tensor.expand(len(state), *tensor.shape[1:]) for tensor in (steps, content, degradation))
        return self.unet(state, lq, *told)

    def step_mean(
        self,
        state: Float[Tensor, "b 3 h w"],
        lq: Float[Tensor, "b 3 h w"],
        noise: Float[Tensor, "b 3 h w"],
        steps: Int[Tensor, "b"],
        clamp: bool = False,
    ) -> Float[Tensor, "b 3 h w"]:
        """Where one step of the sampler leads in the mean, from the predicted noise: what training compares.

        Args:
            clamp: of the posterior, keeps the predicted x_0 in [0, 1], lest errors of early steps add up.
        """
        if self.config.sampler == "posterior":
            clean = self.sde.clean_image(state, lq, noise, steps)
            return self.sde.previous_mean(state, clean.clamp(0, 1) if clamp else clean, lq, steps)
        return self.sde.reverse_mean(state, lq, noise, steps)
