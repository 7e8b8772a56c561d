"""The paper's losses as functions of tensors. Batches are averaged, so that equal shards average to the whole."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def diffusion_loss(model_output: Float[Tensor, "b l h w"], target: Float[Tensor, "b l h w"]) -> Float[Tensor, ""]:
    """L_diff: mean squared error against the noise (or, with another `prediction_type`, against its target).

    Paper: Eq. 6.
    """
    return F.mse_loss(model_output.float(), target.float())


def degradation_loss(logits: Float[Tensor, "b k"], label: Int[Tensor, "b"]) -> Float[Tensor, ""]:
    """L_deg: cross-entropy of the degradation classifier (section III-B)."""
    return F.cross_entropy(logits.float(), label)


def reconstruction_loss(control_image: Float[Tensor, "b 3 h w"], gt: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """L_rec: mean squared error between the control decoder's image I_CD and the ground truth.

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
    """L = L_diff + lambda_1 L_deg + lambda_2 L_rec, both weights 1.

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
    """L_dec = L_den + lambda_3 L_per + lambda_4 L_adv, weights 0.1 and 0.001.

    Paper: Eq. 8.
    """
    return pixel + lambda_perceptual * perceptual + lambda_adversarial * adversarial


def generator_hinge_loss(fake_scores: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """L_adv for the decoder: minus the mean score of its images."""
    return -fake_scores.float().mean()


def discriminator_hinge_loss(
    real_scores: Float[Tensor, "b 1 h w"], fake_scores: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, ""]:
    """Hinge loss of the discriminator: real scores above 1, fake scores below -1 cost nothing."""
    return (F.relu(1 - real_scores.float()).mean() + F.relu(1 + fake_scores.float()).mean()) / 2


def contrastive_loss(
    first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """InfoNCE between two views of the same photos: row i of `first` belongs to row i of `second` (mini's tower)."""
    logits = F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).T / temperature
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def psnr_loss(restored: Float[Tensor, "b 3 h w"], gt: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Minus the mean PSNR of the images in dB, for images in [0, 1] (NAFNet; mini's decoder)."""
    error = (restored.float() - gt.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(error + 1e-8).mean()
