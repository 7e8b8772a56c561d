"""TransWeather and DA-CLIP once more, written as functions of tensors with the authors' names.

They follow the papers' equations with plain matrix products, and share no code with the package: a wrong number of
heads, a wrong epsilon, a control in the wrong place or a wrongly translated name shows as another image.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def conv(state: State, name: str, x: Tensor, **options: int) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)


def layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return (
        centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"]
        + state[f"{name}.bias"]
    )


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention head by head; (b, tokens, channels) each."""
    width = q.shape[-1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
        outputs.append(scores.softmax(dim=-1) @ v[..., part])
    return torch.cat(outputs, dim=-1)


def to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *size)


# TransWeather -------------------------------------------------------------------------------------------------------


def embed_patches(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    kernel = state[f"{name}.proj.weight"].shape[-1]
    x = conv(state, f"{name}.proj", x, stride=stride, padding=kernel // 2)
    return to_map(layer_norm(state, f"{name}.norm", to_tokens(x), 1e-5), x.shape[-2:])


def transformer_block(state: State, name: str, x: Tensor, heads: int, reduction: int) -> Tensor:
    size, tokens = x.shape[-2:], to_tokens(x)
    normed = layer_norm(state, f"{name}.norm1", tokens, 1e-6)

    # Weather queries are repeated for runs of tokens: token t has query floor(t * 48 / tokens).
    queries = state.get(f"{name}.attn.task_query")
    if queries is None:
        q = linear(state, f"{name}.attn.q", normed)
    else:
        index = torch.arange(tokens.shape[1]) * queries.shape[1] // tokens.shape[1]
        q = linear(state, f"{name}.attn.q", queries)[:, index].expand(tokens.shape)

    reduced = normed
    if reduction > 1:
        reduced = to_tokens(conv(state, f"{name}.attn.sr", to_map(normed, size), stride=reduction))
        reduced = layer_norm(state, f"{name}.attn.norm", reduced, 1e-5)
    k, v = linear(state, f"{name}.attn.kv", reduced).chunk(2, dim=-1)
    tokens = tokens + linear(state, f"{name}.attn.proj", attend(q, k, v, heads))

    hidden = linear(state, f"{name}.mlp.fc1", layer_norm(state, f"{name}.norm2", tokens, 1e-6))
    hidden = conv(
        state, f"{name}.mlp.dwconv.dwconv", to_map(hidden, size), padding=1, groups=hidden.shape[-1]
    )
    return to_map(tokens + linear(state, f"{name}.mlp.fc2", F.gelu(to_tokens(hidden))), size)


def blocks(
    state: State, block: str, norm: str, x: Tensor, count: int, heads: int, reduction: int
) -> Tensor:
    for i in range(count):
        x = transformer_block(state, f"{block}.{i}", x, heads, reduction)
    return to_map(layer_norm(state, norm, to_tokens(x), 1e-6), x.shape[-2:])


def transweather(state: State, images: Tensor) -> Tensor:
    """The published size: heads 1, 2, 4, 4 of the stages and 1, 2, 2 inside their patches."""
    x, inner, found = 2 * images - 1, None, []
    for stage, (heads, reduction) in enumerate(zip((1, 2, 4, 4), (4, 2, 2, 1), strict=True), start=1):
        x = embed_patches(state, f"Tenc.patch_embed{stage}", x, 4 if stage == 1 else 2)
        x = x if inner is None else x + inner
        if stage < 4:
            inner = embed_patches(state, f"Tenc.mini_patch_embed{stage}", x, 2)
            inner_heads = (1, 2, 2)[stage - 1]
            names = (f"Tenc.patch_block{stage}", f"Tenc.pnorm{stage}")
            inner = blocks(state, *names, inner, 1, inner_heads, reduction)
        x = blocks(state, f"Tenc.block{stage}", f"Tenc.norm{stage}", x, 2, heads, reduction)
        found.append(x)
    x = embed_patches(state, "Tdec.patch_embed1", x, 2)
    x = blocks(state, "Tdec.block1", "Tdec.norm1", x, 3, 8, 1)

    def double(name: str, x: Tensor) -> Tensor:
        name = f"convtail.{name}.conv2d"
        return F.conv_transpose2d(
            x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2, padding=1
        )

    def dense(level: int, x: Tensor) -> Tensor:
        hidden = conv(state, f"convtail.dense_{level}.0.conv1.conv2d", x, padding=1).relu()
        return x + 0.1 * conv(state, f"convtail.dense_{level}.0.conv2.conv2d", hidden, padding=1)

    # An odd size was rounded up: the last row and column of what is doubled go.
    x = double("convd32x", x)[..., : found[3].shape[2], : found[3].shape[3]] + found[3]
    x = double("convd16x", x)[..., : found[2].shape[2], : found[2].shape[3]]
    x = double("convd8x", dense(4, x) + found[2])
    x = double("convd4x", dense(3, x) + found[1])
    x = double("convd2x", dense(2, x) + found[0])
    x = double("convd1x", dense(1, x))
    return conv(state, "clean.conv2d", x, padding=1).tanh()


# DA-CLIP's controller -----------------------------------------------------------------------------------------------


def vision_tower(
    state: State, tower: str, transformer: str, images: Tensor, heads: int, controls: list[Tensor]
):
    """The embedding and what each block puts out; the last control is added after the first block, and so on."""
    x = conv(state, f"{tower}.conv1", images, stride=state[f"{tower}.conv1.weight"].shape[-1])
    first = state[f"{tower}.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, to_tokens(x)], dim=1) + state[f"{tower}.positional_embedding"]
    x = layer_norm(state, f"{tower}.ln_pre", x, 1e-5)
    outputs, controls, layer = [], list(controls), 0
    while f"{transformer}.resblocks.{layer}.ln_1.weight" in state:
        name = f"{transformer}.resblocks.{layer}"
        normed = layer_norm(state, f"{name}.ln_1", x, 1e-5)
        qkv = F.linear(normed, state[f"{name}.attn.in_proj_weight"], state[f"{name}.attn.in_proj_bias"])
        x = x + linear(state, f"{name}.attn.out_proj", attend(*qkv.chunk(3, dim=-1), heads))
        hidden = linear(state, f"{name}.mlp.c_fc", layer_norm(state, f"{name}.ln_2", x, 1e-5))
        x = x + linear(state, f"{name}.mlp.c_proj", F.gelu(hidden))
        outputs.append(x)
        if controls:
            x = x + controls.pop()
        layer += 1
    return layer_norm(state, f"{tower}.ln_post", x[:, 0], 1e-5) @ state[f"{tower}.proj"], outputs


def controller(state: State, images: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Content and degradation embeddings of images that CLIP's preprocessing has normalised."""
    inner = "visual_control.transformer"
    degradation, outputs = vision_tower(
        state, "visual_control", f"{inner}.transformer", images, heads, []
    )
    controls = [linear(state, f"{inner}.zero_modules.{i}", output) for i, output in enumerate(outputs)]
    content, _ = vision_tower(state, "clip.visual", "clip.visual.transformer", images, heads, controls)
    return content, degradation


# DA-CLIP's U-Net ----------------------------------------------------------------------------------------------------


def channel_norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.g"]


def residual_block(state: State, name: str, x: Tensor, time: Tensor) -> Tensor:
    scale, shift = linear(state, f"{name}.mlp.1", F.silu(time))[:, :, None, None].chunk(2, dim=1)
    hidden = F.silu(conv(state, f"{name}.block1.proj", x, padding=1) * (scale + 1) + shift)
    hidden = F.silu(conv(state, f"{name}.block2.proj", hidden, padding=1))
    return hidden + (conv(state, f"{name}.res_conv", x) if f"{name}.res_conv.weight" in state else x)


def linear_attention(state: State, name: str, x: Tensor) -> Tensor:
    """Four heads of 32 channels; softmax over q's channels and over k's pixels."""
    size, pixels = x.shape[-2:], x.shape[-1] * x.shape[-2]
    q, k, v = conv(state, f"{name}.to_qkv", x).flatten(2).chunk(3, dim=1)
    outputs = []
    for head in range(4):
        part = slice(32 * head, 32 * head + 32)
        weights = k[:, part].softmax(dim=2) @ v[:, part].transpose(1, 2) / pixels
        outputs.append(weights.transpose(1, 2) @ (q[:, part].softmax(dim=1) / math.sqrt(32)))
    x = conv(state, f"{name}.to_out.0", torch.cat(outputs, dim=1).reshape(len(x), -1, *size))
    return channel_norm(state, f"{name}.to_out.1", x)


def spatial_transformer(
    state: State, name: str, x: Tensor, content: Tensor, heads: int, groups: int
) -> Tensor:
    size, block = x.shape[-2:], f"{name}.transformer_blocks.0"
    normed = F.group_norm(x, groups, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"], eps=1e-6)
    tokens = to_tokens(conv(state, f"{name}.proj_in", normed))
    for number in (1, 2):
        hidden = layer_norm(state, f"{block}.norm{number}", tokens, 1e-5)
        source = hidden if number == 1 else content[:, None]
        attention = f"{block}.attn{number}"
        q = linear(state, f"{attention}.to_q", hidden)
        k, v = (linear(state, f"{attention}.to_{kind}", source) for kind in "kv")
        tokens = tokens + linear(state, f"{attention}.to_out.0", attend(q, k, v, heads))
    value, gate = linear(
        state, f"{block}.ff.net.0.proj", layer_norm(state, f"{block}.norm3", tokens, 1e-5)
    ).chunk(2, -1)
    tokens = tokens + linear(state, f"{block}.ff.net.2", value * F.gelu(gate))
    return x + conv(state, f"{name}.proj_out", to_map(tokens, size))


def attention(state: State, name: str, x: Tensor, content: Tensor) -> Tensor:
    """Whichever kind the level has, after a norm and around a skip. Heads have 32 channels."""
    normed = channel_norm(state, f"{name}.fn.norm", x)
    if f"{name}.fn.fn.to_qkv.weight" in state:
        return x + linear_attention(state, f"{name}.fn.fn", normed)
    width = x.shape[1]
    return x + spatial_transformer(
        state, f"{name}.fn.fn", normed, content, max(1, width // 32), min(32, width // 4)
    )


def unet(
    state: State, x: Tensor, lq: Tensor, steps: Tensor, content: Tensor, degradation: Tensor
) -> Tensor:
    """The noise in x; images are padded by reflection to multiples of two to the number of levels."""
    levels = len({name.split(".")[1] for name in state if name.startswith("downs.")})
    height, width = x.shape[-2:]
    pad = (0, -width % 2**levels, 0, -height % 2**levels)
    x = F.pad(torch.cat([x - lq, lq], dim=1), pad, mode="reflect")

    half = state["time_mlp.1.weight"].shape[1] // 2
    angles = steps[:, None] * torch.tensor([10000 ** (-i / (half - 1)) for i in range(half)])
    time = linear(state, "time_mlp.1", torch.cat([angles.sin(), angles.cos()], dim=1))
    time = linear(state, "time_mlp.3", F.gelu(time))
    mixture = linear(state, "text_mlp.2", F.silu(linear(state, "text_mlp.0", degradation))).softmax(
        dim=1
    )
    time = time + linear(state, "prompt_mlp", mixture * state["prompt"])

    x = first = conv(state, "init_conv", x, padding=3)
    skips = []
    for i in range(levels):
        x = residual_block(state, f"downs.{i}.0", x, time)
        skips.append(x)
        x = attention(state, f"downs.{i}.2", residual_block(state, f"downs.{i}.1", x, time), content)
        skips.append(x)
        x = (
            conv(state, f"downs.{i}.3", x, stride=2, padding=1)
            if i < levels - 1
            else conv(state, f"downs.{i}.3", x, padding=1)
        )
    x = attention(state, "mid_attn", residual_block(state, "mid_block1", x, time), content)
    x = residual_block(state, "mid_block2", x, time)
    for i in range(levels):
        x = residual_block(state, f"ups.{i}.0", torch.cat([x, skips.pop()], dim=1), time)
        x = residual_block(state, f"ups.{i}.1", torch.cat([x, skips.pop()], dim=1), time)
        x = attention(state, f"ups.{i}.2", x, content)
        if i < levels - 1:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = conv(state, f"ups.{i}.3.1", x, padding=1)
        else:
            x = conv(state, f"ups.{i}.3", x, padding=1)
    x = residual_block(state, "final_res_block", torch.cat([x, first], dim=1), time)
    return conv(state, "final_conv", x, padding=1)[..., :height, :width]
