"""A node for ComfyUI that restores images: link or copy this folder into ComfyUI's `custom_nodes`.

Needs the package diffrestorer in ComfyUI's Python. Heavy imports wait until the node runs, so that ComfyUI starts fast.
"""

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

AS_DETECTED = "as detected"
"""The choice that leaves the degradation to the model."""


@functools.lru_cache(maxsize=1)
def _load(model: str, device: str) -> Any:
    """Load a pipeline once for all runs of a workflow."""
    from diffrestorer.inference.photos import load_pipeline

    return load_pipeline(model, device)


class DiffRestorerNode:
    """A node that restores images from any of the model's degradations, or several of them."""

    CATEGORY = "image/restoration"
    FUNCTION = "restore"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("restored", "degradations")
    OUTPUT_TOOLTIPS = ("The restored images.", "Probable degradations, one line per image.")
    DESCRIPTION = "Restores images without being told what is wrong with them (Diff-Restorer)."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, tuple[Any, ...]]]:  # noqa: N802 # ComfyUI's name
        """Return the inputs as ComfyUI describes them; 0 steps are the model's own number."""
        share = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05}
        return {
            "required": {
                "image": ("IMAGE",),
                "model": ("STRING", {"default": "mini"}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
                "fidelity": ("FLOAT", share),
                "degradation": ("STRING", {"default": AS_DETECTED}),
            },
            "optional": {"device": ("STRING", {"default": "auto"})},
        }

    def restore(
        self,
        image: Float[Tensor, "b h w c"],
        model: str = "mini",
        steps: int = 0,
        seed: int = 0,
        fidelity: float = 1.0,
        degradation: str = AS_DETECTED,
        device: str = "auto",
    ) -> tuple[Float[Tensor, "b h w 3"], str]:
        """Restore a batch of images, each with the starting noise of the seed.

        Args:
            image: `b h w c` in [0, 1]; an alpha channel is left out.
            model: `mini`, a model folder, or a hub id.
            steps: denoising steps; 0: as the model says.
            fidelity: weight in [0, 1] of what the decoder takes from the degraded image.
            degradation: one of the model's classes, or `as detected`.

        Returns:
            The restored images, `b h w 3` in [0, 1] on the CPU, and a line of degradations per image.

        Raises:
            ValueError: an option is not usable; ComfyUI shows the sentence.
        """
        pipe = _load(model, device)
        lq = image[..., :3].movedim(-1, 1).float().clamp(0, 1)

        # A generator per image: its result does not depend on the rest of the batch.
        output = pipe(
            lq,
            num_inference_steps=steps or None,
            generator=[torch.Generator().manual_seed(seed) for _ in lq],
            fidelity=fidelity,
            degradation=None if degradation.strip() in ("", AS_DETECTED) else degradation.strip(),
            output_type="pt",
        )
        restored = torch.stack(output.images).movedim(1, -1).float().cpu().contiguous()
        lines = [_describe(pipe.classes, row.tolist()) for row in output.degradation_probabilities]
        return restored, "\n".join(lines)


def _describe(classes: tuple[str, ...], probabilities: list[float]) -> str:
    """Return the three most probable degradations with their percentages."""
    ranked = sorted(zip(probabilities, classes, strict=True), reverse=True)
    return ", ".join(f"{name} {probability:.0%}" for probability, name in ranked[:3])


NODE_CLASS_MAPPINGS = {"DiffRestorer": DiffRestorerNode}
NODE_DISPLAY_NAME_MAPPINGS = {"DiffRestorer": "Diff-Restorer"}
