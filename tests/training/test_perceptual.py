"""Which layers the perceptual losses look at."""

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from diffrestorer.training import perceptual
from diffrestorer.training.perceptual import PerceptualLoss, VGG16Features, VGG19Features, VGGFeatures


@pytest.mark.parametrize(
    ("features", "kind", "convolutions"),
    [(VGG19Features, nn.Conv2d, [2, 4, 8, 12, 16]), (VGG16Features, nn.ReLU, [2, 4, 7])],
)
def test_layers_are_those_of_the_papers(
    features: type[VGGFeatures], kind: type[nn.Module], convolutions: list[int]
) -> None:
    with torch.device("meta"):
        layers = get_model(features.network).features
    assert all(isinstance(layers[i], kind) for i in features.layers)
    counted = [sum(isinstance(layer, nn.Conv2d) for layer in layers[: i + 1]) for i in features.layers]
    assert counted == convolutions
    assert len(features.weights) == len(features.layers)


def test_transweathers_term_takes_the_images_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of three mean squared differences, of features of images in [0, 1] without ImageNet's statistics."""
    torch.manual_seed(0)
    vgg = get_model("vgg16")
    monkeypatch.setattr(perceptual, "_vgg_weights", lambda *_: vgg.state_dict())
    loss = PerceptualLoss("vgg16")
    restored, gt = torch.rand(2, 1, 3, 32, 32)
    terms, a, b = [], restored, gt
    with torch.no_grad():
        for number, layer in enumerate(vgg.features[:16]):
            a, b = layer(a), layer(b)
            if number in (3, 8, 15):
                terms.append((a - b).square().mean())
    torch.testing.assert_close(loss(restored, gt), sum(terms) / 3)


@pytest.mark.parametrize("network", ["vgg16", "vgg19"])
def test_a_missing_file_is_named(network: str) -> None:
    with pytest.raises(
        ValueError, match=rf"perceptual_weights=nowhere.pth is no file; it is torchvision's {network}-"
    ):
        PerceptualLoss(network, "nowhere.pth")
