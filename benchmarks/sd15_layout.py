"""Names and configurations of the files that sd15 starts from, as they are published; imports no torch."""

from typing import Any

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLIP_FILE = "open_clip_model.safetensors"
VGG_FILE = "vgg19-dcbb9e9d.pth"

CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    },
    "vae": {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
        "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "scheduler": {
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False, "num_train_timesteps": 1000,
        "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
    },
}  # fmt: skip
"""config.json of vae/ and unet/ and scheduler_config.json of scheduler/, as the repository of SD 1.5 has them."""

OLD_ATTENTION_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""The published VAE is older than diffusers' names of today."""

TINY_WIDTHS = (
    "model.vae.block_out_channels=[8,8,16,16]",
    "model.vae.norm_num_groups=4",
    "model.unet.block_out_channels=[32,32,64,64]",
    "model.unet.attention_head_dim=2",
    "model.unet.norm_num_groups=8",
    "model.unet.cross_attention_dim=64",
    "model.image_encoder.vision_cfg.layers=2",
    "model.image_encoder.vision_cfg.width=64",
    "model.image_encoder.embed_dim=64",
    "model.prompt_processor.clip_dim=64",
    "model.prompt_processor.semantic_dim=64",
    "model.prompt_processor.hidden_dim=64",
    "model.prompt_processor.degradation_dim=32",
    "model.control_encoder.block_out_channels=[8,16,16,32]",
    "model.control_encoder.degradation_dim=32",
    "model.control_encoder.norm_num_groups=4",
)
"""sd15 in miniature, as overrides of a training script. open_clip knows no CLIP so small: it lies in the base's folder
as image_encoder/, as mini's does."""
