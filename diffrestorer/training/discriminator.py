"""The discriminators of the decoder stage and of the student. They train beside these and are not saved."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from diffrestorer.training.losses import discriminator_hinge_loss, generator_hinge_loss


class PatchDiscriminator(nn.Module):
    """A three-layer PatchGAN with one score per overlapping patch of 70x70 pixels.

    It has no normalisation, since BatchNorm's statistics are per process and would make N processes differ from one.

    Args:
        num_layers: convolutions of stride 2.
        channels: width after the first convolution; doubled by each further one, up to eight times.
    """

    def __init__(self, num_layers: int = 3, channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]

        # The last of these convolutions keeps the size.
        width = channels
        for i in range(1, num_layers + 1):
            out = channels * min(2**i, 8)
            stride = 2 if i < num_layers else 1
            layers.append(nn.Conv2d(width, out, 4, stride, 1))
            layers.append(nn.LeakyReLU(0.2))
            width = out

        layers.append(nn.Conv2d(width, 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 ph pw"]:
        """Return the scores of images in [0, 1]; above 0 means real."""
        return self.layers(images * 2 - 1)


class FeatureHeads(nn.Module):
    """1x1 convolutions with spectral normalisation, one map of scores per map of frozen features.

    A head has a single output, so its weight is a vector and one power iteration is exact: scores depend neither on how
    often the heads ran nor on the number of processes.

    Args:
        widths: channels of each feature map.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        heads = [spectral_norm(nn.Conv2d(width, 1, 1)) for width in widths]
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b 1 _ _"]]:
        """Return every head's scores of its own features."""
        return [head(own) for head, own in zip(self.heads, features, strict=True)]


class StudentDiscriminator(nn.Module):
    """The PatchGAN beside heads on the frozen image encoder's features: D_k of the student's losses.

    Args:
        channels: of the PatchGAN.
        widths: of the image encoder's features.
    """

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.patches = PatchDiscriminator(channels=channels)
        self.heads = FeatureHeads(widths)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        *features: Float[Tensor, "b _ _ _"],
    ) -> list[Float[Tensor, "b 1 _ _"]]:
        """Return every D_k's scores of images in [0, 1] and their features; above 0 means real."""
        return [self.patches(images), *self.heads(features)]


def adversarial_losses(
    discriminator: nn.Module,
    fake: Sequence[Float[Tensor, "b _ _ _"]],
    real: Sequence[Float[Tensor, "b _ _ _"]],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the hinge loss of what made the fake images and the discriminator's own, each a mean over all D_k.

    One backward pass serves both: the first takes the discriminator's weights as constants, the second the images.

    Args:
        discriminator: returns the scores of one D_k, or a list of several.
        fake: what it takes for restored images: the images in [0, 1], then features of them.
        real: the same for clean images.
    """
    constants = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    fooled = _listed(functional_call(discriminator, constants, tuple(fake)))
    generator = torch.stack([generator_hinge_loss(scores) for scores in fooled]).mean()

    real_scores = _listed(discriminator(*real))
    fake_scores = _listed(discriminator(*(tensor.detach() for tensor in fake)))
    losses = [discriminator_hinge_loss(*own) for own in zip(real_scores, fake_scores, strict=True)]
    return generator, torch.stack(losses).mean()


def _listed(
    scores: Float[Tensor, "b 1 _ _"] | list[Float[Tensor, "b 1 _ _"]],
) -> list[Float[Tensor, "b 1 _ _"]]:
    return [scores] if isinstance(scores, Tensor) else scores
