"""The adversary of the decoder stage: a PatchGAN. It trains beside the decoder and is not part of the saved model."""

from jaxtyping import Float
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Three-layer PatchGAN: one score for each overlapping 70x70 patch.

    Without normalisation: BatchNorm's per-process statistics would make N processes differ from one.

    Args:
        num_layers: convolutions of stride 2.
        channels: width after the first; doubled by each further one, up to eight times.
    """

    def __init__(self, num_layers: int = 3, channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for i in range(1, num_layers + 1):
            out = channels * min(2**i, 8)
            layers += [nn.Conv2d(width, out, 4, 2 if i < num_layers else 1, 1), nn.LeakyReLU(0.2)]
            width = out
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 ph pw"]:
        """Scores of images in [0, 1]; above 0 says real."""
        return self.layers(images * 2 - 1)
