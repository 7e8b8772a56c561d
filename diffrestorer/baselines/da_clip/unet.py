"""DA-CLIP's U-Net: IR-SDE's, told the degradation through its time embedding and the content through attention."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_DIM = 32


def time_embedding(steps: Int[Tensor, "b"], dim: int) -> Float[Tensor, "b d"]:
    """Sines and cosines of the step at frequencies from 1 down to 1/10000."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(dim // 2, device=steps.device) / (dim // 2 - 1))
    angles = steps[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _conv3x3(in_dim: int, out_dim: int) -> nn.Conv2d:
    return nn.Conv2d(in_dim, out_dim, 3, padding=1, bias=False)


class ChannelScaleNorm(nn.Module):
    """Normalises the channels of each pixel; a scale, no shift."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        variance, mean = torch.var_mean(features, dim=1, correction=0, keepdim=True)
        return (features - mean) * (variance + 1e-5).rsqrt() * self.scale[:, None, None]


class TimedResBlock(nn.Module):
    """Two 3x3 convolutions around a skip, the first scaled and shifted by the time embedding; no normalisation."""

    def __init__(self, in_dim: int, out_dim: int, time_dim: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * out_dim))
        self.conv1, self.conv2 = _conv3x3(in_dim, out_dim), _conv3x3(out_dim, out_dim)
        self.skip = nn.Identity() if in_dim == out_dim else nn.Conv2d(in_dim, out_dim, 1, bias=False)

    def forward(self, features: Float[Tensor, "b c h w"], time: Float[Tensor, "b t"]) -> Float[Tensor, "b c2 h w"]:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        hidden = F.silu(self.conv1(features) * (1 + scale) + shift)
        return F.silu(self.conv2(hidden)) + self.skip(features)


class LinearAttention(nn.Module):
    """Residual attention of a cost linear in the pixels: softmax over the channels of q and over the pixels of k."""

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = ChannelScaleNorm(dim)
        self.qkv = nn.Conv2d(dim, 3 * num_heads * HEAD_DIM, 1, bias=False)
        self.out = nn.Sequential(nn.Conv2d(num_heads * HEAD_DIM, dim, 1), ChannelScaleNorm(dim))

    def forward(self, features: Float[Tensor, "b c h w"], content: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        q, k, v = self.qkv(self.norm(features)).flatten(2).unflatten(1, (3, self.num_heads, HEAD_DIM)).unbind(1)
        q, k = q.softmax(dim=-2) * HEAD_DIM**-0.5, k.softmax(dim=-1)
        context = k @ (v / v.shape[-1]).transpose(-2, -1)  # channels of k by channels of v
        attended = context.transpose(-2, -1) @ q
        return features + self.out(attended.flatten(1, 2).unflatten(2, features.shape[-2:]))


class ContentAttention(nn.Module):
    """Residual transformer block: self-attention of the pixels, attention to the content embedding, feed-forward.

    With one content token cross-attention is a projection of it, the same for every pixel; its query and key have
    nothing to choose from and a gradient of zero, but they are part of the published size.
    """

    def __init__(self, dim: int, content_dim: int) -> None:
        super().__init__()
        self.outer_norm = ChannelScaleNorm(dim)
        self.norm = nn.GroupNorm(min(32, dim // 4), dim, eps=1e-6)
        self.project_in, self.project_out = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.num_heads = max(1, dim // HEAD_DIM)
        self.qkv, self.self_out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.content_q, self.content_kv = nn.Linear(dim, dim, bias=False), nn.Linear(content_dim, 2 * dim, bias=False)
        self.content_out = nn.Linear(dim, dim)
        self.gate, self.feed_forward = nn.Linear(dim, 8 * dim), nn.Linear(4 * dim, dim)

    def _attend(
        self, q: Float[Tensor, "b n c"], k: Float[Tensor, "b m c"], v: Float[Tensor, "b m c"]
    ) -> Float[Tensor, "b n c"]:
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, features: Float[Tensor, "b c h w"], content: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
        normed = self.outer_norm(features)
        tokens = self.project_in(self.norm(normed)).flatten(2).transpose(1, 2)
        tokens = tokens + self.self_out(self._attend(*self.qkv(self.norm1(tokens)).chunk(3, dim=-1)))
        k, v = self.content_kv(content[:, None]).chunk(2, dim=-1)
        tokens = tokens + self.content_out(self._attend(self.content_q(self.norm2(tokens)), k, v))
        value, gate = self.gate(self.norm3(tokens)).chunk(2, dim=-1)
        tokens = tokens + self.feed_forward(value * F.gelu(gate))
        hidden = tokens.transpose(1, 2).unflatten(2, features.shape[-2:])
        return features + normed + self.project_out(hidden)


class DaClipUNet(nn.Module):
    """Predicts the noise in x_t from x_t, the degraded image, the step, and CLIP's two embeddings.

    Args:
        features: channels at full size.
        multipliers: of the channels after each level; every level but the last halves the size.
        content_dim: of the embeddings.
        attention_level: from this level down the content is attended to; above it attention is linear.
    """

    def __init__(self, features: int, multipliers: Sequence[int], content_dim: int, attention_level: int = 3) -> None:
        super().__init__()
        self.features = features
        time_dim = 4 * features
        widths = [features, *(features * multiplier for multiplier in multipliers)]
        last = len(multipliers) - 1

        def attention(dim: int, level: int) -> nn.Module:
            return ContentAttention(dim, content_dim) if level >= attention_level else LinearAttention(dim)

        self.embed = nn.Conv2d(6, features, 7, padding=3, bias=False)
        self.time = nn.Sequential(nn.Linear(features, time_dim), nn.GELU(), nn.Linear(time_dim, time_dim))
        self.prompt = nn.Parameter(torch.rand(1, time_dim))
        self.degradation = nn.Sequential(nn.Linear(content_dim, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.prompt_out = nn.Linear(time_dim, time_dim)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (dim, next_dim) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            down = nn.Conv2d(dim, next_dim, 4, 2, 1) if level < last else _conv3x3(dim, next_dim)
            blocks = [TimedResBlock(dim, dim, time_dim), TimedResBlock(dim, dim, time_dim)]
            self.downs.append(nn.ModuleList([*blocks, attention(dim, level), down]))
            up = nn.Conv2d(next_dim, dim, 3, padding=1) if level else _conv3x3(next_dim, dim)
            blocks = [TimedResBlock(next_dim + dim, next_dim, time_dim) for _ in range(2)]
            self.ups.insert(0, nn.ModuleList([*blocks, attention(next_dim, level), up]))
        self.middle1 = TimedResBlock(widths[-1], widths[-1], time_dim)
        self.middle_attention = ContentAttention(widths[-1], content_dim)
        self.middle2 = TimedResBlock(widths[-1], widths[-1], time_dim)
        self.last = TimedResBlock(2 * features, features, time_dim)
        self.output = nn.Conv2d(features, 3, 3, padding=1)

    def forward(
        self,
        state: Float[Tensor, "b 3 h w"],
        lq: Float[Tensor, "b 3 h w"],
        steps: Int[Tensor, "b"],
        content: Float[Tensor, "b d"],
        degradation: Float[Tensor, "b d"],
    ) -> Float[Tensor, "b 3 h w"]:
        time = self.time(time_embedding(steps, self.features).to(state.dtype))
        time = time + self.prompt_out(self.degradation(degradation).softmax(dim=-1) * self.prompt)
        first = hidden = self.embed(torch.cat([state - lq, lq], dim=1))
        skips = []
        level: Any
        for level in self.downs:
            block1, block2, attention, down = level
            skips.append(hidden := block1(hidden, time))
            skips.append(hidden := attention(block2(hidden, time), content))
            hidden = down(hidden)
        hidden = self.middle2(self.middle_attention(self.middle1(hidden, time), content), time)
        for index, level in enumerate(self.ups):
            block1, block2, attention, up = level
            hidden = block1(torch.cat([hidden, skips.pop()], dim=1), time)
            hidden = attention(block2(torch.cat([hidden, skips.pop()], dim=1), time), content)
            if index < len(self.ups) - 1:
                hidden = F.interpolate(hidden, scale_factor=2.0)
            hidden = up(hidden)
        return self.output(self.last(torch.cat([hidden, first], dim=1), time))
