"""Cross-attention to one token, exact and almost free: an attention processor for diffusers' own networks."""

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor, nn


class OneTokenAttnProcessor(AttnProcessor2_0):
    """Cross-attention to one token: the softmax over one key is 1, so the output is to_out(to_v(token)) everywhere.

    Queries, keys and the softmax are skipped. Several tokens, and attention with more parts than Stable Diffusion's,
    take the general path.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "b n c"],
        encoder_hidden_states: Float[Tensor, "b k d"] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Float[Tensor, "b n c"]:
        # Normalised tokens, a residual and a rescaled output are what the shortcut below leaves out.
        plain = not attn.norm_cross and not attn.residual_connection and attn.rescale_output_factor == 1
        if encoder_hidden_states is None or encoder_hidden_states.shape[1] > 1 or not plain:
            return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)

        # The output projection is a linear layer followed by dropout.
        constant = attn.to_v(encoder_hidden_states)
        for layer in attn.to_out:
            constant = layer(constant)

        # Queries, keys and what they read get the gradient of the general case, which is exactly zero: several
        # processes add up the gradients that all of them have.
        if torch.is_grad_enabled():
            idle = hidden_states.sum() + attn.to_q.weight.sum() + attn.to_k.weight.sum()
            constant = constant + 0 * idle
        return constant.expand(-1, hidden_states.shape[1], -1)


def install_one_token_attention(
    network: nn.Module, replaced: tuple[type, ...] = (AttnProcessor2_0,)
) -> None:
    """Give a network's cross-attention the one-token processor. Training and inference both call this.

    Args:
        network: searched for diffusers' transformer blocks.
        replaced: processors that make way, by their exact class. Any other one was put there by the user and stays.
    """
    for module in network.modules():
        if not isinstance(module, BasicTransformerBlock) or module.attn2 is None:
            continue
        if type(module.attn2.processor) in replaced:
            module.attn2.set_processor(OneTokenAttnProcessor())
