"""A one-step student as an ONNX file: the whole call, from a degraded image to the restored one, in one graph.

The graph needs neither PyTorch nor this package; `integrations/onnx/restore.py` runs it with onnxruntime alone.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffrestorer.inference.choices import THRESHOLD
from diffrestorer.inference.one_step import OneStepScheduler
from diffrestorer.inference.onnx_files import save_whole
from diffrestorer.models.attention import install_one_token_attention
from diffrestorer.models.restorer import Restorer

LARGEST_SINGLE_FILE = 1_800_000_000
"""Bytes of weights that one ONNX file takes, whose limit is 2 GiB; larger models keep them in a second file."""

EXAMPLE_MULTIPLES = (3, 5)
"""Height and width of the traced image, in multiples: neither square nor of size 1, which tracing would fix."""


class OneStepCall(nn.Module):
    """The pipeline's call for one whole image, without anything that depends on Python at run time.

    Args:
        restorer: the student's networks, in float32.
        scheduler: the student's sampler.
    """

    timestep: Int[Tensor, ""]
    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]

    def __init__(self, restorer: Restorer, scheduler: OneStepScheduler) -> None:
        super().__init__()
        self.restorer = restorer
        self.scheduler = scheduler
        self.register_buffer("timestep", torch.tensor(scheduler.config.tau))

        # The encoder's own constants are cached on their first use: tracing would leave placeholders in that cache.
        encoder = restorer.image_encoder
        self.register_buffer("mean", torch.tensor(encoder.config.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(encoder.config.std).view(3, 1, 1))

    def forward(
        self, image: Float[Tensor, "1 3 h w"], size: Int[Tensor, "2"]
    ) -> Float[Tensor, "1 3 h w"]:
        """Restore an image in [0, 1].

        Args:
            image: padded right and bottom to the model's multiple.
            size: height and width before padding. The image encoder sees that part alone, as in the pipeline.
        """
        # The prompts of the image without its padding.
        networks = self.restorer
        encoder = networks.image_encoder
        small = resize_as_clip(image, size, encoder.image_size)
        embedding = encoder.visual((small - self.mean) / self.std)
        prompts = networks.prompt_processor(embedding.float())
        prompts = networks.prompt_processor.restrain(prompts, THRESHOLD)

        # One step from the degraded image's latents.
        condition = networks.condition(image, prompts)
        start = condition.encoded.latents
        output = networks.denoise(start, self.timestep, condition)
        latents = self.scheduler.step(output, self.timestep, start, return_dict=False)[0]

        return networks.decode(latents, condition).clamp(0, 1)


def resize_as_clip(
    image: Float[Tensor, "1 3 h w"], size: Int[Tensor, "2"], side: int
) -> Float[Tensor, "1 3 s s"]:
    """Resize the upper left `size` pixels to a square, bicubic with antialiasing, as `ImageEncoder.prepare` does.

    Written as two matrix products: the result does not depend on how a runtime resizes, and `size` can be data.
    """
    rows = _resizing_matrix(size[0], image.shape[-2], side)
    columns = _resizing_matrix(size[1], image.shape[-1], side)
    return (rows @ image @ columns.T).clamp(0, 1)


def _resizing_matrix(length: Int[Tensor, ""], padded: int, side: int) -> Float[Tensor, "s n"]:
    """Return the weights of `length` pixels (zero for those behind them) in each of `side` pixels.

    The kernel is Keys' cubic with a = -1/2, widened where the image shrinks: PyTorch's and Pillow's.
    """
    # Distance of every pixel to every centre, in units of the kernel.
    step = length.float() / side
    centres = (torch.arange(side) + 0.5) * step
    pixels = torch.arange(padded) + 0.5
    distance = (pixels[None] - centres[:, None]).abs() / step.clamp_min(1)

    # The two pieces of the kernel.
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))

    # What lies in the padding does not count.
    weights = weights * (torch.arange(padded) < length)
    return weights / weights.sum(dim=1, keepdim=True)


def check_student(scheduler: SchedulerMixin) -> None:
    """Refuse the scheduler of a model that samples in several steps.

    Raises:
        ValueError: says so, and where students come from.
    """
    if not isinstance(scheduler, OneStepScheduler):
        raise ValueError(
            "only a one-step student can be exported, and this model samples in several steps: train a student of "
            "it with diffrestorer train student"
        )


@torch.no_grad()
def export_student(pipeline: Any, folder: Path) -> Path:
    """Write a student as `restorer.onnx`, in float32, for images of any size in the model's multiple; return its path.

    The graph's metadata hold `multiple` (of height and width, in pixels) and `classes`.

    Args:
        pipeline: a `DiffRestorerPipeline` on the CPU, in float32.

    Raises:
        ValueError: the model samples in more than one step; another process exports into the folder.
        OSError: the folder can't be written.
    """
    # Refuse what can't work before the minute that tracing takes.
    check_student(pipeline.scheduler)
    folder.mkdir(parents=True, exist_ok=True)

    # The networks as the pipeline runs them.
    multiple = pipeline._multiple
    for network in (pipeline.unet, pipeline.control_network):
        install_one_token_attention(network)
    call = OneStepCall(pipeline.restorer, pipeline.scheduler).eval().requires_grad_(False)

    # Trace at one size, with height and width left open.
    height, width = (multiple * count for count in EXAMPLE_MULTIPLES)
    example = (torch.rand(1, 3, height, width), torch.tensor([height - 1, width - 1]))
    open_sides = {
        2: multiple * torch.export.Dim("rows", min=1, max=4096),
        3: multiple * torch.export.Dim("columns", min=1, max=4096),
    }
    traced = torch.export.export(
        call, example, dynamic_shapes={"image": open_sides, "size": None}, strict=False
    )
    program = torch.onnx.export(
        traced, input_names=["image", "size"], output_names=["restored"], dynamo=True, verbose=False
    )

    assert program is not None, "torch returns the program where it is given no file"

    # The runner needs the multiple to pad, and people like to know the classes.
    program.model.metadata_props["multiple"] = str(multiple)
    program.model.metadata_props["classes"] = ",".join(pipeline.classes)
    size = sum(weight.nbytes for weight in call.state_dict().values())
    save = partial(program.save, external_data=size > LARGEST_SINGLE_FILE)
    return save_whole(save, folder)
