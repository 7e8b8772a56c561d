"""The authors' checkpoints: names translated, tensors copied whole, anything else refused in one sentence."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_networks as reference
import torch
from soaking import some_now
from spandrel.architectures.NAFNet import NAFNet as SpandrelNAFNet
from torch import Tensor

from diffrestorer.baselines.airnet import AirNet
from diffrestorer.baselines.da_clip.model import DaClip
from diffrestorer.baselines.nafnet import NAFNet
from diffrestorer.baselines.protocol import Baseline
from diffrestorer.baselines.published import load_published
from diffrestorer.baselines.registry import BASELINES, load_baseline
from diffrestorer.baselines.transweather import TransWeather
from diffrestorer.models.components import ModelFolderError

RESTORMER_NAMES = {
    "patch_embed.proj.weight", "encoder_level1.0.norm1.body.weight", "encoder_level1.0.norm1.body.bias",
    "encoder_level1.3.attn.temperature", "encoder_level2.5.attn.qkv.weight", "encoder_level3.0.attn.qkv_dwconv.weight",
    "latent.7.attn.project_out.weight", "latent.0.ffn.project_in.weight", "decoder_level3.5.ffn.dwconv.weight",
    "decoder_level2.0.ffn.project_out.weight", "decoder_level1.3.norm2.body.weight", "refinement.3.attn.temperature",
    "down1_2.body.0.weight", "down2_3.body.0.weight", "down3_4.body.0.weight", "up4_3.body.0.weight",
    "up3_2.body.0.weight", "up2_1.body.0.weight", "reduce_chan_level3.weight", "reduce_chan_level2.weight",
    "output.weight",
}  # fmt: skip
NAMES: dict[str, set[str]] = {
    "restormer": RESTORMER_NAMES,
    "promptir": RESTORMER_NAMES | {
        "prompt1.prompt_param", "prompt2.linear_layer.bias", "prompt3.conv3x3.weight", "noise_level1.attn.temperature",
        "noise_level3.ffn.dwconv.weight", "reduce_noise_level2.weight",
    },
    "airnet": {
        "E.E.encoder_q.E_pre.backbone.0.weight", "E.E.encoder_k.E.1.shortcut.1.running_mean",
        "E.E.encoder_q.mlp.2.bias", "R.head.0.weight", "R.body.0.body.0.dgm1.dcn.weight",
        "R.body.4.body.4.dgm2.dcn.conv_offset_mask.bias",
        "R.body.2.body.1.dgm1.sft.conv_gamma.0.weight", "R.body.3.body.0.dgm2.sft.conv_beta.2.weight",
        "R.body.1.body.2.conv1.weight", "R.body.0.body.5.bias", "R.body.5.weight", "R.tail.0.weight",
    },
    "nafnet": {"intro.weight", "encoders.3.27.conv1.weight", "middle_blks.0.beta", "ups.0.0.weight", "ending.bias"},
    "transweather": {
        "Tenc.patch_embed1.proj.weight", "Tenc.patch_embed4.norm.bias", "Tenc.mini_patch_embed3.proj.bias",
        "Tenc.block1.1.attn.sr.weight", "Tenc.block2.0.attn.norm.weight", "Tenc.block4.1.mlp.dwconv.dwconv.weight",
        "Tenc.norm4.weight", "Tenc.patch_block3.0.attn.kv.bias", "Tenc.pnorm1.weight", "Tdec.patch_embed1.norm.weight",
        "Tdec.block1.2.attn.task_query", "Tdec.block1.0.mlp.fc2.weight", "Tdec.norm1.bias",
        "convtail.convd32x.conv2d.weight", "convtail.convd16x.conv2d.bias", "convtail.convd2x.conv2d.weight",
        "convtail.convd1x.conv2d.weight", "convtail.dense_4.0.conv1.conv2d.weight",
        "convtail.dense_1.0.conv2.conv2d.bias", "clean.conv2d.weight",
    },
    "da_clip": {
        "clip.visual.conv1.weight", "clip.visual.transformer.resblocks.11.attn.in_proj_weight", "clip.visual.proj",
        "visual_control.class_embedding", "visual_control.transformer.transformer.resblocks.0.ln_1.weight",
        "visual_control.transformer.zero_modules.11.bias", "logit_scale", "init_conv.weight", "time_mlp.3.bias",
        "prompt", "text_mlp.2.weight", "prompt_mlp.weight", "downs.0.0.mlp.1.weight", "downs.1.1.block2.proj.weight",
        "downs.0.2.fn.fn.to_qkv.weight", "downs.2.2.fn.fn.to_out.1.g", "downs.0.2.fn.norm.g", "downs.2.3.bias",
        "downs.3.2.fn.fn.norm.bias", "downs.3.2.fn.fn.transformer_blocks.0.attn1.to_out.0.bias",
        "downs.3.2.fn.fn.transformer_blocks.0.attn2.to_k.weight", "downs.3.2.fn.fn.proj_out.weight",
        "downs.3.2.fn.fn.transformer_blocks.0.ff.net.0.proj.bias", "downs.3.3.weight", "ups.0.0.res_conv.weight",
        "ups.0.2.fn.fn.transformer_blocks.0.ff.net.2.weight", "ups.0.3.1.bias", "ups.3.3.weight",
        "mid_block1.block1.proj.weight", "mid_attn.fn.fn.transformer_blocks.0.norm3.weight", "mid_block2.mlp.1.bias",
        "final_res_block.res_conv.weight", "final_conv.bias",
    },
}  # fmt: skip
"""Names that the authors' files hold."""


@pytest.mark.parametrize("method", BASELINES)
def test_our_tensors_have_the_authors_names(method: str) -> None:
    cls = BASELINES[method]
    with torch.device("meta"):
        names = list(cls().state_dict())
    ours = [name for name in names if not name.startswith(cls.own_tensors)]
    assert len(names) - len(ours) == (method == "da_clip"), "DA-CLIP's class embeddings are ours alone"
    theirs = [cls.authors_name(name) for name in ours]
    assert NAMES[method] <= set(theirs)
    assert len(set(theirs)) == len(ours), "no two of ours read the same tensor"
    parts = (
        "controller.",
        "unet.",
        "network.",
        "stages.",
        "attention",
        "feed_forward",
        "double",
        "residuals",
    )
    assert not [name for name in theirs if any(part in name for part in parts)], (
        "nothing of ours is left in them"
    )


def authors_state(model: Baseline, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors with the authors' names, as large as trained ones: matrices keep the size of what they map."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in model.state_dict().items():
        if not name.startswith(model.own_tensors):
            scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
            drawn = scale * torch.randn(value.shape, generator=generator)
            is_scale = value.ndim == 1 and name.endswith("weight")
            theirs = model.authors_name(name)
            state[theirs] = drawn + 1 if is_scale else drawn
            if theirs.endswith(".g"):
                state[theirs] = (drawn + 1).view(1, -1, 1, 1)
    return state


def images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height * width))


@pytest.mark.parametrize("size", some_now([((48, 80),), ((64, 96),), ((112, 64),)], 1))
def test_transweather_restores_as_the_authors_network(size: tuple[int, int], tmp_path: Path) -> None:
    """By the reference, at the published size; multiples of 16 that are none of 32 or 64 lose a row on the way up."""
    state = authors_state(TransWeather())
    unused = ("Tenc.mini_patch_embed4.proj.weight", "convtail.conv_output.conv2d.bias")
    whole = state | {name: torch.zeros(3) for name in unused}
    torch.save({f"module.{name}": value for name, value in whole.items()}, tmp_path / "best")
    ours, lq = load_baseline(tmp_path / "best", "transweather"), images(*size)
    assert isinstance(ours, TransWeather)
    with torch.no_grad():
        expected = reference.transweather(state, lq)
        torch.testing.assert_close(ours(lq), expected, rtol=0, atol=1e-5)
        assert expected.std() > 0.05, "the images tell the networks apart"
        assert torch.equal(ours.pad(lq), lq), "nothing is padded"


VIT = {
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "embed_dim": 12,
    "quick_gelu": False,
}
HEADS = 2


class SmallDaClip(DaClip):
    """DA-CLIP with the published number of levels and few channels."""

    @classmethod
    def of_authors_size(cls, state: Mapping[str, Tensor]) -> Baseline:
        return cls(VIT, features=8, multipliers=(1, 4, 4, 8), num_steps=3)


def da_clips_two_files(folder: Path) -> dict[str, Tensor]:
    """The authors' two files, with what else theirs hold; returns their tensors."""
    folder.mkdir(exist_ok=True)
    state = authors_state(SmallDaClip.of_authors_size({}))
    state["logit_scale"] = torch.tensor(4.0)
    clip = {
        name: value
        for name, value in state.items()
        if name.startswith(("clip.", "visual_control.", "logit"))
    }
    text = {"clip.token_embedding.weight": torch.zeros(3, 2), "clip.logit_scale": torch.tensor(4.6)}
    again = {
        name.removeprefix("clip."): value
        for name, value in clip.items()
        if name.startswith("clip.visual.")
    }
    whole = {
        "epoch": 50,
        "name": "daclip",
        "state_dict": clip | text | again,
        "optimizer": {"state": {}},
    }
    torch.save(whole, folder / "daclip_ViT-B-32.pt")
    torch.save(
        {name: value for name, value in state.items() if name not in clip}, folder / "universal-ir.pth"
    )
    (folder / "notes.bin").write_bytes(b"no weights")
    return state


def test_da_clip_is_read_from_its_two_files_and_equals_the_reference(tmp_path: Path) -> None:
    """Controls in reverse order, raw embeddings, padding to 16 at 40x56: by the reference, from either file."""
    state = da_clips_two_files(tmp_path)
    lq, noisy = images(40, 56), images(40, 56).flip(0) + 0.1
    for name in ("universal-ir.pth", "daclip_ViT-B-32.pt"):
        ours = load_published(SmallDaClip, "da_clip", tmp_path / name)
        assert isinstance(ours, DaClip)
        square = images(32, 32)
        content, degradation = ours.controller(square)
        normalised = ours.controller.clip.prepare(square)
        expected = reference.controller(state, normalised, HEADS)
        torch.testing.assert_close((content, degradation), expected, rtol=0, atol=1e-5)
        steps = torch.tensor([3, 70])
        with torch.no_grad():
            noise = ours.unet(noisy, lq, steps, content, degradation)
            wanted = reference.unet(state, noisy, lq, steps, content, degradation)
        torch.testing.assert_close(noise, wanted, rtol=1e-5, atol=1e-5)
        assert ours.controller.logit_scale == 4


def test_da_clips_missing_or_doubled_part_is_named(tmp_path: Path) -> None:
    da_clips_two_files(tmp_path)
    (tmp_path / "copy.pt").write_bytes((tmp_path / "daclip_ViT-B-32.pt").read_bytes())
    with pytest.raises(ModelFolderError, match="the file of the controlled CLIP is beside it 2 times"):
        load_published(SmallDaClip, "da_clip", tmp_path / "universal-ir.pth")
    for name in ("copy.pt", "universal-ir.pth"):
        (tmp_path / name).unlink()
    with pytest.raises(
        ModelFolderError, match="only a part of da_clip: the file of the U-Net is not beside it"
    ):
        load_published(SmallDaClip, "da_clip", tmp_path / "daclip_ViT-B-32.pt")


def small_nafnet() -> SpandrelNAFNet:
    """spandrel's network of an odd size, with weights off their zeros."""
    torch.manual_seed(0)
    network = SpandrelNAFNet(width=5, enc_blk_nums=[1, 2], middle_blk_num=3, dec_blk_nums=[2, 1]).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network


OPTIMIZER = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
LAYOUTS: dict[str, Any] = {
    "bare": lambda state: state,
    "data parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "params": lambda state: {"params": state},
    "params_ema": lambda state: {"params": {}, "params_ema": state},
    "net": lambda state: {"net": state, "optimizer": OPTIMIZER, "epoch": 12},
    "model": lambda state: {"model": state, "iteration": 3, "best": 31.5},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": OPTIMIZER},
    "nested": lambda state: {"state_dict": {"params": state}},
    "lightning": lambda state: {
        "state_dict": {f"net.{name}": value for name, value in state.items()},
        "epoch": 3, "global_step": 10, "pytorch-lightning_version": "2.1.0", "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": ""}}, "optimizer_states": [OPTIMIZER],
        "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.1]}], "hyper_parameters": {"lr": 2e-4},
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_wrapping_of_the_authors_is_read(layout: str, tmp_path: Path) -> None:
    theirs = small_nafnet()
    torch.save(LAYOUTS[layout](theirs.state_dict()), tmp_path / "x.pth")
    ours, lq = load_baseline(tmp_path / "x.pth", "nafnet"), images(18, 25, 1)
    assert isinstance(ours, NAFNet)
    with torch.no_grad():
        assert torch.equal(ours(ours.pad(lq))[..., :18, :25], theirs(lq)), (
            "spandrel pads by itself, with zeros"
        )


def test_airnets_file_is_read_whole(tmp_path: Path) -> None:
    model = AirNet()
    state = {
        AirNet.authors_name(name): torch.randn(value.shape)
        for name, value in model.state_dict().items()
    }
    torch.save(
        state | {"E.E.queue": torch.zeros(256, 8), "E.E.queue_ptr": torch.zeros(1)}, tmp_path / "x.pth"
    )
    for name, value in load_published(AirNet, "airnet", tmp_path / "x.pth").state_dict().items():
        assert torch.equal(value, state[AirNet.authors_name(name)].to(value.dtype)), name


def test_another_networks_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"intro.weight": torch.zeros(4, 3, 3, 3), "head.bias": torch.zeros(3)}, path)
    for method, message in (
        ("nafnet", r"is not nafnet's: \d+ tensors differ: intro.bias \(missing\)"),
        ("restormer", r"is not restormer's: \d+ tensors differ: patch_embed.proj.weight \(missing\)"),
        ("somebody", "somebody is none of the methods airnet, transweather"),
    ):
        with pytest.raises(ModelFolderError, match=message):
            load_baseline(path, method)
    torch.save({"head.bias": torch.zeros(3)}, path)
    with pytest.raises(ModelFolderError, match=r"is not nafnet's: intro\.weight is missing"):
        load_baseline(path, "nafnet")


HTML = b"<!DOCTYPE html><html><title>Quota exceeded</title></html>"
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"
)
BESIDE = {"state_dict": {"intro.weight": torch.zeros(4, 3, 3, 3)}}
NO_CHECKPOINTS: list[tuple[str, Any, str]] = [
    ("a numpy scalar", {**BESIDE, "best": np.float64(31.5)}, r"holds numpy\S+ beside its weights.*save its state dict"),
    ("a namespace", {**BESIDE, "args": argparse.Namespace(lr=1)}, "holds argparse.Namespace beside its weights"),
    ("a web page", HTML, "is a web page and not weights: .* download it with a browser"),
    ("an indented web page", b"\n\n  " + HTML.lower(), "is a web page and not weights"),
    ("a pointer", POINTER, "is a Git LFS pointer .* git lfs pull"),
    ("nothing", b"", "can't be read as weights: .* download it again"),
    ("noise", bytes(range(256)) * 4, "can't be read as weights: .* download it again"),
    ("half a file", "half", "can't be read as weights: .* download it again"),
    ("a list", [1, 2], "holds no state dict"),
    ("no tensors", {"epoch": 3, "lr": 0.1}, "holds no state dict: epoch is no tensor"),
    ("an empty dictionary", {}, "holds no state dict"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"), [row[1:] for row in NO_CHECKPOINTS], ids=[r[0] for r in NO_CHECKPOINTS]
)
def test_what_is_no_checkpoint_gets_one_sentence_with_a_remedy(
    content: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "half":
        torch.save(small_nafnet().state_dict(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        torch.save(content, path)
    with pytest.raises(ModelFolderError, match=message) as raised:
        load_baseline(path, "nafnet")
    text = str(raised.value)
    assert text.startswith(str(path))
    assert text.isprintable(), "one line, no escape codes"
    assert len(text) < 330 + len(str(path))
