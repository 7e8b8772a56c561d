"""The losses by hand, and their averages over equal shards of a batch."""

import math

import pytest
import torch

from diffrestorer.training.losses import (
    decoder_loss,
    degradation_loss,
    diffusion_loss,
    discriminator_hinge_loss,
    generator_hinge_loss,
    gradient_loss,
    reconstruction_loss,
    stage1_loss,
)


def test_diffusion_loss_is_the_mean_squared_error() -> None:
    output = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2)
    target = torch.tensor([1.0, 0.0, 0.0, 4.0]).view(1, 1, 2, 2)
    assert diffusion_loss(output, target).item() == pytest.approx((4 + 9) / 4)


def test_reconstruction_loss_is_the_mean_squared_error() -> None:
    gt = torch.zeros(2, 3, 4, 4)
    control_image = gt.clone()
    control_image[0, 0] = 0.5
    assert reconstruction_loss(control_image, gt).item() == pytest.approx(0.25 / 6)


def test_degradation_loss_is_the_cross_entropy() -> None:
    logits = torch.zeros(2, 8)
    logits[1, 3] = math.log(9)
    expected = (math.log(8) - math.log(9 / 16)) / 2
    assert degradation_loss(logits, torch.tensor([5, 3])).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["mse", "l1", "psnr"])
def test_gradients_tell_a_grid_from_a_tone(name: str) -> None:
    """A tone that is 0.2 off costs what no error does; a faint grid of eight pixels costs more, either way it runs."""
    gt = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    nothing = gradient_loss(name, gt, gt)
    assert gradient_loss(name, gt + 0.2, gt).item() == pytest.approx(nothing.item(), abs=1e-5)
    lines = 0.02 * (torch.arange(32) % 8 == 0).float()[:, None]
    for grid in (lines.expand(32, 48), lines[:, 0].repeat(2)[:48].expand(32, 48)):
        assert gradient_loss(name, gt + grid, gt) > nothing + 1e-5
    halves = gt.diff(dim=2).square().mean() + gt.diff(dim=3).square().mean()
    assert gradient_loss("mse", 3 * gt, 2 * gt).item() == pytest.approx(halves.item() / 2)


def test_eq_7_weighs_its_terms_by_1() -> None:
    diff, deg, rec = torch.tensor(1.0), torch.tensor(10.0), torch.tensor(100.0)
    assert stage1_loss(diff, deg, rec).item() == 111
    assert stage1_loss(diff, deg, rec, lambda_deg=0.0).item() == 101
    assert stage1_loss(diff, deg, rec, lambda_rec=0.0).item() == 11
    assert stage1_loss(diff, deg, rec, 0.5, 0.25).item() == 31


def test_eq_8_weighs_its_terms_by_a_tenth_and_a_thousandth() -> None:
    pixel, perceptual, adversarial = torch.tensor(1.0), torch.tensor(1.0), torch.tensor(1.0)
    assert decoder_loss(pixel, perceptual, adversarial).item() == pytest.approx(1 + 0.1 + 0.001)
    assert decoder_loss(pixel, perceptual, -adversarial, 0.0, 0.5).item() == pytest.approx(0.5)


def test_config_s_weights_are_the_paper_s() -> None:
    from diffrestorer.config.composition import load
    from diffrestorer.config.schema import DecoderConfig, Stage1Config

    stage1, decoder = load("train_stage1", Stage1Config), load("train_decoder", DecoderConfig)
    assert (stage1.lambda_deg, stage1.lambda_rec) == (1.0, 1.0)
    assert (decoder.lambda_perceptual, decoder.lambda_adversarial) == (0.1, 0.001)


def scores(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(len(values), 1, 1, 1)


@pytest.mark.parametrize(
    ("real", "fake", "expected"),
    [
        ((1.0, 5.0), (-1.0, -9.0), 0.0),  # beyond the margins nothing is paid
        ((0.0, 0.0), (0.0, 0.0), 1.0),
        ((-1.0, 1.0), (-1.0, -1.0), 0.5),
        ((1.0, 1.0), (2.0, -1.0), 0.75),
    ],
)
def test_discriminator_s_hinge(
    real: tuple[float, ...], fake: tuple[float, ...], expected: float
) -> None:
    assert discriminator_hinge_loss(scores(*real), scores(*fake)).item() == pytest.approx(expected)


def test_generator_s_hinge_is_minus_the_mean_score() -> None:
    assert generator_hinge_loss(scores(3.0, -1.0)).item() == -1.0


def test_equal_shards_average_to_the_whole() -> None:
    torch.manual_seed(0)
    latents, images, maps = (
        torch.randn(2, 6, 4, 5, 5),
        torch.rand(2, 6, 3, 8, 8),
        torch.randn(2, 6, 1, 3, 3),
    )
    logits, label = torch.randn(6, 8), torch.randint(8, (6,))
    losses = {
        "diff": lambda rows: diffusion_loss(latents[0][rows], latents[1][rows]),
        "deg": lambda rows: degradation_loss(logits[rows], label[rows]),
        "rec": lambda rows: reconstruction_loss(images[0][rows], images[1][rows]),
        "generator": lambda rows: generator_hinge_loss(maps[0][rows]),
        "discriminator": lambda rows: discriminator_hinge_loss(maps[0][rows], maps[1][rows]),
    }
    shards = [slice(0, 2), slice(2, 4), slice(4, 6)]
    for name, loss in losses.items():
        averaged = torch.stack([loss(shard) for shard in shards]).mean()
        torch.testing.assert_close(averaged, loss(slice(0, 6)), msg=name)


def test_half_precision_is_summed_in_float32() -> None:
    """bf16 keeps 8 bits: a mean over many values must not be taken in it."""
    output = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    loss = diffusion_loss(output, torch.full((1, 1, 64, 64), 0.9))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.01, rel=1e-5)
