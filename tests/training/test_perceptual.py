"""Which layers the perceptual losses look at, and where their weights come from."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from diffrestorer.config.composition import load
from diffrestorer.config.schema import DecoderConfig, StudentConfig
from diffrestorer.training import perceptual
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.perceptual import (
    PerceptualLoss,
    VGG16Features,
    VGG19Features,
    VGGFeatures,
    check_perceptual,
)
from diffrestorer.training.student import StudentTask


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


@pytest.mark.parametrize("network", ["vgg16", "vgg19", "lpips"])
def test_missing_weights_are_named_before_anything_loads(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is not there, and a download without a network, by every task that has such a loss."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(ValueError, match=r"nowhere.pth is no file"):
        check_perceptual(network, "nowhere.pth")
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(ValueError, match=r"can't be downloaded .*give perceptual_weights=FILE"):
        check_perceptual(network)

    if network == "vgg16":
        return  # of a compared method, which loads no model

    # The models that the tasks would load are not there either: they are never looked for.
    overrides = [f"model.perceptual={network}", "model.perceptual_weights=nowhere.pth"]
    for task, schema, source in (
        (DecoderTask, DecoderConfig, "stage1"),
        (StudentTask, StudentConfig, "teacher"),
    ):
        root = f"train_{schema.__name__.removesuffix('Config').lower()}"
        with pytest.raises(ValueError, match=r"nowhere.pth is no file"):
            task(load(root, schema, ["model=mini", f"{source}=/nowhere", *overrides]))


def test_nothing_is_fetched_for_other_networks() -> None:
    for network in ("none", "efficientnet_lite0"):
        check_perceptual(network)


def refuse(*_: object, **__: object) -> None:
    raise OSError("no network")
