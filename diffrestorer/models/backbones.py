"""The pretrained parts the method stands on: the VAE and CLIP's image encoder, behind images in [0, 1].

This is the only file where images leave [0, 1]: the VAE wants [-1, 1], CLIP its own mean and deviation.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Decoder, DiagonalGaussianDistribution, Encoder
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import InterpolationMode, resize

from diffrestorer.models.normalisation import normalise

PATCH = 8
"""Side in pixels of the square that one latent stands for (SD 1.5's VAE and mini's)."""

FIRST_LOG_VARIANCE = -8.0
"""Of mini's latents before training: the linear path alone is a fair code, which noise would only drown."""


def dct_patch_basis(num_components: int) -> Float[Tensor, "k 3 8 8"]:
    """Orthonormal basis of the smoothest 8x8 colour patches: means and first cosines of luma, means of chroma.

    A stand-in for the leading principal components of photographs' patches that needs no photographs.
    """
    x = torch.arange(PATCH, dtype=torch.float64)
    cosine = torch.stack([torch.cos(math.pi * (x + 0.5) * k / PATCH) for k in range(PATCH)])
    cosine = cosine / cosine.norm(dim=1, keepdim=True)
    colour = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
    colour = colour / colour.norm(dim=1, keepdim=True)
    frequencies = sorted(((u, v) for u in range(PATCH) for v in range(PATCH)), key=lambda f: (f[0] ** 2 + f[1] ** 2, f))
    order = [(0, frequencies[0]), (1, frequencies[0]), (2, frequencies[0])] + [(0, f) for f in frequencies[1:]]
    patches = [torch.einsum("c,h,w->chw", colour[c], cosine[u], cosine[v]) for c, (u, v) in order[:num_components]]
    return torch.stack(patches).float()


class PatchEncoder(Encoder):
    """The VAE's encoder beside a linear patch embedding that is added to the latents' mean (mini only)."""

    def __init__(self, latent_channels: int, **encoder_config: Any) -> None:
        super().__init__(out_channels=latent_channels, **encoder_config)
        self.shortcut = nn.Conv2d(3, latent_channels, PATCH, stride=PATCH)
        with torch.no_grad():
            self.shortcut.weight.copy_(dct_patch_basis(latent_channels))
            for start in (self.shortcut.bias, *self.conv_out.parameters()):
                nn.init.zeros_(start)
            self.conv_out.bias[latent_channels:] = FIRST_LOG_VARIANCE

    def forward(self, sample: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b l2 h8 w8"]:
        mean, log_variance = super().forward(sample).chunk(2, dim=1)
        return torch.cat([mean + self.shortcut(sample), log_variance], dim=1)


class PatchDecoder(Decoder):
    """The VAE's decoder beside the transpose of the linear patch embedding (mini only)."""

    def __init__(self, in_channels: int, **decoder_config: Any) -> None:
        super().__init__(in_channels=in_channels, **decoder_config)
        self.shortcut = nn.ConvTranspose2d(in_channels, 3, PATCH, stride=PATCH)
        with torch.no_grad():
            self.shortcut.weight.copy_(dct_patch_basis(in_channels))
            for start in (self.shortcut.bias, *self.conv_out.parameters()):
                nn.init.zeros_(start)

    def forward(
        self, sample: Float[Tensor, "b l h8 w8"], latent_embeds: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        return super().forward(sample, latent_embeds) + self.shortcut(sample)


class PatchAutoencoderKL(AutoencoderKL):
    """AutoencoderKL with a linear path around encoder and decoder: a small one learns in minutes (mini only)."""

    # Offloading by groups of layers loads the linear path when it runs, as `lost_detail` runs it by itself.
    _group_offload_block_modules = [*AutoencoderKL._group_offload_block_modules, "shortcut"]

    @functools.wraps(AutoencoderKL.__init__)  # type: ignore[misc] # diffusers reads the saved config off this signature
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shared = {
            name: self.config[name]
            for name in ("block_out_channels", "layers_per_block", "norm_num_groups", "mid_block_add_attention")
        }
        self.encoder = PatchEncoder(
            self.config.latent_channels, down_block_types=self.config.down_block_types, **shared
        )
        self.decoder = PatchDecoder(self.config.latent_channels, up_block_types=self.config.up_block_types, **shared)

    def lost_detail(self, sample: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """What of images in [-1, 1] does not come back through the linear path."""
        return sample - self.decoder.shortcut(self.encoder.shortcut(sample))


@dataclass(frozen=True)
class EncodedImage:
    """An image through the VAE's encoder, once.

    Attributes:
        latents: scaled mode of the posterior, in float32.
        features: the encoder's features at 1/8 (after the mid block), 1/4 and 1/2 (before the downsamplers), and of a
            `PatchAutoencoderKL` the detail that its linear path loses, (b, 3, h, w); None for a large image, which is
            encoded by tiles, and again when it is decoded.
    """

    latents: Float[Tensor, "b l h8 w8"]
    features: tuple[Float[Tensor, "b _ _ _"], ...] | None


def encode_posterior(vae: AutoencoderKL, images: Float[Tensor, "b 3 h w"]) -> DiagonalGaussianDistribution:
    """Encode images in [0, 1] (sides multiples of 8) to the distribution of their unscaled latents, in float32.

    A VAE in half precision, its own or autocast's, gives rounded moments. They leave it as float32: schedulers compute
    in the latents' type, and bfloat16 has no room for the noise of the first timesteps.
    """
    return DiagonalGaussianDistribution(vae.encode(images * 2 - 1).latent_dist.parameters.float())


def encode_image(vae: AutoencoderKL, images: Float[Tensor, "b 3 h w"]) -> EncodedImage:
    """Encodes images in [0, 1] (sides multiples of 8): scaled latents, and the features the decoder refines with."""
    encoder = vae.encoder
    taps = (encoder.mid_block, encoder.down_blocks[2].resnets[-1], encoder.down_blocks[1].resnets[-1])
    features: dict[nn.Module, Float[Tensor, "b _ _ _"]] = {}
    hooks = [tap.register_forward_hook(lambda tap, _, output: features.__setitem__(tap, output)) for tap in taps]
    try:
        posterior = encode_posterior(vae, images)
    finally:
        for hook in hooks:
            hook.remove()
    found = [features[tap] for tap in taps]
    if isinstance(vae, PatchAutoencoderKL):
        found.append(vae.lost_detail(images * 2 - 1))
    return EncodedImage(posterior.mode() * vae.config.scaling_factor, tuple(found))


def decode_latents(vae: AutoencoderKL, latents: Float[Tensor, "b l h8 w8"]) -> Float[Tensor, "b 3 h w"]:
    """Decodes scaled latents with the VAE's own decoder to images in [0, 1] (not clamped), in float32."""
    unscaled = (latents / vae.config.scaling_factor).to(vae.dtype)
    return vae.decode(unscaled).sample.float() / 2 + 0.5


class ImageEncoder(ModelMixin, ConfigMixin):
    """CLIP's image encoder, built by open_clip: an image of any size to P_CLIP.

    Args:
        vision_cfg: open_clip's description of the tower; the default is OpenAI's ViT-L/14. A `timm_model_name` in it
            makes a timm tower (mini's).
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
        unused_text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
        self.visual = open_clip.CLIP(embed_dim, dict(vision_cfg), unused_text, quick_gelu=quick_gelu).visual
        self.image_size = vision_cfg["image_size"]

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """P_CLIP of images in [0, 1], in float32 whatever the tower computes in."""
        return self.visual(self.prepare(images)).float()

    def feature_maps(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Return the features of images in [0, 1] after each quarter of the tower: for adversarial heads.

        Of ViT-L/14 these are blocks 6, 12, 18 and 24, of a timm tower its last four stages.
        """
        tower = getattr(self.visual, "transformer", None)
        indices = 4 if tower is None else [len(tower.resblocks) * quarter // 4 - 1 for quarter in range(1, 5)]
        found = self.visual.forward_intermediates(
            self.prepare(images), indices=indices, intermediates_only=True, output_fmt="NCHW"
        )
        return found["image_intermediates"]

    def prepare(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """Images in [0, 1] as the tower takes them: the whole image as CLIP's square, nothing is cropped away."""
        side = [self.image_size, self.image_size]
        if list(images.shape[-2:]) != side:
            images = resize(images, side, InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        return normalise(images, self.config.mean, self.config.std)


def degradation_similarity(
    image_embeddings: Float[Tensor, "b d"], text_embeddings: Float[Tensor, "n d"], logit_scale: float = 1.0
) -> Float[Tensor, "b n"]:
    """Softmax over the cosine similarities of CLIP's image and text embeddings.

    Paper: Eq. 1 (Fig. 3). It states no temperature; CLIP's own is `logit_scale=100`.
    """
    similarity = F.normalize(image_embeddings, dim=-1) @ F.normalize(text_embeddings, dim=-1).T
    return (logit_scale * similarity).softmax(dim=-1)
