"""The Image-guided Control Module (section III-C): modulated encoder, decoder for supervision, control network."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ControlNetModel, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.controlnets.controlnet import zero_module
from diffusers.utils.accelerate_utils import apply_forward_hook
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
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: Sequence[int] = (64, 128, 256, 320),
        degradation_dim: int = 256,
        norm_num_groups: int = 32,
        modulate: bool = True,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, block_out_channels[0], 3, padding=1)

        # The first block keeps the image's size, the others halve it.
        self.blocks = nn.ModuleList()
        channels = block_out_channels[0]
        for i, out_channels in enumerate(block_out_channels):
            stride = 1 if i == 0 else 2
            self.blocks.append(
                DegradationModulationBlock(
                    channels, out_channels, degradation_dim, stride, norm_num_groups, modulate
                )
            )
            channels = out_channels

    def forward(
        self,
        lq: Float[Tensor, "b 3 h w"],
        degradation_embedding: Float[Tensor, "b d"],
        lq_latents: Float[Tensor, "b l h8 w8"] | None = None,
    ) -> Float[Tensor, "b c h8 w8"]:
        """Return c for images in [0, 1]. The paper's encoder has no use for the latents; a subclass may."""
        features = self.conv_in(lq * 2 - 1)
        for block in self.blocks:
            features = block(features, degradation_embedding)
        return features


class ControlDecoder(ModelMixin, ConfigMixin):
    """Control Decoder: the control encoder's mirror, back to an image I_CD. Used in training only.

    Paper: CD (section III-C).

    Args:
        block_out_channels: widths of the `ControlEncoder` it mirrors, in the encoder's order.
    """

    @register_to_config
    def __init__(
        self, block_out_channels: Sequence[int] = (64, 128, 256, 320), norm_num_groups: int = 32
    ) -> None:
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

    In place of the ControlNet's own image embedding stands a 1x1 convolution that starts at zero, as the embedding's
    last layer does: at step 0 the copied encoder sees what the UNet's sees. `enter` applies it, once per image;
    `forward` adds the result after `conv_in`. Cross-attention takes P_S. `ControlNetwork.from_unet(unet)` copies the
    UNet's encoder and mid block; the 12 + 1 output convolutions start at zero, so the UNet is untouched at step 0.

    Args:
        zero_convolution: whether there is that convolution; False in folders of models trained before there was.
        args, kwargs: see `ControlNetModel`.
    """

    # Offloading by groups of layers loads this one when it runs, as `enter` runs it apart from `forward`.
    _group_offload_block_modules = ["zero_conv_in"]

    def __init__(self, *args: Any, zero_convolution: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.controlnet_cond_embedding = nn.Identity()
        self.zero_conv_in = (
            _zero_convolution(self.config.block_out_channels[0]) if zero_convolution else None
        )
        self.register_to_config(zero_convolution=zero_convolution)

    # diffusers takes the arguments that a saved config may hold from the signature.
    _inherited = inspect.signature(ControlNetModel.__init__)
    _own = inspect.Parameter(
        "zero_convolution", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool
    )
    __init__.__signature__ = _inherited.replace(  # type: ignore[attr-defined]
        parameters=[*_inherited.parameters.values(), _own]
    )
    del _inherited, _own

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, **kwargs: Any) -> "ControlNetwork":
        """Build the network at step 0 from a UNet; `kwargs` are `ControlNetModel.from_unet`'s."""
        network = super().from_unet(unet, **kwargs)
        network.zero_conv_in = _zero_convolution(network.config.block_out_channels[0])
        network.register_to_config(zero_convolution=True)
        return network

    @apply_forward_hook  # offloading brings the network to the GPU here, as it does before `forward`
    def enter(self, control_features: Float[Tensor, "b c h8 w8"]) -> Float[Tensor, "b c h8 w8"]:
        """Return the control encoder's feature as `forward` takes it: through `zero_conv_in`, if there is one."""
        return control_features if self.zero_conv_in is None else self.zero_conv_in(control_features)

    def complete(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a network that may lack `zero_conv_in`, with those that change nothing there.

        Without the convolution the feature is added as it is: that is the identity's weights.
        """
        if self.zero_conv_in is None:
            return dict(weights)
        identity = torch.eye(self.zero_conv_in.out_channels)[:, :, None, None]
        bias = torch.zeros(self.zero_conv_in.out_channels)
        return {"zero_conv_in.weight": identity, "zero_conv_in.bias": bias, **weights}


def _zero_convolution(channels: int) -> nn.Conv2d:
    return zero_module(nn.Conv2d(channels, channels, 1))
