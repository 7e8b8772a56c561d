"""The discriminator looks at 70x70 patches, each image on its own, and learns beside what it judges."""

import pytest
import torch
from torch import nn

from diffrestorer.training.discriminator import (
    PatchDiscriminator,
    StudentDiscriminator,
    adversarial_losses,
)


def test_receptive_field_is_70() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(channels=4)
    images = torch.rand(1, 3, 160, 160, requires_grad=True)
    scores = discriminator(images)
    middle = scores.shape[-1] // 2
    scores[0, 0, middle, middle].backward()
    rows, columns = images.grad.abs().sum(dim=(0, 1)).nonzero().unbind(1)
    assert rows.max() - rows.min() + 1 == 70
    assert columns.max() - columns.min() + 1 == 70


def test_scores_overlapping_patches_8_pixels_apart() -> None:
    with torch.device("meta"):
        assert PatchDiscriminator()(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)


def test_batch_equals_its_rows() -> None:
    """No statistics over the batch, so that N processes equal one."""
    discriminator = PatchDiscriminator(channels=4).train()
    images = torch.rand(3, 3, 64, 48)
    rows = torch.cat([discriminator(image[None]) for image in images])
    torch.testing.assert_close(discriminator(images), rows, rtol=1e-5, atol=1e-6)
    assert not list(discriminator.buffers())
    assert {type(layer) for layer in discriminator.layers} == {nn.Conv2d, nn.LeakyReLU}


def test_default_widths_are_those_of_the_70_pixel_patchgan() -> None:
    with torch.device("meta"):
        layers = PatchDiscriminator().layers
    assert [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)] == [
        64,
        128,
        256,
        512,
        1,
    ]


@pytest.mark.parametrize("heads", [0, 2])
def test_neither_loss_reaches_what_the_other_trains(heads: int) -> None:
    """Patches alone as in the decoder stage, and beside heads on features as in the student's."""
    torch.manual_seed(0)
    discriminator = StudentDiscriminator(4, [3] * heads) if heads else PatchDiscriminator(channels=4)
    fake = [torch.rand(2, 3, 64, 64, requires_grad=True), *torch.rand(heads, 2, 3, 8, 8)]
    real = [torch.rand(2, 3, 64, 64), *torch.rand(heads, 2, 3, 8, 8)]
    generator, own = adversarial_losses(discriminator, fake, real)

    # At the start scores are near 0, between the hinges.
    scores = discriminator(*fake)
    means = torch.stack([each.mean() for each in (scores if heads else [scores])])
    assert generator.item() == pytest.approx(-means.mean().item(), abs=1e-6)
    assert own.item() == pytest.approx(1, abs=0.3)

    weights = list(discriminator.parameters())
    by_generator = torch.autograd.grad(generator, [fake[0], *weights], allow_unused=True)
    assert by_generator[0].abs().sum() > 0
    assert all(gradient is None for gradient in by_generator[1:])
    by_own = torch.autograd.grad(own, [fake[0], *weights], allow_unused=True)
    assert by_own[0] is None
    assert all(gradient is not None for gradient in by_own[1:])
