"""The authors' checkpoints: names translated, tensors copied whole, another network's file refused."""

from pathlib import Path

import pytest
import torch
from spandrel.architectures.NAFNet import NAFNet as SpandrelNAFNet

from diffrestorer.baselines.airnet import AirNet
from diffrestorer.baselines.published import CLASSES, authors_name, load_published
from diffrestorer.baselines.registry import load_baseline
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
}  # fmt: skip
"""Names that the authors' files hold."""


@pytest.mark.parametrize("method", CLASSES)
def test_our_tensors_have_the_authors_names(method: str) -> None:
    with torch.device("meta"):
        ours = list(CLASSES[method]().state_dict())
    theirs = [authors_name(method, name) for name in ours]
    assert NAMES[method] <= set(theirs)
    assert len(set(theirs)) == len(ours), "no two of ours read the same tensor"


def test_nafnet_of_any_size_is_read_and_restores_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = SpandrelNAFNet(width=5, enc_blk_nums=[1, 2], middle_blk_num=3, dec_blk_nums=[2, 1]).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    torch.save({"params": {f"module.{name}": value for name, value in theirs.state_dict().items()}}, tmp_path / "x.pth")
    ours = load_baseline(tmp_path / "x.pth", "nafnet")
    lq = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(ours(lq), theirs(lq))


def test_airnets_file_is_read_whole(tmp_path: Path) -> None:
    model = AirNet()
    state = {authors_name("airnet", name): torch.randn(value.shape) for name, value in model.state_dict().items()}
    torch.save(state | {"E.E.queue": torch.zeros(256, 8), "E.E.queue_ptr": torch.zeros(1)}, tmp_path / "x.pth")
    for name, value in load_published("airnet", tmp_path / "x.pth").state_dict().items():
        assert torch.equal(value, state[authors_name("airnet", name)].to(value.dtype)), name


def test_another_networks_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"intro.weight": torch.zeros(4, 3, 3, 3), "head.bias": torch.zeros(3)}, path)
    with pytest.raises(ModelFolderError, match=r"is not nafnet's: \d+ tensors differ: intro.bias \(missing\)"):
        load_published("nafnet", path)
    with pytest.raises(ModelFolderError, match="is not airnet's"):
        load_published("airnet", path)
    with pytest.raises(ModelFolderError, match="the authors' checkpoints of da_clip can't be read here"):
        load_published("da_clip", path)
    path.write_bytes(b"no weights")
    with pytest.raises(ModelFolderError, match="can't be read as weights only"):
        load_published("restormer", path)
    torch.save([1, 2], path)
    with pytest.raises(ModelFolderError, match="holds no state dict"):
        load_published("restormer", path)
