"""DA-CLIP's tensors in the authors' two checkpoints: pairs (ours, theirs), replaced one after the other."""

_SELF = ".fn.fn.transformer_blocks.0.attn1.to_"
_CONTENT = ".fn.fn.transformer_blocks.0.attn2.to_"

CONTROLLER = (
    ("controller.control.visual.transformer.", "visual_control.transformer.transformer."),
    ("controller.control.visual.", "visual_control."),
    *(
        (f"controller.zeros.{i}.linear.", f"visual_control.transformer.zero_modules.{i}.")
        for i in range(12)
    ),
    ("controller.", ""),
)

UNET = (
    # Outside the levels.
    ("unet.embed.", "init_conv."),
    ("unet.time.0.", "time_mlp.1."),
    ("unet.time.2.", "time_mlp.3."),
    ("unet.degradation.", "text_mlp."),
    ("unet.prompt_out.", "prompt_mlp."),
    ("unet.middle1.", "mid_block1."),
    ("unet.middle_attention.", "mid_attn."),
    ("unet.middle2.", "mid_block2."),
    ("unet.last.", "final_res_block."),
    ("unet.output.", "final_conv."),
    *((f"unet.ups.{i}.3.", f"ups.{i}.3.1.") for i in range(3)),
    ("unet.", ""),
    # Residual blocks.
    (".time.1.", ".mlp.1."),
    (".conv1.", ".block1.proj."),
    (".conv2.", ".block2.proj."),
    (".skip.", ".res_conv."),
    # Linear attention, and the group normalisation of the other kind.
    (".norm.weight", ".fn.fn.norm.weight"),
    (".norm.bias", ".fn.fn.norm.bias"),
    (".outer_norm.scale", ".fn.norm.g"),
    (".norm.scale", ".fn.norm.g"),
    (".qkv.", ".fn.fn.to_qkv."),
    (".out.0.", ".fn.fn.to_out.0."),
    (".out.1.scale", ".fn.fn.to_out.1.g"),
    # Attention to the content.
    (".project_in.", ".fn.fn.proj_in."),
    (".project_out.", ".fn.fn.proj_out."),
    *((f".norm{i}.", f".fn.fn.transformer_blocks.0.norm{i}.") for i in (1, 2, 3)),
    (".self_out.", f"{_SELF}out.0."),
    (".self_", _SELF),
    (".content_out.", f"{_CONTENT}out.0."),
    (".content_", _CONTENT),
    (".gate.", ".fn.fn.transformer_blocks.0.ff.net.0.proj."),
    (".feed_forward.", ".fn.fn.transformer_blocks.0.ff.net.2."),
)

UNUSED = (
    "visual.",
    "clip.transformer.",
    "clip.token_embedding.",
    "clip.positional_embedding",
    "clip.ln_final.",
    "clip.text_projection",
    "clip.logit_scale",
    "clip.attn_mask",
)
"""Beginnings of names that restoring does not use: CLIP's text tower, and its image tower a second time."""
