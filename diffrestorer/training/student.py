"""The student: one network call from the degraded image's latents, trained end to end through the decoder."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffrestorer.config.schema import StudentConfig
from diffrestorer.data.counter import counter_normal, counter_rng
from diffrestorer.data.pairs import PairBatch
from diffrestorer.inference.model_folder import find_model, save_model_folder
from diffrestorer.inference.one_step import OneStepScheduler
from diffrestorer.inference.sampler import sample_latents
from diffrestorer.models.backbones import EncodedImage, decode_latents, encode_image
from diffrestorer.models.components import load_weights
from diffrestorer.models.decoder import DegradationAwareDecoder
from diffrestorer.models.lora import add_lora, merged
from diffrestorer.models.restorer import Conditioning, Restorer
from diffrestorer.training.discriminator import StudentDiscriminator, adversarial_losses
from diffrestorer.training.finished import load_to_train
from diffrestorer.training.losses import degradation_loss, gradient_loss, pixel_loss
from diffrestorer.training.perceptual import PerceptualLoss, check_perceptual
from diffrestorer.training.stage1 import record_prototypes
from diffrestorer.training.task import Losses, Task, adamw, select_unet, to_unit

TRAINED = ("prompt_processor", "control_encoder", "control_network", "unet", "decoder")
"""Networks that a student may change; the VAE and the image encoder are the teacher's."""


class StudentTask(Task):
    """Control module, UNet (or its LoRA) and decoder learn to restore in one call; discriminators learn beside them.

    z0_hat = (z_lq - b e) / a with e = UNet(z_lq, tau), and x_hat = Decoder(z0_hat): see `OneStepScheduler` for a and b.
    The clean image supervises both; no noise is drawn. With weights lambda,

        L_G = pixel(x_hat, x) + pixel(grad x_hat, grad x) + perceptual(x_hat, x) - mean_k D_k(x_hat)
              + |z0_hat - E(x)|^2 + |z0_hat - z0_teacher|^2
              + cross-entropy of the classifier, where the prompt processor trains
        L_D = mean_k [relu(1 - D_k(x)) + relu(1 + D_k(x_hat))] / 2

    The student begins as its teacher. At step 0 it returns the teacher's clean estimate at tau, or, where predictions
    are relative to the degraded image's latents (mini), those latents: the UNet's last convolution starts at zero.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        if not config.teacher:
            raise ValueError(
                "teacher is not set: give teacher=OUTPUT_DIR of `diffrestorer train decoder` (or a model folder)"
            )
        self.config = config
        if config.patch is not None and config.patch > config.data.size:
            raise ValueError(
                f"patch={config.patch} is larger than the crops of data.size={config.data.size}"
            )
        if config.patch is not None and config.train.cache_dir is not None:
            raise ValueError("train.cache_dir keeps latents of whole crops: leave it null with patch=")
        check_perceptual(config.model.perceptual, config.model.perceptual_weights)
        pipeline = load_to_train(config.teacher)
        goes_on = isinstance(pipeline.scheduler, OneStepScheduler)
        if goes_on and config.lambda_distillation:
            raise ValueError(
                f"teacher={config.teacher} is itself a student, which has no steps to distil: set lambda_distillation=0"
            )

        if goes_on and pipeline.scheduler.config.tau != config.tau:
            taught = pipeline.scheduler.config.tau
            raise ValueError(
                f"teacher={config.teacher} is a student of tau={taught}: set tau={taught}, not {config.tau}"
            )

        # The teacher samples targets for the distillation; as a list's item it is no part of the student.
        self.teacher_scheduler = pipeline.scheduler
        self.scheduler = OneStepScheduler.from_teacher(pipeline.scheduler, config.tau)
        self._teacher = [copy.deepcopy(pipeline.restorer)] if config.lambda_distillation else []

        self.restorer = pipeline.restorer
        self._begin(goes_on)
        self._freeze()
        self.discriminator = None
        if config.lambda_adversarial:
            self.discriminator = StudentDiscriminator(
                config.discriminator_channels, self._feature_widths()
            )
        self.perceptual = PerceptualLoss(config.model.perceptual, config.model.perceptual_weights)

    def _begin(self, goes_on: bool) -> None:
        """Set the weights of step 0: the teacher's, or those of the student named by `init`.

        Args:
            goes_on: whether the teacher is itself a student, whose predictions stay as they are.
        """
        restorer, config = self.restorer, self.config
        if not config.model.refine and restorer.decoder.config.refine:
            restorer.decoder = _without_refinement(restorer.decoder, restorer)
        if config.init is not None:
            for name in TRAINED:
                load_weights(getattr(restorer, name), find_model(config.init) / name)
        elif restorer.relative_prediction and not goes_on:
            for parameter in restorer.unet.conv_out.parameters():
                nn.init.zeros_(parameter)

    def _freeze(self) -> None:
        """Leave gradients to the control module, to what `model.train_unet` names, and to the decoder if it trains."""
        restorer, config = self.restorer, self.config
        restorer.requires_grad_(False).eval()
        if config.model.train_unet == "lora":
            add_lora(restorer.unet, config.lora_rank)
        else:
            select_unet(restorer.unet, config.model.train_unet)
        restorer.control_encoder.requires_grad_(True)
        restorer.control_network.requires_grad_(True)
        restorer.decoder.requires_grad_(config.train_decoder)
        restorer.prompt_processor.set_trainable(config.lambda_degradation > 0)

    @torch.no_grad()
    def _feature_widths(self) -> list[int]:
        image = torch.zeros(1, 3, *[self.restorer.image_encoder.image_size] * 2)
        return [features.shape[1] for features in self.restorer.image_encoder.feature_maps(image)]

    @torch.no_grad()
    def encode(self, batch: PairBatch) -> dict[str, Tensor]:
        """Return P_CLIP, the latents of both images, and with distillation those that the teacher samples."""
        return self._encode(batch, encode_image(self.restorer.vae, to_unit(batch.lq)))

    def _encode(
        self, batch: PairBatch, encoded: EncodedImage, targets: bool = True
    ) -> dict[str, Tensor]:
        """Return what the one call takes, and the latents that it is compared with if they are asked for."""
        clip_embedding = batch.encodings.get("clip_embedding")
        if clip_embedding is None:
            clip_embedding = self.restorer.image_encoder(to_unit(batch.lq))
        encodings = {"clip_embedding": clip_embedding, "lq_latents": encoded.latents}
        if not targets:
            return encodings
        encodings["latents"] = encode_image(self.restorer.vae, to_unit(batch.gt)).latents
        for teacher in self._teacher:
            encodings["teacher_latents"] = self._sample_teacher(teacher, batch, clip_embedding, encoded)
        return encodings

    def _sample_teacher(
        self,
        teacher: Restorer,
        batch: PairBatch,
        clip_embedding: Float[Tensor, "b d"],
        encoded: EncodedImage,
    ) -> Float[Tensor, "b l h8 w8"]:
        teacher.to(clip_embedding.device)
        prompts = teacher.prompt_processor(clip_embedding)
        condition = teacher.condition(to_unit(batch.lq), prompts, encoded)
        shape = encoded.latents.shape[1:]
        noise = counter_normal(
            shape, self.config.seed, "teacher", batch.step, batch.positions, clip_embedding.device
        )
        return sample_latents(
            teacher, self.teacher_scheduler, condition, noise, self.config.distillation_steps
        )

    def encoders(self) -> tuple[Sequence[nn.Module], dict[str, Any]]:
        """Return CLIP and the VAE; with distillation the whole teacher but its decoder."""
        if not self._teacher:
            return (self.restorer.image_encoder, self.restorer.vae), {}
        networks = [
            module for name, module in self._teacher[0].components().items() if name != "decoder"
        ]
        return networks, {
            "seed": self.config.seed,
            "distillation_steps": self.config.distillation_steps,
        }

    def forward(self, batch: PairBatch) -> Losses:
        config = self.config
        if config.patch is not None:
            batch = self._patches(batch, config.patch)
        gt = to_unit(batch.gt)

        # One call of the networks, then the decoder.
        condition, encodings = self._inputs(batch)
        estimate = self._estimate(condition)
        restored = self.restorer.decode(estimate, condition)

        # How far image and latents are from the clean ones.
        pixel = pixel_loss(config.pixel_loss, restored, gt)
        perceptual = self.perceptual(restored, gt)
        latent = F.mse_loss(estimate, encodings["latents"].float())
        distillation = estimate.new_zeros(())
        if "teacher_latents" in encodings:
            distillation = F.mse_loss(estimate, encodings["teacher_latents"].float())

        # How real the image looks, and what the discriminators learn from it.
        adversarial, discriminator = self._adversarial(restored, gt)
        started = float(batch.step >= config.discriminator_start)
        total = (
            config.lambda_pixel * pixel
            + config.lambda_perceptual * perceptual
            + started * config.lambda_adversarial * adversarial
            + config.lambda_latent * latent
            + self._distillation_weight(batch.step) * distillation
        )
        parts = {
            "pixel": pixel, "perceptual": perceptual, "adversarial": adversarial, "latent": latent,
            "distillation": distillation, "discriminator": discriminator,
        }  # fmt: skip

        # Where it is asked for, edges and flat areas count by themselves, whatever the tone.
        if config.lambda_gradient:
            parts["gradient"] = gradient_loss(config.pixel_loss, restored, gt)
            total = total + config.lambda_gradient * parts["gradient"]

        # Where the prompt processor trains, its classifier learns what was wrong with the photo.
        if config.lambda_degradation:
            parts["degradation"] = degradation_loss(condition.prompts.degradation_logits, batch.label)
            total = total + config.lambda_degradation * parts["degradation"]
        return Losses(total + started * discriminator, parts)

    @torch.no_grad()
    def _patches(self, batch: PairBatch, side: int) -> PairBatch:
        """Return a square of each pair at a place drawn by counter, with P_CLIP of the whole degraded image."""
        height, width = batch.lq.shape[-2:]
        lq, gt = [], []
        for i, position in enumerate(batch.positions):
            rng = counter_rng(self.config.seed, "patch", batch.step, position)
            top, left = (int(rng.integers(0, length - side + 1)) for length in (height, width))
            place = (slice(None), slice(top, top + side), slice(left, left + side))
            lq.append(batch.lq[i][place])
            gt.append(batch.gt[i][place])
        clip_embedding = self.restorer.image_encoder(to_unit(batch.lq))
        return replace(
            batch, lq=torch.stack(lq), gt=torch.stack(gt), encodings={"clip_embedding": clip_embedding}
        )

    def _inputs(self, batch: PairBatch, targets: bool = True) -> tuple[Conditioning, dict[str, Tensor]]:
        """Return what the one call takes, and the encodings, with those that it is compared with if asked for."""
        lq = to_unit(batch.lq)
        with torch.no_grad():
            encoded = encode_image(self.restorer.vae, lq)
            encodings = (
                batch.encodings
                if "latents" in batch.encodings
                else self._encode(batch, encoded, targets)
            )
            encoded = EncodedImage(encodings["lq_latents"], encoded.features)
        prompts = self.restorer.prompt_processor(encodings["clip_embedding"])
        return self.restorer.condition(lq, prompts, encoded), encodings

    def _estimate(self, condition: Conditioning) -> Float[Tensor, "b l h8 w8"]:
        """Return z0_hat, in float32."""
        start = condition.encoded.latents
        timesteps = torch.full((len(start),), self.config.tau, device=start.device)
        output = self.restorer.denoise(start, timesteps, condition)
        return self.scheduler.step(output, self.config.tau, start).prev_sample

    def _adversarial(
        self, restored: Float[Tensor, "b 3 h w"], gt: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the generator's hinge loss and the discriminators', each a mean over all D_k."""
        if self.discriminator is None:
            return restored.new_zeros(()), restored.new_zeros(())
        fake = self.restorer.image_encoder.feature_maps(restored)
        with torch.no_grad():
            real = self.restorer.image_encoder.feature_maps(gt)
        return adversarial_losses(self.discriminator, (restored, *fake), (gt, *real))

    def _distillation_weight(self, step: int) -> float:
        """Return the weight of the teacher's latents: it falls linearly to 0 over the first share of the run."""
        falling = self.config.distillation_share * self.config.train.max_steps
        return self.config.lambda_distillation * max(0.0, 1 - step / falling) if falling else 0.0

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Return AdamW for the student, with the rates of its parts, and AdamW for the discriminators if there are."""
        config, decoder = (
            self.config,
            {id(parameter) for parameter in self.restorer.decoder.parameters()},
        )
        trained = [(name, p) for name, p in self.restorer.named_parameters() if p.requires_grad]
        adapters = [p for name, p in trained if ".lora_" in name]
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in trained if ".lora_" not in name and id(p) not in decoder]},
            {"params": adapters, "lr": config.lora_lr},
            {"params": [p for _, p in trained if id(p) in decoder], "start_step": config.decoder_start},
        ]
        optimizers = [adamw([group for group in groups if group["params"]], config.train)]
        if self.discriminator is not None:
            later = {
                "params": [*self.discriminator.parameters()],
                "start_step": config.discriminator_start,
            }
            optimizers.append(adamw([later], config.train, config.discriminator_lr))
        return optimizers

    def conclude(self) -> None:
        """Measure the classes' prototypes anew if the prompt processor has changed."""
        if self.config.lambda_degradation:
            record_prototypes(self.restorer, self.config)

    def save_model(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the whole pipeline, which samples in one step; adapters are merged into the UNet."""
        networks = {**self.restorer.components(), "unet": merged(self.restorer.unet)}
        student = Restorer(**networks, relative_prediction=self.restorer.relative_prediction)
        save_model_folder(student, self.scheduler, folder, dtype)

    def restore(self, batch: PairBatch) -> Float[Tensor, "b 3 h w"]:
        """Return the degraded images restored in one step, with the refined decoder."""
        condition, _ = self._inputs(batch, targets=False)
        return self.restorer.decode(self._estimate(condition), condition)

    def sample(self, batch: PairBatch) -> list[Float[Tensor, "b 3 h w"]]:
        """Return degraded, restored with the VAE's decoder, restored with the refined one, clean."""
        condition, _ = self._inputs(batch, targets=False)
        estimate = self._estimate(condition)
        plain = decode_latents(self.restorer.vae, estimate)
        return [to_unit(batch.lq), plain, self.restorer.decode(estimate, condition), to_unit(batch.gt)]


def _without_refinement(
    decoder: DegradationAwareDecoder, restorer: Restorer
) -> DegradationAwareDecoder:
    """Return the decoder without its refinement blocks (ablation `no_drb`), its other weights kept."""
    plain = type(decoder).from_vae(restorer.vae, decoder.config.degradation_dim, refine=False)
    weights = decoder.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    return plain
