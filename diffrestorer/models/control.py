"""The Image-guided Control Module (section III-C): modulated encoder, decoder for supervision, control network."""

import functools
from collections.abc import Sequence
from typing import Any

from diffusers import ConfigMixin, ControlNetModel, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffrestorer.models.blocks import DegradationModulationBlock, ResBlock


class ControlEncoder(ModelMixin, ConfigMixin):
    """Degradation-aware Control Encoder: the degraded image at full size to a feature of the latents' size.

    Four DMBs; the first keeps the size, the other three halve it (512 -> 64), so that the last meets the UNet's
    first width.

    Args:
        block_out_channels: widths of the four blocks; the last is the UNet's first width.
        degradation_dim: width of P_D.
        norm_num_groups: groups of every GroupNorm; divides every width.
        modulate: False makes plain residual blocks (ablation `no_dmb`).
        latent_channels: not None adds the latents of the degraded image to the feature (mini only: the paper has no
            such path).
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: Sequence[int] = (64, 128, 256, 320),
        degradation_dim: int = 256,
        norm_num_groups: int = 32,
        modulate: bool = True,
        latent_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, block_out_channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        channels = block_out_channels[0]
        for i, out_channels in enumerate(block_out_channels):
            stride = 1 if i == 0 else 2
            self.blocks.append(
                DegradationModulationBlock(channels, out_channels, degradation_dim, stride, norm_num_groups, modulate)
            )
            channels = out_channels
        self.latents_in = nn.Conv2d(latent_channels, channels, 3, padding=1) if latent_channels else None

    def forward(
        self,
        lq: Float[Tensor, "b 3 h w"],
        degradation_embedding: Float[Tensor, "b d"],
        lq_latents: Float[Tensor, "b l h8 w8"] | None = None,
    ) -> Float[Tensor, "b c h8 w8"]:
        features = self.conv_in(lq * 2 - 1)
        for block in self.blocks:
            features = block(features, degradation_embedding)
        if self.latents_in is not None:
            assert lq_latents is not None, "a control encoder with latent_channels takes the degraded image's latents"
            features = features + self.latents_in(lq_latents.to(self.dtype))
        return features


class ControlDecoder(ModelMixin, ConfigMixin):
    """Control Decoder: the control encoder's mirror, back to an image I_CD. Used in training only.

    Paper: CD (section III-C).

    Args:
        block_out_channels: widths of the `ControlEncoder` it mirrors, in the encoder's order.
    """

    @register_to_config
    def __init__(self, block_out_channels: Sequence[int] = (64, 128, 256, 320), norm_num_groups: int = 32) -> None:
        super().__init__()
        widths = list(reversed(block_out_channels))
        self.blocks = nn.ModuleList(
            ResBlock(in_channels, out_channels, num_groups=norm_num_groups)
            for in_channels, out_channels in zip(widths, [*widths[1:], widths[-1]], strict=True)
        )
        self.norm_out = nn.GroupNorm(norm_num_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, control_features: Float[Tensor, "b c h8 w8"]) -> Float[Tensor, "b 3 h w"]:
        features = control_features
        for i, block in enumerate(self.blocks):
            features = block(features)
            if i < len(self.blocks) - 1:
                features = F.interpolate(features, scale_factor=2.0, mode="nearest")
        return self.conv_out(F.silu(self.norm_out(features))) / 2 + 0.5


class ControlNetwork(ControlNetModel):
    """Image Control Network: a ControlNet whose condition is already a feature.

    The ControlNet's own image embedding is left out: the `ControlEncoder`'s feature is added after `conv_in`. Its
    cross-attention takes P_S. `ControlNetwork.from_unet(unet)` copies the UNet's encoder and mid block; the 12 + 1
    output convolutions start at zero, so the UNet is untouched at step 0.
    """

    @functools.wraps(ControlNetModel.__init__)  # type: ignore[misc] # diffusers reads the saved config off this signature
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.controlnet_cond_embedding = nn.Identity()
