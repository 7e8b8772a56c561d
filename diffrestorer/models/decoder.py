"""The Degradation-aware Decoder (section III-D): the VAE's decoder, refined by the degraded image's own features."""

from collections.abc import Sequence
from typing import Any

from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Decoder
from jaxtyping import Float
from torch import Tensor, nn

from diffrestorer.models.blocks import DegradationAwareRefinementBlock


class DegradationAwareDecoder(ModelMixin, ConfigMixin):
    """A copy of the VAE's decoder with a DRB at 1/8, 1/4 and 1/2 of the image's size.

    Build it with `from_vae`: it then returns what the VAE's decoder returns, until it is trained.

    Args:
        latent_channels: channels of the latents.
        block_out_channels: the VAE's widths, from full size to 1/8.
        layers_per_block: the VAE's.
        norm_num_groups: of every GroupNorm.
        scaling_factor: the VAE's; latents are divided by it before they are decoded.
        use_post_quant_conv: whether the VAE has that 1x1 convolution before its decoder (SD's has).
        mid_block_add_attention: the VAE's.
        degradation_dim: width of P_D.
        refine: False leaves the DRBs out (ablation `no_drb`: a finetuned plain decoder).
    """

    plain_decoder: type[Decoder] = Decoder
    """Class of the VAE's decoder."""

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
    ) -> None:
        super().__init__()

        # The VAE's decoder, layer by layer.
        widths = tuple(block_out_channels)
        self.decoder = self.plain_decoder(
            in_channels=latent_channels,
            out_channels=3,
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            mid_block_add_attention=mid_block_add_attention,
        )
        self.post_quant_conv = (
            nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else None
        )

        # Decoder features after the mid block (1/8), the first (1/4) and the second up block (1/2), beside the
        # encoder's features of those sizes: see `encode_image`.
        pairs = ((widths[3], widths[3]), (widths[3], widths[2]), (widths[2], widths[1]))
        self.refinement = (
            nn.ModuleList(
                DegradationAwareRefinementBlock(channels, lq_channels, degradation_dim, norm_num_groups)
                for channels, lq_channels in pairs
            )
            if refine
            else None
        )

    @classmethod
    def from_vae(
        cls, vae: AutoencoderKL, degradation_dim: int, refine: bool = True, **options: Any
    ) -> "DegradationAwareDecoder":
        """Return a decoder with the VAE's weights and untrained DRBs: equal to `decode_latents(vae, ...)` at step 0.

        Args:
            options: further arguments of the constructor, which a subclass may have.
        """
        # Every argument follows from the VAE's.
        decoder = cls(
            latent_channels=vae.config.latent_channels,
            block_out_channels=vae.config.block_out_channels,
            layers_per_block=vae.config.layers_per_block,
            norm_num_groups=vae.config.norm_num_groups,
            scaling_factor=vae.config.scaling_factor,
            use_post_quant_conv=vae.post_quant_conv is not None,
            mid_block_add_attention=vae.config.mid_block_add_attention,
            degradation_dim=degradation_dim,
            refine=refine,
            **options,
        )

        # So do the weights, but for those of the DRBs.
        decoder.decoder.load_state_dict(vae.decoder.state_dict())
        if decoder.post_quant_conv is not None:
            decoder.post_quant_conv.load_state_dict(vae.post_quant_conv.state_dict())
        return decoder

    def forward(
        self,
        latents: Float[Tensor, "b l h8 w8"],
        lq_features: Sequence[Float[Tensor, "b _ _ _"]],
        degradation_embedding: Float[Tensor, "b d"],
        fidelity: float | Float[Tensor, ""] = 1.0,
    ) -> Float[Tensor, "b 3 h w"]:
        """Decode scaled latents to an image in [0, 1] (not clamped), in float32.

        Args:
            lq_features: of the degraded image, from `encode_image`: its VAE encoder's at 1/8, 1/4 and 1/2.
            fidelity: weight of the refinement in [0, 1].
        """
        features = self.decode_features(
            self.unscale(latents), lq_features, degradation_embedding, fidelity
        )
        return self.to_pixels(features).float() / 2 + 0.5

    def unscale(self, latents: Float[Tensor, "b l h8 w8"]) -> Float[Tensor, "b l h8 w8"]:
        """Return scaled latents as the VAE's decoder takes them, in the networks' type."""
        latents = (latents / self.config.scaling_factor).to(self.dtype)
        return latents if self.post_quant_conv is None else self.post_quant_conv(latents)

    def decode_features(
        self,
        latents: Float[Tensor, "b l h8 w8"],
        lq_features: Sequence[Float[Tensor, "b _ _ _"]],
        degradation_embedding: Float[Tensor, "b d"],
        fidelity: float | Float[Tensor, ""],
    ) -> Float[Tensor, "b c h w"]:
        """Return the decoder's features at full size, refined by a DRB at 1/8, 1/4 and 1/2 on the way (Fig. 6)."""

        def refine(i: int, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
            if self.refinement is None:
                return features
            return self.refinement[i](features, lq_features[i], degradation_embedding, fidelity)

        # What diffusers' Decoder.forward does, with a DRB after the mid block and the first two up blocks.
        decoder = self.decoder
        features = refine(0, decoder.mid_block(decoder.conv_in(latents)))
        for i, up_block in enumerate(decoder.up_blocks):
            features = up_block(features)
            if i < 2:
                features = refine(i + 1, features)
        return features

    def to_pixels(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
        """Return the image in [-1, 1] of the decoder's last features."""
        decoder = self.decoder
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(features)))
