"""DA-CLIP's U-Net: IR-SDE's, with the degradation in its time embedding and attention to the content."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diffrestorer.models.blocks import pad_to_multiple

Images = Float[Tensor, "b 3 h w"]
Features = Float[Tensor, "b c h w"]
Tokens = Float[Tensor, "b n c"]
Embedding = Float[Tensor, "b d"]
Time = Float[Tensor, "b t"]

HEAD_DIM = 32


def time_embedding(steps: Int[Tensor, "b"], dim: int) -> Embedding:
    """Return sines and cosines of the step at frequencies from 1 down to 1/10000."""
    half = dim // 2
    exponents = torch.arange(half, device=steps.device) / (half - 1)
    angles = steps[:, None] * torch.exp(-math.log(10000) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _conv3x3(in_dim: int, out_dim: int) -> nn.Conv2d:
    return nn.Conv2d(in_dim, out_dim, 3, padding=1, bias=False)


class ChannelScaleNorm(nn.Module):
    """Normalisation of each pixel's channels, with a scale and no shift."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, features: Features) -> Features:
        variance, mean = torch.var_mean(features, dim=1, correction=0, keepdim=True)
        return (features - mean) * (variance + 1e-5).rsqrt() * self.scale[:, None, None]


class TimedResBlock(nn.Module):
    """Two 3x3 convolutions around a skip, the first scaled and shifted by the time embedding; no normalisation."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        time_dim: int,
    ) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * out_dim))
        self.conv1 = _conv3x3(in_dim, out_dim)
        self.conv2 = _conv3x3(out_dim, out_dim)
        self.skip = nn.Identity() if in_dim == out_dim else nn.Conv2d(in_dim, out_dim, 1, bias=False)

    def forward(self, features: Features, time: Time) -> Float[Tensor, "b c2 h w"]:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        hidden = F.silu(self.conv1(features) * (1 + scale) + shift)
        return F.silu(self.conv2(hidden)) + self.skip(features)


class LinearAttention(nn.Module):
    """Residual attention at a cost linear in the pixels: softmax over q's channels and over k's pixels."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = ChannelScaleNorm(dim)
        self.qkv = nn.Conv2d(dim, 3 * num_heads * HEAD_DIM, 1, bias=False)
        self.out = nn.Sequential(nn.Conv2d(num_heads * HEAD_DIM, dim, 1), ChannelScaleNorm(dim))

    def forward(
        self,
        features: Features,
        content: Embedding,
    ) -> Features:
        qkv = self.qkv(self.norm(features)).flatten(2)
        q, k, v = qkv.unflatten(1, (3, self.num_heads, HEAD_DIM)).unbind(1)
        q = q.softmax(dim=-2) * HEAD_DIM**-0.5
        k = k.softmax(dim=-1)

        # A matrix of k's channels by v's channels stands for all pixels.
        context = k @ (v / v.shape[-1]).transpose(-2, -1)
        attended = context.transpose(-2, -1) @ q
        return features + self.out(attended.flatten(1, 2).unflatten(2, features.shape[-2:]))


class ContentAttention(nn.Module):
    """Residual transformer block: self-attention of the pixels, attention to the content embedding, feed-forward.

    With one content token, cross-attention is a projection of it and the same for every pixel. Its query and key have
    no effect and a gradient of zero, but they belong to the published size.
    """

    def __init__(
        self,
        dim: int,
        content_dim: int,
    ) -> None:
        super().__init__()
        self.num_heads = max(1, dim // HEAD_DIM)
        self.outer_norm = ChannelScaleNorm(dim)
        self.norm = nn.GroupNorm(min(32, dim // 4), dim, eps=1e-6)
        self.project_in = nn.Conv2d(dim, dim, 1)
        self.project_out = nn.Conv2d(dim, dim, 1)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

        # Self-attention, attention to the content, gated feed-forward.
        self.self_q, self.self_k, self.self_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.self_out = nn.Linear(dim, dim)
        self.content_q = nn.Linear(dim, dim, bias=False)
        self.content_k = nn.Linear(content_dim, dim, bias=False)
        self.content_v = nn.Linear(content_dim, dim, bias=False)
        self.content_out = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, 8 * dim)
        self.feed_forward = nn.Linear(4 * dim, dim)

        # The block starts as the normalised features and their skip.
        for parameter in self.project_out.parameters():
            nn.init.zeros_(parameter)

    def attend(self, q: Tokens, k: Float[Tensor, "b m c"], v: Float[Tensor, "b m c"]) -> Tokens:
        """Return attention of all heads, side by side."""
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(
        self,
        features: Features,
        content: Embedding,
    ) -> Features:
        normed = self.outer_norm(features)
        tokens = self.project_in(self.norm(normed)).flatten(2).transpose(1, 2)

        # The pixels attend to one another, then to the one content token.
        hidden = self.norm1(tokens)
        attended = self.attend(self.self_q(hidden), self.self_k(hidden), self.self_v(hidden))
        tokens = tokens + self.self_out(attended)
        token = content[:, None]
        attended = self.attend(
            self.content_q(self.norm2(tokens)), self.content_k(token), self.content_v(token)
        )
        tokens = tokens + self.content_out(attended)

        # Gated feed-forward, and back to an image.
        value, gate = self.gate(self.norm3(tokens)).chunk(2, dim=-1)
        tokens = tokens + self.feed_forward(value * F.gelu(gate))
        hidden = tokens.transpose(1, 2).unflatten(2, features.shape[-2:])
        return features + normed + self.project_out(hidden)


class DaClipUNet(nn.Module):
    """Prediction of the noise in x_t from x_t, the degraded image, the step, and CLIP's two embeddings.

    Args:
        features: channels at full size.
        multipliers: of the channels after each level; every level but the last halves the size.
        content_dim: width of the embeddings.
        attention_level: first level with attention to the content; levels above have linear attention.
    """

    def __init__(
        self, features: int, multipliers: Sequence[int], content_dim: int, attention_level: int = 3
    ) -> None:
        super().__init__()
        self.features = features
        self.multiple = 2 ** len(multipliers)
        time_dim = 4 * features
        widths = [features, *(features * multiplier for multiplier in multipliers)]
        last = len(multipliers) - 1

        def attention(dim: int, level: int) -> nn.Module:
            return (
                ContentAttention(dim, content_dim) if level >= attention_level else LinearAttention(dim)
            )

        # The degradation joins the time embedding.
        self.embed = nn.Conv2d(6, features, 7, padding=3, bias=False)
        self.time = nn.Sequential(
            nn.Linear(features, time_dim), nn.GELU(), nn.Linear(time_dim, time_dim)
        )
        self.prompt = nn.Parameter(torch.rand(1, time_dim))
        self.degradation = nn.Sequential(
            nn.Linear(content_dim, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim)
        )
        self.prompt_out = nn.Linear(time_dim, time_dim)

        # Two residual blocks, attention and a change of size per level.
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (dim, next_dim) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            down = nn.Conv2d(dim, next_dim, 4, 2, 1) if level < last else _conv3x3(dim, next_dim)
            blocks = [TimedResBlock(dim, dim, time_dim) for _ in range(2)]
            self.downs.append(nn.ModuleList([*blocks, attention(dim, level), down]))
            up = nn.Conv2d(next_dim, dim, 3, padding=1) if level else _conv3x3(next_dim, dim)
            blocks = [TimedResBlock(next_dim + dim, next_dim, time_dim) for _ in range(2)]
            self.ups.insert(0, nn.ModuleList([*blocks, attention(next_dim, level), up]))

        # The lowest size, and the output at full size.
        self.middle1 = TimedResBlock(widths[-1], widths[-1], time_dim)
        self.middle_attention = ContentAttention(widths[-1], content_dim)
        self.middle2 = TimedResBlock(widths[-1], widths[-1], time_dim)
        self.last = TimedResBlock(2 * features, features, time_dim)
        self.output = nn.Conv2d(features, 3, 3, padding=1)

    def forward(
        self,
        state: Images,
        lq: Images,
        steps: Int[Tensor, "b"],
        content: Embedding,
        degradation: Embedding,
    ) -> Images:
        time = self.time(time_embedding(steps, self.features).to(state.dtype))
        time = time + self.prompt_out(self.degradation(degradation).softmax(dim=-1) * self.prompt)

        # Both images are padded by reflection, at every step.
        height, width = lq.shape[-2:]
        state, lq = pad_to_multiple(state, self.multiple), pad_to_multiple(lq, self.multiple)
        first = hidden = self.embed(torch.cat([state - lq, lq], dim=1))

        # Down, keeping two skips per level.
        skips = []
        level: Any
        for level in self.downs:
            block1, block2, attention, down = level
            hidden = block1(hidden, time)
            skips.append(hidden)
            hidden = attention(block2(hidden, time), content)
            skips.append(hidden)
            hidden = down(hidden)
        hidden = self.middle_attention(self.middle1(hidden, time), content)
        hidden = self.middle2(hidden, time)

        # Up again; the last level is at full size already.
        for index, level in enumerate(self.ups):
            block1, block2, attention, up = level
            hidden = block1(torch.cat([hidden, skips.pop()], dim=1), time)
            hidden = block2(torch.cat([hidden, skips.pop()], dim=1), time)
            hidden = attention(hidden, content)
            if index < len(self.ups) - 1:
                hidden = F.interpolate(hidden, scale_factor=2.0)
            hidden = up(hidden)
        noise = self.output(self.last(torch.cat([hidden, first], dim=1), time))
        return noise[..., :height, :width]
