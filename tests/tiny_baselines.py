"""The compared methods with tiny networks, for runs of a few steps."""

TINY: dict[str, list[str]] = {
    "airnet": ["network={num_features: 4, num_groups: 1, num_blocks: 1, embedding_dim: 6}", "patch_size=32",
               "queue_length=16", "pretraining.max_steps=2"],
    "transweather": ["network={dims: [4, 8, 12, 16], num_heads: [1, 2, 2, 4], decoder_depth: 1, tail_dims: [4, 4]}"],
    "nafnet": ["network={width: 4, encoder_blocks: [1, 1], decoder_blocks: [1, 1]}"],
    "restormer": ["network={dim: 4, num_blocks: [1, 1], num_heads: [1, 2], num_refinement_blocks: 1}"],
    "promptir": ["network={dim: 4, num_blocks: [1, 1], num_heads: [1, 2], num_refinement_blocks: 1, "
                 "prompt_dims: [4], prompt_sizes: [8], prompt_heads: 2}"],
    "da_clip": ["network={image_encoder: {vision_cfg: {image_size: 32}, embed_dim: 12}, features: 8, "
                "multipliers: [1, 2], attention_level: 1, num_steps: 4}",
                "clip=none", "pretraining.max_steps=2", "pretraining.global_batch_size=4"],
}  # fmt: skip


def tiny(method: str, *more: str) -> list[str]:
    """The command line of a tiny run of two steps, on 64 px crops."""
    return [
        f"method={method}", "size=mini", *TINY[method], "data=photos", "data.size=64", "train.max_steps=2",
        "train.global_batch_size=4", "train.num_workers=0", "train.log_every=1", *more,
    ]  # fmt: skip
