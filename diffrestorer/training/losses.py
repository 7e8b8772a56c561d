"""The paper's losses as functions of tensors. Batches are averaged, so that equal shards average to the whole."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def diffusion_loss(
    model_output: Float[Tensor, "b l h w"],
    target: Float[Tensor, "b l h w"],
) -> Float[Tensor, ""]:
    """Return L_diff, the mean squared error to the noise (or to the target of another `prediction_type`).

    Paper: Eq. 6.
    """
    return F.mse_loss(model_output.float(), target.float())


def degradation_loss(
    logits: Float[Tensor, "b k"],
    label: Int[Tensor, "b"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Return L_deg, the cross-entropy of the degradation classifier (section III-B).

    Args:
        label_smoothing: share of the probability that every class gets; the paper names none.
    """
    return F.cross_entropy(logits.float(), label, label_smoothing=label_smoothing)


def reconstruction_loss(
    control_image: Float[Tensor, "b 3 h w"],
    gt: Float[Tensor, "b 3 h w"],
) -> Float[Tensor, ""]:
    """Return L_rec, the mean squared error between the control decoder's image I_CD and the ground truth.

    Paper: Eq. 4.
    """
    return F.mse_loss(control_image.float(), gt.float())


def stage1_loss(
    diff: Float[Tensor, ""],
    deg: Float[Tensor, ""],
    rec: Float[Tensor, ""],
    lambda_deg: float = 1.0,
    lambda_rec: float = 1.0,
) -> Float[Tensor, ""]:
    """Return L = L_diff + lambda_1 L_deg + lambda_2 L_rec, both weights 1 in the paper.

    Paper: Eq. 7.
    """
    return diff + lambda_deg * deg + lambda_rec * rec


def decoder_loss(
    pixel: Float[Tensor, ""],
    perceptual: Float[Tensor, ""],
    adversarial: Float[Tensor, ""],
    lambda_perceptual: float = 0.1,
    lambda_adversarial: float = 0.001,
) -> Float[Tensor, ""]:
    """Return L_dec = L_den + lambda_3 L_per + lambda_4 L_adv, weights 0.1 and 0.001 in the paper.

    Paper: Eq. 8.
    """
    return pixel + lambda_perceptual * perceptual + lambda_adversarial * adversarial


def generator_hinge_loss(fake_scores: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Return L_adv of the decoder: minus the mean score of its images."""
    return -fake_scores.float().mean()


def discriminator_hinge_loss(
    real_scores: Float[Tensor, "b 1 h w"],
    fake_scores: Float[Tensor, "b 1 h w"],
) -> Float[Tensor, ""]:
    """Return the discriminator's hinge loss, to which real scores above 1 and fake scores below -1 add nothing."""
    real = F.relu(1 - real_scores.float()).mean()
    fake = F.relu(1 + fake_scores.float()).mean()
    return (real + fake) / 2


def psnr_loss(
    restored: Float[Tensor, "b 3 h w"],
    gt: Float[Tensor, "b 3 h w"],
) -> Float[Tensor, ""]:
    """Return minus the mean PSNR in dB of images in [0, 1] (NAFNet; mini's decoder)."""
    difference = restored.float() - gt.float()
    error = difference.square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(error + 1e-8).mean()


def pixel_loss(
    name: str,
    restored: Float[Tensor, "b 3 h w"],
    gt: Float[Tensor, "b 3 h w"],
) -> Float[Tensor, ""]:
    """Return the pixel loss named `mse`, `psnr` or `l1` of images in [0, 1]."""
    losses: dict[str, Callable[..., Float[Tensor, ""]]] = {
        "mse": F.mse_loss,
        "psnr": psnr_loss,
        "l1": F.l1_loss,
    }
    return losses[name](restored, gt)


def gradient_loss(
    name: str,
    restored: Float[Tensor, "b 3 h w"],
    gt: Float[Tensor, "b 3 h w"],
) -> Float[Tensor, ""]:
    """Return the pixel loss of that name between both images' differences of neighbouring pixels, down and across.

    A wrong tone costs nothing here, a wrong edge or the trace of a grid does.
    """
    losses = [pixel_loss(name, restored.diff(dim=dim), gt.diff(dim=dim)) for dim in (2, 3)]
    return torch.stack(losses).mean()
