"""CLIP's weights for DA-CLIP: LAION's with GELU, OpenAI's with QuickGELU, and no mixture of both."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor

from diffrestorer.baselines.da_clip.clip_weights import load_clip
from diffrestorer.models.backbones import ImageEncoder

VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny CLIP with both activations, registered with open_clip as ViT-B/32 is."""
    folder = tmp_path_factory.mktemp("configs")
    for name, quick in (("tiny-clip", False), ("tiny-clip-quickgelu", True)):
        described = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": quick}
        (folder / f"{name}.json").write_text(json.dumps(described))
    open_clip.add_model_config(folder)
    return "tiny-clip"


def encoder(quick_gelu: bool) -> ImageEncoder:
    torch.manual_seed(1)
    return ImageEncoder(VISION, embed_dim=12, quick_gelu=quick_gelu).eval()


def published(folder: Path, architecture: str, quick_gelu: bool) -> tuple[Path, Tensor, Tensor]:
    """A whole CLIP's file, images and their embeddings; OpenAI's numbers are half-precision ones."""
    torch.manual_seed(0)
    clip = open_clip.create_model(f"{architecture}-quickgelu" if quick_gelu else architecture).eval()
    with torch.no_grad():
        for parameter in clip.parameters() if quick_gelu else ():
            parameter.copy_(parameter.half().float())
    torch.save(clip.state_dict(), folder / "clip.pt")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        return folder / "clip.pt", images, clip.visual(encoder(quick_gelu).prepare(images))


@pytest.mark.parametrize("quick_gelu", [False, True], ids=["laion", "openai"])
def test_a_file_is_loaded_with_its_activation_and_refused_with_the_other(
    quick_gelu: bool, architecture: str, tmp_path: Path
) -> None:
    path, images, expected = published(tmp_path, architecture, quick_gelu)
    fits = encoder(quick_gelu)
    load_clip(fits, str(path), architecture)
    with torch.no_grad():
        torch.testing.assert_close(fits(images), expected, rtol=0, atol=1e-6)
        other = encoder(not quick_gelu)
        other.visual.load_state_dict(fits.visual.state_dict())
        assert (other(images) - expected).abs().max() > 1e-4, "silently wrong"
    message = r"OpenAI's, was trained with QuickGELU, and the network has GELU: .*quick_gelu:true"
    if not quick_gelu:
        message = r"LAION's, was trained with GELU, and the network has QuickGELU: .*quick_gelu:false"
    with pytest.raises(ValueError, match=message):
        load_clip(encoder(not quick_gelu), str(path), architecture)


@pytest.mark.parametrize(
    ("tag", "quick_gelu", "message"),
    [
        ("openai", False, "clip=openai was trained with QuickGELU, and the network has GELU"),
        (
            "laion2b_s34b_b79k",
            True,
            "clip=laion2b_s34b_b79k was trained with GELU, and the network has QuickGELU",
        ),
        ("laion400m_e32", False, "trained with QuickGELU"),
        (
            "nowhere.pt",
            False,
            "clip=nowhere.pt is neither a file nor a tag of open_clip's ViT-B-32: openai, laion",
        ),
    ],
)
def test_a_tag_with_the_other_activation_is_refused_before_anything_is_fetched(
    tag: str, quick_gelu: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_clip(encoder(quick_gelu), tag)


def test_a_file_of_something_else_is_one_sentence(architecture: str, tmp_path: Path) -> None:
    torch.save({"head.weight": torch.zeros(3, 3)}, tmp_path / "x.pt")
    with pytest.raises(
        ValueError, match=r"x\.pt can't be loaded \(.*\): give clip=FILE or FOLDER with a tiny-clip"
    ) as raised:
        load_clip(encoder(False), str(tmp_path / "x.pt"), architecture)
    assert "\n" not in str(raised.value)
