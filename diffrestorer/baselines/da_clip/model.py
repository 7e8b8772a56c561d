"""DA-CLIP as one method: the controlled CLIP, the U-Net it conditions, and the sampler of IR-SDE."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor

from diffrestorer.baselines.da_clip import names
from diffrestorer.baselines.da_clip.controller import ControlledClip
from diffrestorer.baselines.da_clip.sde import IRSDE
from diffrestorer.baselines.da_clip.unet import DaClipUNet
from diffrestorer.baselines.protocol import Baseline, Pass
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.data.counter import counter_normal
from diffrestorer.models.backbones import ImageEncoder
from diffrestorer.models.blocks import pad_to_multiple

Images = Float[Tensor, "b 3 h w"]
Embedding = Float[Tensor, "b d"]

VIT_B_32 = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}


class DaClip(Baseline):
    """DA-CLIP; the defaults are the paper's.

    Args:
        image_encoder: arguments of `ImageEncoder` for CLIP; None: LAION's ViT-B/32, which has GELU.
        features, multipliers: of the U-Net.
        attention_level: first level of the U-Net with attention to the content.
        num_steps, max_sigma: of IR-SDE.
        sampler: `sde` (Euler steps of the reverse-time SDE, the paper's) or `posterior` (x_{t-1} given x_t and the
            predicted x_0, which is exact for a perfect prediction and needs fewer steps).
        num_classes: number of degradations that the controller was trained on.
    """

    authors_names = (*names.CONTROLLER, *names.UNET)
    authors_unused = names.UNUSED
    authors_parts = {
        "the U-Net": "init_conv.weight",
        "the controlled CLIP": "visual_control.conv1.weight",
    }
    own_tensors = ("controller.class_embeddings",)

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
        laion = {"vision_cfg": VIT_B_32, "embed_dim": 512, "quick_gelu": False}
        clip = ImageEncoder(**(image_encoder or laion))
        self.controller = ControlledClip(clip, clip.config.embed_dim, num_classes)
        self.unet = DaClipUNet(features, multipliers, clip.config.embed_dim, attention_level)
        self.sde = IRSDE(num_steps, max_sigma)

    @property
    def multiple(self) -> int:
        """Two to the number of levels. Tiles must be multiples of it; whole images are padded at every step."""
        return self.unet.multiple

    def pad(self, images: Images) -> Images:
        """Return the images as they are, since CLIP sees them without padding."""
        return images

    @classmethod
    def authors_name(cls, name: str) -> str:
        """Return the name that one of our tensors has in the authors' checkpoints."""
        for ours, theirs in names.CONTROLLER if name.startswith("controller.") else names.UNET:
            name = name.replace(ours, theirs)
        return name

    def restore_padded(
        self,
        lq: Images,
        seed: int,
        run: Pass,
    ) -> Images:
        """Run the reverse process from the degraded image plus noise.

        CLIP sees the whole image. `run` applies the U-Net at every step.
        """
        sde = self.sde
        content, degradation = self.controller(lq)

        # Every image of the batch gets the same noise, so the result does not depend on the batch.
        def noise(step: int) -> Images:
            drawn = counter_normal(lq.shape[1:], seed, "ir_sde", step, [0], lq.device).to(lq.dtype)
            return drawn.expand(lq.shape)

        # From T down to 1; the last step adds no noise.
        deviation = (
            sde.previous_deviation if self.config.sampler == "posterior" else sde.reverse_deviation
        )
        state = lq + sde.max_sigma / 255 * noise(sde.num_steps)
        for step in range(sde.num_steps, 0, -1):
            steps = torch.full((len(lq),), step, device=lq.device)
            predict = partial(self._predict, steps=steps, content=content, degradation=degradation)
            padded = [pad_to_multiple(images, self.multiple) for images in (state, lq)]
            predicted = run(predict, padded)[..., : lq.shape[-2], : lq.shape[-1]]
            state = self.step_mean(state, lq, predicted, steps, clamp=True)
            if step > 1:
                state = state + deviation(steps, state) * noise(step - 1)
        return state

    def _predict(
        self,
        state: Float[Tensor, "t 3 h w"],
        lq: Float[Tensor, "t 3 h w"],
        steps: Int[Tensor, "b"],
        content: Embedding,
        degradation: Embedding,
    ) -> Float[Tensor, "t 3 h w"]:
        """Run the U-Net; all tiles of an image share its embeddings."""
        conditions = (
            tensor.expand(len(state), *tensor.shape[1:]) for tensor in (steps, content, degradation)
        )
        return self.unet(state, lq, *conditions)

    def step_mean(
        self,
        state: Images,
        lq: Images,
        noise: Images,
        steps: Int[Tensor, "b"],
        clamp: bool = False,
    ) -> Images:
        """Return the mean of x_{t-1} for the predicted noise, which training compares with the best one.

        Args:
            clamp: keep the posterior's predicted x_0 in [0, 1], so that errors of early steps do not add up.
        """
        if self.config.sampler == "posterior":
            clean = self.sde.clean_image(state, lq, noise, steps)
            clean = clean.clamp(0, 1) if clamp else clean
            return self.sde.previous_mean(state, clean, lq, steps)
        return self.sde.reverse_mean(state, lq, noise, steps)
