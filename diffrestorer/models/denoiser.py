"""The controlled UNet along fixed timesteps, without what does not change from step to step.

`Restorer.denoise` runs the networks as diffusers wrote them: training needs that. Restoring asks them for one image at
timesteps known beforehand, so `Denoiser` computes once whatever does not depend on the noisy latents: the projections
of the time embeddings, which become biases of convolutions, and the keys and values of cross-attention.
With one token, as the paper has it, the softmax over it is 1 and cross-attention a constant. The numbers are the same.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diffrestorer.models.restorer import Restorer


class Given(NamedTuple):
    """What a step is given besides the latents.

    Attributes:
        biases: of the first convolution of each residual block, the time embedding's part included.
        constants: of each transformer block's cross-attention: its output (one token), or its keys and values.
    """

    biases: Sequence[Float[Tensor, " _"]]
    constants: Sequence[Float[Tensor, "..."]]


class ControlledUNet(nn.Module):
    """UNet and control network as a function of tensors alone, the same at every step: what a compiler wants.

    The networks are the restorer's own.
    """

    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        self.control_network, self.unet = restorer.control_network, restorer.unet
        self.relative = restorer.relative_prediction
        self.resnets = _places(ResnetBlock2D, self.control_network, self.unet)
        self.transformers = _places(BasicTransformerBlock, self.control_network, self.unet)
        self.widths = [resnet.conv1.out_channels for resnet in self.resnets]

    def biases(self, timesteps: Int[Tensor, " n"]) -> Float[Tensor, "n _"]:
        """Those of `Given` at each timestep, one behind the other."""
        rows = []
        for network in (self.control_network, self.unet):
            projected = network.time_proj(timesteps.to(network.device)).to(network.dtype)
            embedding = F.silu(network.time_embedding(projected))
            rows += [block.time_emb_proj(embedding) + block.conv1.bias for block in _places(ResnetBlock2D, network)]
        return torch.cat(rows, dim=1)

    def constants(self, semantic_embedding: Float[Tensor, "b t s"]) -> list[Float[Tensor, "..."]]:
        """Those of `Given` for images."""
        parts = [_cross_attention_constants(block.attn2, semantic_embedding) for block in self.transformers]
        return [constant for part in parts for constant in part]

    def forward(
        self,
        noisy_latents: Float[Tensor, "b l h8 w8"],
        control_features: Float[Tensor, "b c h8 w8"],
        lq_latents: Float[Tensor, "b l h8 w8"],
        biases: Float[Tensor, " _"],
        *constants: Float[Tensor, "..."],
    ) -> Float[Tensor, "b l h8 w8"]:
        """The prediction. The control features and the degraded image's latents are `Conditioning`'s."""
        unet, control = self.unet, self.control_network
        noisy_latents = noisy_latents.to(unet.conv_in.weight.dtype)
        given = Given(biases.split(self.widths), constants)
        controls, control_mid = self._encode(control, control.conv_in(noisy_latents) + control_features, given)
        skips, features = self._encode(unet, unet.conv_in(noisy_latents), given)
        features = features + control.controlnet_mid_block(control_mid)
        zero_convolutions = control.controlnet_down_blocks
        skips = [skip + conv(own) for skip, conv, own in zip(skips, zero_convolutions, controls, strict=True)]
        for block in unet.up_blocks:
            for resnet, attention in _pairs(block):
                features = self._resnet(resnet, torch.cat([features, skips.pop()], dim=1), given)
                if attention is not None:
                    features = self._transformer(attention, features, given)
            for upsampler in block.upsamplers or ():
                features = upsampler(features)
        output = unet.conv_out(F.silu(unet.conv_norm_out(features)))
        return output + lq_latents if self.relative else output

    def _encode(
        self, network: UNet2DConditionModel | ControlNetModel, features: Float[Tensor, "b c h w"], given: Given
    ) -> tuple[list[Float[Tensor, "b _ _ _"]], Float[Tensor, "b _ _ _"]]:
        """Down blocks and mid block: the features to skip with, and the last."""
        skips = [features]
        for block in network.down_blocks:
            for resnet, attention in _pairs(block):
                features = self._resnet(resnet, features, given)
                if attention is not None:
                    features = self._transformer(attention, features, given)
                skips.append(features)
            for downsampler in block.downsamplers or ():
                features = downsampler(features)
                skips.append(features)
        first, *resnets = network.mid_block.resnets
        features = self._resnet(first, features, given)
        for attention, resnet in zip(network.mid_block.attentions, resnets, strict=True):
            features = self._resnet(resnet, self._transformer(attention, features, given), given)
        return skips, features

    def _resnet(
        self, block: ResnetBlock2D, features: Float[Tensor, "b c h w"], given: Given
    ) -> Float[Tensor, "b c2 h w"]:
        hidden = F.silu(block.norm1(features))
        hidden = F.conv2d(hidden, block.conv1.weight, given.biases[self.resnets[block]], padding=1)
        hidden = block.conv2(F.silu(block.norm2(hidden)))
        return hidden + (features if block.conv_shortcut is None else block.conv_shortcut(features))

    def _transformer(
        self, model: Transformer2DModel, features: Float[Tensor, "b c h w"], given: Given
    ) -> Float[Tensor, "b c h w"]:
        height, width = features.shape[2:]
        hidden = model.norm(features)
        if model.use_linear_projection:
            hidden = model.proj_in(hidden.flatten(2).transpose(1, 2))
        else:
            hidden = model.proj_in(hidden).flatten(2).transpose(1, 2)
        for block in model.transformer_blocks:
            hidden = self._transformer_block(block, hidden, given)
        if model.use_linear_projection:
            hidden = model.proj_out(hidden)
        hidden = hidden.transpose(1, 2).unflatten(2, (height, width))
        return features + (hidden if model.use_linear_projection else model.proj_out(hidden))

    def _transformer_block(
        self, block: BasicTransformerBlock, hidden: Float[Tensor, "b n c"], given: Given
    ) -> Float[Tensor, "b n c"]:
        normed = block.norm1(hidden)
        hidden = hidden + _attend(block.attn1, normed, *_keys_and_values(block.attn1, normed))
        place, count = self.transformers[block], len(given.constants) // len(self.transformers)
        if count == 1:
            hidden = hidden + given.constants[place]
        else:
            hidden = hidden + _attend(block.attn2, block.norm2(hidden), *given.constants[2 * place : 2 * place + 2])
        return hidden + block.ff(block.norm3(hidden))


class Denoiser:
    """Predicts like `Restorer.denoise`, for images of one semantic embedding and for the given timesteps.

    Args:
        network: its weights as they are now; those changed later are not seen.
        semantic_embedding: P_S, one token an image (or several); one image's serves a batch of its tiles.
        timesteps: those of the sampler.
        run: the network, or what it was compiled to.
    """

    def __init__(
        self,
        network: ControlledUNet,
        semantic_embedding: Float[Tensor, "b t s"],
        timesteps: Int[Tensor, " n"],
        run: Callable[..., Any] | None = None,
    ) -> None:
        self.run = network if run is None else run
        self.biases = network.biases(timesteps).unbind()
        self.constants = network.constants(semantic_embedding)

    def __call__(
        self,
        step: int,
        noisy_latents: Float[Tensor, "b l h8 w8"],
        control_features: Float[Tensor, "b c h8 w8"],
        lq_latents: Float[Tensor, "b l h8 w8"],
    ) -> Float[Tensor, "b l h8 w8"]:
        """The prediction at `timesteps[step]`; see `Conditioning` for the other two."""
        return self.run(noisy_latents, control_features, lq_latents, self.biases[step], *self.constants)


def _places(kind: type[Any], *networks: nn.Module) -> dict[Any, int]:
    """The modules of a kind, each with its place among them."""
    found = [module for network in networks for module in network.modules() if isinstance(module, kind)]
    return {module: place for place, module in enumerate(found)}


def _pairs(block: Any) -> list[tuple[ResnetBlock2D, Transformer2DModel | None]]:
    """A block's residual blocks, each with the transformer that follows it."""
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return list(zip(block.resnets, attentions, strict=True))


def _cross_attention_constants(
    attention: Attention, tokens: Float[Tensor, "b t s"]
) -> tuple[Float[Tensor, "..."], ...]:
    """One token: cross-attention's output, the same at every position. Several: its keys and values."""
    if tokens.shape[1] == 1:
        return (attention.to_out[0](attention.to_v(tokens)),)
    return _keys_and_values(attention, tokens)


def _keys_and_values(
    attention: Attention, features: Float[Tensor, "b n c"]
) -> tuple[Float[Tensor, "b e n d"], Float[Tensor, "b e n d"]]:
    return _heads(attention, attention.to_k(features)), _heads(attention, attention.to_v(features))


def _heads(attention: Attention, features: Float[Tensor, "b n c"]) -> Float[Tensor, "b e n d"]:
    return features.unflatten(-1, (attention.heads, -1)).transpose(1, 2)


def _attend(
    attention: Attention,
    hidden: Float[Tensor, "b n c"],
    keys: Float[Tensor, "#b e m d"],
    values: Float[Tensor, "#b e m d"],
) -> Float[Tensor, "b n c"]:
    queries = _heads(attention, attention.to_q(hidden))
    attended = F.scaled_dot_product_attention(queries, keys, values)
    return attention.to_out[0](attended.transpose(1, 2).flatten(2))
