"""The pretrained parts the method stands on: the VAE and CLIP's image encoder, behind images in [0, 1].

This is the only file where images leave [0, 1]: the VAE wants [-1, 1], CLIP its own mean and deviation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import InterpolationMode, resize

from diffrestorer.models.normalisation import normalise

PATCH = 8
"""Side in pixels of the square that one latent stands for."""


@dataclass(frozen=True)
class EncodedImage:
    """An image that has been through the VAE's encoder.

    Attributes:
        latents: scaled mode of the posterior, in float32.
        features: the encoder's features at 1/8 (after the mid block), 1/4 and 1/2 (before the downsamplers), then the
            VAE's own `extra_features`, if it has any. None for a large image, which is encoded by tiles, and a second
            time when it is decoded.
    """

    latents: Float[Tensor, "b l h8 w8"]
    features: tuple[Float[Tensor, "b _ _ _"], ...] | None


def encode_posterior(
    vae: AutoencoderKL, images: Float[Tensor, "b 3 h w"]
) -> DiagonalGaussianDistribution:
    """Encode images in [0, 1] (sides multiples of 8) to the distribution of their unscaled latents, in float32.

    A VAE in half precision, its own or autocast's, gives rounded moments. They leave it as float32: schedulers compute
    in the latents' type, and bfloat16 has no room for the noise of the first timesteps.
    """
    return DiagonalGaussianDistribution(vae.encode(images * 2 - 1).latent_dist.parameters.float())


def encode_image(vae: AutoencoderKL, images: Float[Tensor, "b 3 h w"]) -> EncodedImage:
    """Encode images in [0, 1] (sides multiples of 8) to scaled latents and the features the decoder refines with.

    A VAE class may add features of its own, by a method `extra_features` of images in [-1, 1]. A VAE after
    `enable_tiling()` encodes images whole all the same; only its decoder works by tiles.
    """
    # The encoder computes the features on its way to the latents: hooks pick them up.
    encoder = vae.encoder
    taps = (encoder.mid_block, encoder.down_blocks[2].resnets[-1], encoder.down_blocks[1].resnets[-1])
    features: dict[nn.Module, list[Float[Tensor, "_ _ _ _"]]] = {tap: [] for tap in taps}
    hooks = [
        tap.register_forward_hook(lambda tap, _, output: features[tap].append(output)) for tap in taps
    ]

    # Features of the VAE's own tiles could not be joined: see `tile` of the pipeline.
    tiled, vae.use_tiling = vae.use_tiling, False
    try:
        posterior = encode_posterior(vae, images)
    finally:
        vae.use_tiling = tiled
        for hook in hooks:
            hook.remove()

    # A VAE that slices batches has run once per image.
    found = [torch.cat(features[tap]) if len(features[tap]) > 1 else features[tap][0] for tap in taps]
    if hasattr(vae, "extra_features"):
        found.extend(vae.extra_features(images * 2 - 1))
    return EncodedImage(posterior.mode() * vae.config.scaling_factor, tuple(found))


def decode_latents(vae: AutoencoderKL, latents: Float[Tensor, "b l h8 w8"]) -> Float[Tensor, "b 3 h w"]:
    """Decode scaled latents with the VAE's own decoder to images in [0, 1] (not clamped), in float32."""
    unscaled = (latents / vae.config.scaling_factor).to(vae.dtype)
    return vae.decode(unscaled).sample.float() / 2 + 0.5


class ImageEncoder(ModelMixin, ConfigMixin):
    """CLIP's image encoder, built by open_clip: an image of any size to P_CLIP.

    Args:
        vision_cfg: open_clip's description of the tower; the default is OpenAI's ViT-L/14.
        embed_dim: width of P_CLIP.
        quick_gelu: OpenAI's activation (their weights need it).
        mean, std: of the images the tower was trained on.
    """

    @register_to_config
    def __init__(
        self,
        vision_cfg: dict[str, Any] | None = None,
        embed_dim: int = 768,
        quick_gelu: bool = True,
        mean: Sequence[float] = open_clip.OPENAI_DATASET_MEAN,
        std: Sequence[float] = open_clip.OPENAI_DATASET_STD,
    ) -> None:
        super().__init__()
        vision_cfg = vision_cfg or {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14}
        self.visual = self.build_tower(dict(vision_cfg), embed_dim, quick_gelu)
        self.image_size = vision_cfg["image_size"]

    def build_tower(self, vision_cfg: dict[str, Any], embed_dim: int, quick_gelu: bool) -> nn.Module:
        """Return open_clip's image tower with random weights."""
        unused_text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
        return open_clip.CLIP(embed_dim, vision_cfg, unused_text, quick_gelu=quick_gelu).visual

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """P_CLIP of images in [0, 1], in float32 whatever the tower computes in."""
        return self.visual(self.prepare(images)).float()

    def feature_maps(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Return the features of images in [0, 1] after each quarter of the tower: for adversarial heads.

        Of ViT-L/14 these are blocks 6, 12, 18 and 24, of a timm tower its last four stages.
        """
        tower = getattr(self.visual, "transformer", None)
        indices = (
            4 if tower is None else [len(tower.resblocks) * quarter // 4 - 1 for quarter in range(1, 5)]
        )
        visual: Any = self.visual
        found = visual.forward_intermediates(
            self.prepare(images), indices=indices, intermediates_only=True, output_fmt="NCHW"
        )
        return found["image_intermediates"]

    def prepare(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """Return images in [0, 1] as the tower takes them: resized whole to its square, nothing cropped away."""
        side = [self.image_size, self.image_size]
        if list(images.shape[-2:]) != side:
            images = resize(images, side, InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        return normalise(images, self.config.mean, self.config.std)


def degradation_similarity(
    image_embeddings: Float[Tensor, "b d"],
    text_embeddings: Float[Tensor, "n d"],
    logit_scale: float = 1.0,
) -> Float[Tensor, "b n"]:
    """Return the softmax over the cosine similarities of CLIP's image and text embeddings.

    Paper: Eq. 1 (Fig. 3). It states no temperature; CLIP's own is `logit_scale=100`.
    """
    similarity = F.normalize(image_embeddings, dim=-1) @ F.normalize(text_embeddings, dim=-1).T
    return (logit_scale * similarity).softmax(dim=-1)
