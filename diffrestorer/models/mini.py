"""The networks that only mini has: what makes a model of a few million parameters learn on a CPU.

The paper's modules know nothing of these. Each class here stands for one of theirs, named by a `*_class` key of
configs/model/mini.yaml, and adds one thing:

* `PatchAutoencoderKL`: a linear path around the VAE, so that it is a fair code before it is trained;
* `MiniImageEncoder`: statistics of an ImageNet tower's stages in place of CLIP's embedding;
* `MiniControlEncoder`: a path for the degraded image's latents;
* `MiniDecoder`: the detail that the linear path loses, and a refinement at the image's full size.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import timm
import torch
from diffusers import AutoencoderKL, ModelMixin  # noqa: F401 # diffusers finds the loading methods by ModelMixin here
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Decoder, Encoder
from jaxtyping import Float
from torch import Tensor, nn

from diffrestorer.models import backbones
from diffrestorer.models.backbones import PATCH, ImageEncoder
from diffrestorer.models.control import ControlEncoder
from diffrestorer.models.decoder import DegradationAwareDecoder
from diffrestorer.models.pixel_refinement import PixelRefinement

FIRST_LOG_VARIANCE = -8.0
"""Log variance of the latents before training: the linear path is already a fair code, and noise would drown it."""


def dct_patch_basis(num_components: int) -> Float[Tensor, "k 3 8 8"]:
    """Return an orthonormal basis of the smoothest 8x8 colour patches: means and first cosines of luma, chroma means.

    It stands in for the leading principal components of photos' patches and needs no photos.
    """
    # One-dimensional cosines of unit norm.
    x = torch.arange(PATCH, dtype=torch.float64)
    cosine = torch.stack([torch.cos(math.pi * (x + 0.5) * k / PATCH) for k in range(PATCH)])
    cosine = cosine / cosine.norm(dim=1, keepdim=True)

    # Luma and two chroma axes of unit norm.
    colour = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
    colour = colour / colour.norm(dim=1, keepdim=True)

    # The mean of each colour axis comes first, then the other luma patches from smooth to busy.
    pairs = [(u, v) for u in range(PATCH) for v in range(PATCH)]
    frequencies = sorted(pairs, key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair))
    order = [(0, frequencies[0]), (1, frequencies[0]), (2, frequencies[0])]
    order += [(0, frequency) for frequency in frequencies[1:]]

    patches = [
        torch.einsum("c,h,w->chw", colour[c], cosine[u], cosine[v])
        for c, (u, v) in order[:num_components]
    ]
    return torch.stack(patches).float()


class PatchEncoder(Encoder):
    """A VAE encoder beside a linear patch embedding, which is added to the latents' mean."""

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
    """A VAE decoder beside the transpose of the linear patch embedding."""

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
    """An AutoencoderKL with a linear path around encoder and decoder, so that a small one learns in minutes."""

    # Offloading by groups of layers loads the linear path when it runs, as `extra_features` runs it by itself.
    _group_offload_block_modules = [*AutoencoderKL._group_offload_block_modules, "shortcut"]

    @functools.wraps(AutoencoderKL.__init__)  # type: ignore[misc] # diffusers reads the saved config off this signature
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shared = {
            name: self.config[name]
            for name in (
                "block_out_channels",
                "layers_per_block",
                "norm_num_groups",
                "mid_block_add_attention",
            )
        }
        self.encoder = PatchEncoder(
            self.config.latent_channels, down_block_types=self.config.down_block_types, **shared
        )
        self.decoder = PatchDecoder(
            self.config.latent_channels, up_block_types=self.config.up_block_types, **shared
        )

    def extra_features(self, sample: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 3 h w"], ...]:
        """Return what `MiniDecoder` refines with besides the encoder's features, for images in [-1, 1].

        The first is the detail that the linear path loses, the second the image itself.
        """
        return sample - self.decoder.shortcut(self.encoder.shortcut(sample)), sample


class StageStatistics(nn.Module):
    """An ImageNet tower, summarised by mean and deviation of each stage and projected to an embedding.

    Means tell what a photo shows, deviations how sharp, noisy or flat it is. `fit` sets the projection;
    `ImageEncoderTask` may then train both. No other stage does.

    Args:
        model_name: of a timm EfficientNet; its weights come with the model folder.
        embed_dim: width of the embedding.
    """

    def __init__(self, model_name: str, embed_dim: int) -> None:
        super().__init__()
        self.tower = timm.create_model(model_name, pretrained=False, num_classes=0)
        widths = [_last_width(stage) for stage in self.tower.blocks]
        self.standardise = nn.BatchNorm1d(2 * sum(widths), affine=False)
        self.project = nn.Linear(2 * sum(widths), embed_dim)
        self.tower.requires_grad_(False)

    def train(self, mode: bool = True) -> "StageStatistics":
        """Set the projection's mode. The tower's BatchNorms keep their ImageNet statistics."""
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        statistics = self.statistics(images).to(self.project.weight.dtype)
        return self.project(self.standardise(statistics))

    def statistics(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b s2"]:
        """Return mean and deviation of every channel, stage after stage, in float32."""
        statistics = []
        for features in self._stages(images):
            deviation, mean = torch.std_mean(features.float(), dim=(2, 3), correction=0)
            statistics += [mean, deviation]
        return torch.cat(statistics, dim=1)

    @torch.no_grad()
    def fit(self, statistics: Float[Tensor, "n s2"]) -> None:
        """Set standardisation and projection to the leading principal components, each of unit variance.

        Args:
            statistics: of at least as many images as the embedding has numbers.

        Raises:
            ValueError: there are fewer.
        """
        count, embed_dim = len(statistics), self.project.out_features
        if count < embed_dim:
            raise ValueError(
                f"an embedding of {embed_dim} numbers can't be fitted to {count} images: raise image_encoder_batches"
            )

        # Every statistic counts alike, whatever its channel's size.
        mean, variance = self.standardise.running_mean, self.standardise.running_var
        assert mean is not None
        assert variance is not None
        mean.copy_(statistics.mean(0))
        variance.copy_(statistics.var(0))
        standardised = self.standardise.eval()(statistics)

        # The rows of `directions` are orthonormal, and `spread` / sqrt(count) is the deviation along each. Their signs
        # are the library's choice: the largest entry of each is made positive.
        _, spread, directions = torch.linalg.svd(standardised, full_matrices=False)
        directions = directions[:embed_dim]
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        scale = count**0.5 / spread[:embed_dim].clamp_min(torch.finfo(spread.dtype).tiny)
        self.project.weight.copy_(scale[:, None] * largest.sign() * directions)
        self.project.bias.zero_()

    def forward_intermediates(self, images: Float[Tensor, "b 3 s s"], **options: Any) -> dict[str, Any]:
        """Return the features of the last four stages, as timm's method of this name does; `options` are its own."""
        return {"image_intermediates": self._stages(images)[-4:]}

    def _stages(self, images: Float[Tensor, "b 3 s s"]) -> list[Float[Tensor, "b _ _ _"]]:
        features = self.tower.bn1(self.tower.conv_stem(images))
        stages = []
        for stage in self.tower.blocks:
            features = stage(features)
            stages.append(features)
        return stages


def _last_width(stage: nn.Sequential) -> int:
    """Return the number of channels that a stage of a timm EfficientNet ends with."""
    convolutions = [module for module in stage.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[-1].out_channels


class MiniImageEncoder(ImageEncoder):
    """`StageStatistics` in the place of CLIP's tower: `vision_cfg` names it, as `timm_model_name`."""

    def build_tower(self, vision_cfg: dict[str, Any], embed_dim: int, quick_gelu: bool) -> nn.Module:
        """Return the tower with random weights."""
        return StageStatistics(vision_cfg["timm_model_name"], embed_dim)


class MiniControlEncoder(ControlEncoder):
    """The control encoder, with the degraded image's latents added to its feature.

    Args:
        latent_channels: of the VAE.
        block_out_channels, degradation_dim, norm_num_groups, modulate: see `ControlEncoder`.
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: Sequence[int] = (64, 128, 256, 320),
        degradation_dim: int = 256,
        norm_num_groups: int = 32,
        modulate: bool = True,
        latent_channels: int = 4,
    ) -> None:
        super().__init__(block_out_channels, degradation_dim, norm_num_groups, modulate)
        self.latents_in = nn.Conv2d(latent_channels, block_out_channels[-1], 3, padding=1)

    def forward(
        self,
        lq: Float[Tensor, "b 3 h w"],
        degradation_embedding: Float[Tensor, "b d"],
        lq_latents: Float[Tensor, "b l h8 w8"] | None = None,
    ) -> Float[Tensor, "b c h8 w8"]:
        assert lq_latents is not None, "mini's control encoder takes the degraded image's latents"
        features = super().forward(lq, degradation_embedding, lq_latents)
        return features + self.latents_in(lq_latents.to(self.dtype))


class MiniDecoder(DegradationAwareDecoder):
    """The Degradation-aware Decoder of a `PatchAutoencoderKL`, with two further paths from the degraded image.

    Args:
        detail: whether the detail that the VAE's linear path loses is added to the image, times a number that P_D
            decides. It starts at zero.
        pixel_channels: widths of the refinement at full size, from half the image's size down; empty leaves it out.
        latent_channels, block_out_channels, layers_per_block, norm_num_groups, scaling_factor, use_post_quant_conv,
            mid_block_add_attention, degradation_dim, refine: see `DegradationAwareDecoder`.
    """

    plain_decoder = PatchDecoder

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        scaling_factor: float = 0.18215,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
        degradation_dim: int = 256,
        refine: bool = True,
        detail: bool = True,
        pixel_channels: Sequence[int] = (),
    ) -> None:
        super().__init__(
            latent_channels,
            block_out_channels,
            layers_per_block,
            norm_num_groups,
            scaling_factor,
            use_post_quant_conv,
            mid_block_add_attention,
            degradation_dim,
            refine,
        )

        # Both paths change nothing before they are trained.
        self.detail_weight = nn.Linear(degradation_dim, 1) if detail and refine else None
        if self.detail_weight is not None:
            for parameter in self.detail_weight.parameters():
                nn.init.zeros_(parameter)
        self.pixel_refinement = None
        if refine and len(pixel_channels) > 0:
            self.pixel_refinement = PixelRefinement(pixel_channels, degradation_dim, norm_num_groups)

    def forward(
        self,
        latents: Float[Tensor, "b l h8 w8"],
        lq_features: Sequence[Float[Tensor, "b _ _ _"]],
        degradation_embedding: Float[Tensor, "b d"],
        fidelity: float | Float[Tensor, ""] = 1.0,
    ) -> Float[Tensor, "b 3 h w"]:
        """Decode as `DegradationAwareDecoder` does; `lq_features` also has `PatchAutoencoderKL.extra_features`."""
        # The paper's decoder, beside the VAE's linear path.
        latents = self.unscale(latents)
        features = self.decode_features(latents, lq_features, degradation_embedding, fidelity)
        images = self.to_pixels(features) + self.decoder.shortcut(latents)

        # What the degraded image adds at full size.
        if self.detail_weight is not None:
            weight = self.detail_weight(degradation_embedding)[..., None, None]
            images = images + fidelity * weight * lq_features[3]
        if self.pixel_refinement is not None:
            images = images + fidelity * self.pixel_refinement(
                images, lq_features[4], degradation_embedding
            )
        return images.float() / 2 + 0.5


# Model folders that were saved before this module existed name another one for mini's VAE.
backbones.PatchAutoencoderKL = PatchAutoencoderKL  # type: ignore[attr-defined]
