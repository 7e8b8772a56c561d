"""Our sampler beside diffusers' own pipeline: operations and time of a step, and the scheduler's share alone.

    python benchmarks/sampler.py      # a table on stdout, raw numbers in benchmarks/results/sampler.json

Peer: `StableDiffusionControlNetPipeline` with SDPA, in eager float32, handed the same networks: a UNet of Stable
Diffusion 1.5's depth at a tenth of its width, its ControlNet with our control encoder as the image embedding, one
token, no guidance. Both start from the same noise, and their latents must agree to a relative error of 1e-5. Rounds of
both alternate, on fresh images. Times are of one CPU thread at 64x64 pixels, where there is little arithmetic and the
time is the host's; the scheduler alone is timed on latents of 4x8x8 for the same reason.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UniPCMultistepScheduler
from peer import Peer
from torch.utils._python_dispatch import TorchDispatchMode

from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.inference.unipc_table import sampling_table
from diffrestorer.models.backbones import ImageEncoder
from diffrestorer.models.control import ControlEncoder, ControlNetwork
from diffrestorer.models.decoder import DegradationAwareDecoder
from diffrestorer.models.prompt_processor import PromptProcessor
from diffrestorer.models.restorer import Restorer

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
SIDE, STEPS = 64, 20


class Operations(TorchDispatchMode):
    """Counts the operations that PyTorch dispatches."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def build() -> tuple[DiffRestorerPipeline, Peer]:
    """Both pipelines around the same networks with random weights."""
    torch.manual_seed(0)
    blocks = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    vae = AutoencoderKL(3, 3, *blocks, [8, 8, 8, 8], norm_num_groups=4)
    unet = UNet2DConditionModel(
        block_out_channels=[32, 64, 128, 128],
        norm_num_groups=16,
        cross_attention_dim=48,
        attention_head_dim=8,
    )
    restorer = Restorer(
        vae=vae,
        image_encoder=ImageEncoder({"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}, 48),
        prompt_processor=PromptProcessor(48, 48, 32, 16),
        unet=unet,
        control_encoder=ControlEncoder([8, 16, 16, 32], 16, 8),
        control_network=ControlNetwork.from_unet(unet),
        decoder=DegradationAwareDecoder.from_vae(vae, 16),
    ).eval()
    with torch.no_grad():
        for parameter in restorer.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    ours = DiffRestorerPipeline(**restorer.components(), scheduler=UniPCMultistepScheduler(**SCHEDULE))
    ours.set_progress_bar_config(disable=True)
    return ours, Peer(copy.deepcopy(restorer), UniPCMultistepScheduler(**SCHEDULE))


def run_ours(
    pipe: DiffRestorerPipeline, image: torch.Tensor, noise_seed: int, steps: int
) -> torch.Tensor:
    """Latents of one image."""
    return pipe.sample(image, steps, torch.Generator().manual_seed(noise_seed)).latents


def seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def compare(rounds: int) -> dict[str, Any]:
    """Operations and seconds of a step of both, from runs of 20 steps less runs of 1; and how far they differ."""
    ours, peer = build()
    images = torch.rand(rounds, 1, 3, SIDE, SIDE)
    errors, ours_s, peer_s = [], [], []
    for round_, image in enumerate(images):
        token = peer.read_prompts(image)

        def lean(steps: int, image: torch.Tensor = image, seed: int = round_) -> torch.Tensor:
            return run_ours(ours, image, seed, steps)

        def plain(
            steps: int, token: torch.Tensor = token, image: torch.Tensor = image, seed: int = round_
        ) -> torch.Tensor:
            return peer.run(token, image, seed, steps)

        expected = plain(STEPS)
        errors.append(((lean(STEPS) - expected).abs().max() / expected.abs().max()).item())
        ours_s.append((seconds(lambda: lean(STEPS)) - seconds(lambda: lean(1))) / (STEPS - 1))
        peer_s.append((seconds(lambda: plain(STEPS)) - seconds(lambda: plain(1))) / (STEPS - 1))
    counts = {}
    for name, run in (("ours", lean), ("peer", plain)):
        with Operations() as many:
            run(STEPS)
        with Operations() as single:
            run(1)
        counts[name] = (many.count - single.count) / (STEPS - 1)
    return {
        "operations": counts,
        "seconds": {"ours": ours_s, "peer": peer_s},
        "relative_errors": errors,
    }


def compare_schedulers(rounds: int) -> dict[str, Any]:
    """Seconds a step of the scheduler alone, and how far the results differ."""
    scheduler = UniPCMultistepScheduler(**SCHEDULE)
    table = sampling_table(scheduler, STEPS)
    ours_s, peer_s, errors = [], [], []
    for _ in range(rounds):
        noise, outputs = torch.randn(1, 4, 8, 8), torch.randn(STEPS, 1, 4, 8, 8)
        scheduler.set_timesteps(STEPS)
        started = time.perf_counter()
        latents = noise
        for timestep, output in zip(scheduler.timesteps, outputs, strict=True):
            latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
        peer_s.append((time.perf_counter() - started) / STEPS)
        started = time.perf_counter()
        given = iter(outputs)
        sampled = table.sample(noise, lambda *_, given=given: next(given))
        ours_s.append((time.perf_counter() - started) / STEPS)
        errors.append(((sampled - latents).abs().max() / latents.abs().max()).item())
    return {"seconds": {"ours": ours_s, "peer": peer_s}, "relative_errors": errors}


def spread(values: list[float], unit: float) -> str:
    """`median (least - greatest)`."""
    return (
        f"{statistics.median(values) * unit:.3f} ({min(values) * unit:.3f} - {max(values) * unit:.3f})"
    )


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="(default: 7)")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "sampler.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    step, scheduler = compare(arguments.rounds), compare_schedulers(10 * arguments.rounds)
    count = step["operations"]
    print(
        f"operations a step: {count['ours']:.0f} of {count['peer']:.0f}, {count['ours'] / count['peer']:.2f}x"
    )
    for name, rows in (("step", step), ("scheduler's step", scheduler)):
        ours, peer = rows["seconds"]["ours"], rows["seconds"]["peer"]
        ratio = statistics.median(peer) / statistics.median(ours)
        print(f"{name}: {spread(ours, 1e3)} ms, peer {spread(peer, 1e3)} ms, {ratio:.2f}x")
        print(f"  greatest relative difference {max(rows['relative_errors']):.1e}")
    environment = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "diffrestorer")},
    }
    arguments.output.write_text(
        json.dumps({**environment, "step": step, "scheduler": scheduler}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
