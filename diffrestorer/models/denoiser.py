"""The controlled UNet along fixed timesteps, without what does not change from step to step.

`Restorer.denoise` runs the networks as diffusers wrote them: training needs that. Restoring asks them for one image at
timesteps known beforehand, so `Denoiser` computes once whatever does not depend on the noisy latents: the projections
of the time embeddings, which become biases of convolutions, and the keys and values of cross-attention.
With one token, as the paper has it, the softmax over it is 1 and cross-attention a constant. The numbers are the same.
"""

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

Constant = Float[Tensor, "b 1 c"] | tuple[Float[Tensor, "b e t d"], Float[Tensor, "b e t d"]]


class Denoiser:
    """Predicts like `Restorer.denoise`, for images of one semantic embedding and for the given timesteps.

    Args:
        restorer: its networks as they are now; weights changed later are not seen.
        semantic_embedding: P_S, one token an image (or several); one image's serves a batch of its tiles.
        timesteps: those of the sampler.
    """

    def __init__(
        self, restorer: Restorer, semantic_embedding: Float[Tensor, "b t s"], timesteps: Int[Tensor, " n"]
    ) -> None:
        self.unet, self.control_network = restorer.unet, restorer.control_network
        self.relative = restorer.control_encoder.config.latent_channels is not None
        self.biases: dict[nn.Module, tuple[Float[Tensor, " c"], ...]] = {}
        self.constants: dict[nn.Module, Constant] = {}
        self.stages: dict[nn.Module, list[tuple[nn.Module, nn.Module | None]]] = {}
        for network in (self.unet, self.control_network):
            projected = network.time_proj(timesteps.to(network.device)).to(network.dtype)
            time_embedding = F.silu(network.time_embedding(projected))
            for module in network.modules():
                if isinstance(module, ResnetBlock2D):
                    self.biases[module] = (module.time_emb_proj(time_embedding) + module.conv1.bias).unbind()
                elif isinstance(module, BasicTransformerBlock):
                    self.constants[module] = _cross_attention_constant(module.attn2, semantic_embedding)
            for block in (*network.down_blocks, *getattr(network, "up_blocks", ())):
                self.stages[block] = list(
                    zip(block.resnets, getattr(block, "attentions", [None] * len(block.resnets)), strict=True)
                )

    def __call__(
        self,
        step: int,
        noisy_latents: Float[Tensor, "b l h8 w8"],
        control_features: Float[Tensor, "b c h8 w8"],
        lq_latents: Float[Tensor, "b l h8 w8"],
    ) -> Float[Tensor, "b l h8 w8"]:
        """The prediction at `timesteps[step]`; see `Conditioning` for the other two."""
        unet, control = self.unet, self.control_network
        controls, control_mid = self._encode(control, control.conv_in(noisy_latents) + control_features, step)
        skips, features = self._encode(unet, unet.conv_in(noisy_latents), step)
        features = features + control.controlnet_mid_block(control_mid)
        zero_convolutions = control.controlnet_down_blocks
        skips = [skip + conv(own) for skip, conv, own in zip(skips, zero_convolutions, controls, strict=True)]
        for block in unet.up_blocks:
            for resnet, attention in self.stages[block]:
                features = self._resnet(resnet, torch.cat([features, skips.pop()], dim=1), step)
                if attention is not None:
                    features = self._transformer(attention, features)
            for upsampler in block.upsamplers or ():
                features = upsampler(features)
        output = unet.conv_out(F.silu(unet.conv_norm_out(features)))
        return output + lq_latents if self.relative else output

    def _encode(
        self, network: UNet2DConditionModel | ControlNetModel, features: Float[Tensor, "b c h w"], step: int
    ) -> tuple[list[Float[Tensor, "b _ _ _"]], Float[Tensor, "b _ _ _"]]:
        """Down blocks and mid block: the features to skip with, and the last."""
        skips = [features]
        for block in network.down_blocks:
            for resnet, attention in self.stages[block]:
                features = self._resnet(resnet, features, step)
                if attention is not None:
                    features = self._transformer(attention, features)
                skips.append(features)
            for downsampler in block.downsamplers or ():
                features = downsampler(features)
                skips.append(features)
        first, *resnets = network.mid_block.resnets
        features = self._resnet(first, features, step)
        for attention, resnet in zip(network.mid_block.attentions, resnets, strict=True):
            features = self._resnet(resnet, self._transformer(attention, features), step)
        return skips, features

    def _resnet(self, block: ResnetBlock2D, features: Float[Tensor, "b c h w"], step: int) -> Float[Tensor, "b c2 h w"]:
        hidden = F.silu(block.norm1(features))
        hidden = F.conv2d(hidden, block.conv1.weight, self.biases[block][step], padding=1)
        hidden = block.conv2(F.silu(block.norm2(hidden)))
        return hidden + (features if block.conv_shortcut is None else block.conv_shortcut(features))

    def _transformer(self, model: Transformer2DModel, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        batch, _, height, width = features.shape
        hidden = model.norm(features)
        if model.use_linear_projection:
            hidden = model.proj_in(hidden.flatten(2).transpose(1, 2))
        else:
            hidden = model.proj_in(hidden).flatten(2).transpose(1, 2)
        for block in model.transformer_blocks:
            hidden = self._transformer_block(block, hidden)
        if model.use_linear_projection:
            hidden = model.proj_out(hidden)
        hidden = hidden.transpose(1, 2).reshape(batch, -1, height, width)
        return features + (hidden if model.use_linear_projection else model.proj_out(hidden))

    def _transformer_block(
        self, block: BasicTransformerBlock, hidden: Float[Tensor, "b n c"]
    ) -> Float[Tensor, "b n c"]:
        normed = block.norm1(hidden)
        attention = block.attn1
        keys, values = (_heads(attention, projection(normed)) for projection in (attention.to_k, attention.to_v))
        hidden = hidden + _attend(attention, normed, keys, values)
        constant = self.constants[block]
        if isinstance(constant, tuple):
            hidden = hidden + _attend(block.attn2, block.norm2(hidden), *constant)
        else:
            hidden = hidden + constant
        return hidden + block.ff(block.norm3(hidden))


def _cross_attention_constant(attention: Attention, tokens: Float[Tensor, "b t s"]) -> Constant:
    """One token: cross-attention's output, the same at every position. Several: its keys and values."""
    values = attention.to_v(tokens)
    if tokens.shape[1] == 1:
        return attention.to_out[0](values)
    return _heads(attention, attention.to_k(tokens)), _heads(attention, values)


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
