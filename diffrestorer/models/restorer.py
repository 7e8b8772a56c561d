"""The assembly: every network of the method in one module, and how they are joined (Fig. 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from jaxtyping import Float, Real
from torch import Tensor, nn

from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.config.schema import ModelConfig
from diffrestorer.models.backbones import EncodedImage, ImageEncoder, decode_latents, encode_image
from diffrestorer.models.components import COMPONENTS, build_component, check_networks, component_class
from diffrestorer.models.control import ControlDecoder, ControlEncoder, ControlNetwork
from diffrestorer.models.decoder import DegradationAwareDecoder
from diffrestorer.models.prompt_processor import PromptProcessor, VisualPrompts


@dataclass(frozen=True)
class Conditioning:
    """What every denoising step needs of the degraded image; computed once.

    Attributes:
        prompts: P_CLIP, P_S, P_D and the classifier's logits.
        encoded: the degraded image through the VAE's encoder.
        control_features: the control encoder's output as `ControlNetwork.enter` gives it, added after the control
            network's `conv_in`.
    """

    prompts: VisualPrompts
    encoded: EncodedImage
    control_features: Float[Tensor, "b c h8 w8"]


class DecodingNetworks(nn.Module):
    """Diff-Restorer's networks but for those that sample latents: all that the paper's decoder stage runs.

    Args:
        relative_prediction: whether the UNet predicts the difference to the degraded image's latents (mini only).
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        image_encoder: ImageEncoder,
        prompt_processor: PromptProcessor,
        decoder: DegradationAwareDecoder,
        relative_prediction: bool = False,
    ) -> None:
        super().__init__()
        self.relative_prediction = relative_prediction
        self.vae = vae
        self.image_encoder = image_encoder
        self.prompt_processor = prompt_processor
        self.decoder = decoder

    def components(self) -> dict[str, ModelMixin]:
        """The networks that are there by their names in a model folder."""
        return {name: getattr(self, name) for name in COMPONENTS if name in self._modules}

    def read_prompts(self, lq: Float[Tensor, "b 3 h w"]) -> VisualPrompts:
        """What the image encoder and the Prompt Processor see in degraded images in [0, 1] of any size."""
        return self.prompt_processor(self.image_encoder(lq))


class Restorer(DecodingNetworks):
    """Diff-Restorer's networks and how they are joined (Fig. 4). No sampling and no losses: see pipeline, training."""

    def __init__(
        self,
        vae: AutoencoderKL,
        image_encoder: ImageEncoder,
        prompt_processor: PromptProcessor,
        unet: UNet2DConditionModel,
        control_encoder: ControlEncoder,
        control_network: ControlNetwork,
        decoder: DegradationAwareDecoder,
        relative_prediction: bool = False,
    ) -> None:
        super().__init__(vae, image_encoder, prompt_processor, decoder, relative_prediction)
        self.unet = unet
        self.control_encoder = control_encoder
        self.control_network = control_network

    def condition(
        self, lq: Float[Tensor, "b 3 h w"], prompts: VisualPrompts, encoded: EncodedImage | None = None
    ) -> Conditioning:
        """Everything the denoising steps need of degraded images in [0, 1] whose sides are multiples of 8."""
        encoded = encoded or encode_image(self.vae, lq)
        features = self.control_encoder(lq, prompts.degradation_embedding, encoded.latents)
        return Conditioning(prompts, encoded, self.control_network.enter(features))

    def denoise(
        self,
        noisy_latents: Float[Tensor, "b l h8 w8"],
        timesteps: Real[Tensor, "..."],
        condition: Conditioning,
    ) -> Float[Tensor, "b l h8 w8"]:
        """Predict what the scheduler's `prediction_type` says, with the UNet under control.

        Latents come as float32 and are cast to the networks' own type here. With `relative_prediction` the UNet's
        output is added to the degraded image's latents. Timesteps may have a fraction, since some schedulers
        interpolate them.
        """
        token = condition.prompts.semantic_embedding
        noisy_latents = noisy_latents.to(self.unet.dtype)
        down, mid = self.control_network(
            noisy_latents, timesteps, token, condition.control_features, return_dict=False
        )
        output = self.unet(
            noisy_latents,
            timesteps,
            token,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=False,
        )[0]
        if self.relative_prediction:
            output = output + condition.encoded.latents
        return output

    def decode(
        self,
        latents: Float[Tensor, "b l h8 w8"],
        condition: Conditioning,
        refined: bool = True,
        fidelity: float = 1.0,
    ) -> Float[Tensor, "b 3 h w"]:
        """Latents to images in [0, 1], not clamped: by the Degradation-aware Decoder, or by the VAE's own."""
        if not refined:
            return decode_latents(self.vae, latents)
        embedding = condition.prompts.degradation_embedding
        return self.decoder(latents, condition.encoded.features, embedding, fidelity)


def build_restorer(
    config: ModelConfig,
    vae: AutoencoderKL,
    image_encoder: ImageEncoder,
    unet: UNet2DConditionModel,
    classes: Sequence[str] = DEGRADATIONS,
) -> Restorer:
    """Build the method at step 0 around a given base: control network copied from the UNet, decoder from the VAE.

    Args:
        classes: the names of the model's classes, in the order of their index.

    Raises:
        ValueError: an argument is unknown, or the networks do not fit one another.
    """
    prediction = config.scheduler.get("prediction_type", "epsilon")
    if config.relative_prediction and prediction != "sample":
        raise ValueError(
            "model.relative_prediction adds the degraded image's latents to the prediction: it needs "
            f"model.scheduler.prediction_type=sample, not {prediction}"
        )
    prompts = {**config.prompt_processor, "classes": list(classes)}
    prompt_processor = build_component(PromptProcessor, prompts, "model.prompt_processor")
    control_class = component_class("control_encoder", config.control_encoder_class)
    control_encoder = build_component(control_class, config.control_encoder, "model.control_encoder")
    decoder_class = component_class("decoder", config.decoder_class)
    degradation_dim = prompt_processor.config.degradation_dim
    components = {
        "vae": vae,
        "image_encoder": image_encoder,
        "prompt_processor": prompt_processor,
        "unet": unet,
        "control_encoder": control_encoder,
        "control_network": ControlNetwork.from_unet(unet),
        "decoder": decoder_class.from_vae(vae, degradation_dim, config.refine, **config.decoder),
    }
    check_networks(components, "model")
    return Restorer(**components, relative_prediction=config.relative_prediction)


def build_control_decoder(control_encoder: ControlEncoder) -> ControlDecoder:
    """The training-only mirror of a control encoder."""
    widths, groups = control_encoder.config.block_out_channels, control_encoder.config.norm_num_groups
    return ControlDecoder(block_out_channels=widths, norm_num_groups=groups)
