"""What the rows share: sizes, networks with random weights, pairs, clocks and the device's memory."""

import copy
import gc
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from peer import Peer
from plain_training import batch_of, prepare_pairs
from torch import nn

from diffrestorer.config.composition import load
from diffrestorer.config.hardware_presets import HardwareConfig
from diffrestorer.config.schema import DecoderConfig, Stage1Config
from diffrestorer.data.pairs import PairBatch
from diffrestorer.data.prepared import PreparedPairs
from diffrestorer.inference.model_folder import save_model_folder
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.restorer import Restorer
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.hardware import apply_hardware
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.step_memory import peak_memory
from diffrestorer.training.task import Task

TINY_WIDTHS = (
    "model.vae.block_out_channels=[8,8,16,16]",
    "model.vae.norm_num_groups=4",
    "model.image_encoder.vision_cfg={image_size: 32, layers: 1, width: 64, patch_size: 16}",
    "model.image_encoder.embed_dim=16",
    "model.prompt_processor.clip_dim=16",
    "model.prompt_processor.semantic_dim=16",
    "model.prompt_processor.hidden_dim=16",
    "model.prompt_processor.degradation_dim=8",
    "model.unet.down_block_types=[CrossAttnDownBlock2D,CrossAttnDownBlock2D,DownBlock2D]",
    "model.unet.up_block_types=[UpBlock2D,CrossAttnUpBlock2D,CrossAttnUpBlock2D]",
    "model.unet.block_out_channels=[8,16,16]",
    "model.unet.layers_per_block=1",
    "model.unet.attention_head_dim=1",
    "model.unet.norm_num_groups=4",
    "model.unet.cross_attention_dim=16",
    "model.control_encoder.block_out_channels=[4,8,8,8]",
    "model.control_encoder.degradation_dim=8",
    "model.control_encoder.norm_num_groups=4",
)
"""sd15's structure, narrow and a level less deep: `--tiny`."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        side: of images and training pairs, pixels.
        proof_side: of what a CPU computes too.
        batch: of the throughput's first and second line.
        contest_batches: micro batches at which ours and the plain loop are tried side by side, the first that fits.
        matrix: rows of the matrices whose product's rate the card is measured by.
        whole, tiled: sides of the image taken whole and of the one taken by tiles.
        tile, tile_image: side of the small tiles, and of the image that is cut into them.
    """

    overrides: tuple[str, ...] = ()
    side: int = 512
    proof_side: int = 64
    bf16_side: int = 256
    steps: tuple[int, ...] = (20, 4, 1)
    batches: tuple[int, ...] = (4, 16)
    contest_batches: tuple[int, ...] = (8, 4)
    decoder_contest_batches: tuple[int, ...] = (4, 2)
    micro_batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    rounds: int = 5
    matrix: int = 8192
    whole: int = 1024
    tiled: int = 4096
    tile: int = 512
    tile_image: int = 2048
    wait_steps: int = 12
    workers: int = 4


TINY = Sizes(
    overrides=TINY_WIDTHS, side=64, bf16_side=64, steps=(2, 1), batches=(2,), contest_batches=(2,),
    decoder_contest_batches=(2,), micro_batches=(1, 2), rounds=2, matrix=256, whole=64, tiled=160, tile=128,
    tile_image=160, wait_steps=3, workers=1,
)  # fmt: skip


class Session:
    """One run of the benchmark.

    Args:
        folder: for what is written on the way; removed by the caller.
        student: model folder of a one-step student, if there is one.
    """

    def __init__(
        self, device: torch.device, sizes: Sizes, folder: Path, student: str | None = None
    ) -> None:
        self.device, self.sizes, self.folder, self.student = device, sizes, folder, student
        self.on_gpu = device.type == "cuda"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.kept: dict[str, Any] = {}
        self.background: dict[str, subprocess.Popen[str]] = {}
        self.cache = folder / "compiled"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(
            self.cache
        )  # empty: the first compilation is a cold one

    def keep(self, name: str, build: Callable[[], Any]) -> Any:
        """Return what was built before under this name, or build it."""
        if name not in self.kept:
            self.kept[name] = build()
        return self.kept[name]

    def release(self, *names: str) -> None:
        """Let go of what was kept (all of it but what lies on disk), and of the allocator's free memory."""
        for name in names or ("pipe", "peer", "compiled", "runner"):
            self.kept.pop(name, None)
        self.collect()

    def close(self) -> None:
        """End what still runs beside."""
        for process in self.background.values():
            process.kill()

    def collect(self) -> None:
        """Free what nothing refers to."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    # Networks.

    @property
    def pairs(self) -> PreparedPairs:
        """Four photos with each of the eight degradations, prepared at the images' side."""
        return self.keep("pairs", lambda: prepare_pairs(self.folder / "data", self.sizes.side, 16))

    def overrides(self) -> list[str]:
        """The command line of sd15, or of its tiny form, with random weights on the prepared pairs."""
        data = [
            "data=manifest",
            f"data.root={self.pairs.root}",
            f"data.size={self.sizes.side}",
            "hardware=cpu",
        ]
        return [*self.sizes.overrides, "model.base=none", *data]

    def hardware(self, checkpointing: str = "none", compiled: bool = False) -> HardwareConfig:
        """The presets' switches, as far as the device takes them."""
        name = "gpu80" if self.on_gpu else "cpu"
        return HardwareConfig(
            name,
            channels_last=self.on_gpu,
            fused_adamw=True,
            compile_blocks=compiled,
            checkpointing=checkpointing,
        )

    def stage1(self, hardware: HardwareConfig | None = None) -> Stage1Task:
        """Return stage 1 on the device with random weights, the same each time; plain without `hardware`."""
        torch.manual_seed(0)
        with self.device:
            task = Stage1Task(self.config)
            fill_zeros(task)
        task.scheduler = type(task.scheduler).from_config(
            task.scheduler.config
        )  # its tables lie on the CPU, as ever
        return self._set_up(task, hardware)

    @property
    def config(self) -> Stage1Config:
        """Stage 1's configuration."""
        return self.keep("config", lambda: load("train_stage1", Stage1Config, self.overrides()))

    def scheduler(self) -> UniPCMultistepScheduler:
        """Return a new sampler of the model's noise schedule."""
        return UniPCMultistepScheduler(**self.config.model.scheduler)

    def decoder(self, hardware: HardwareConfig | None = None) -> DecoderTask:
        """Return the decoder stage on the device, on random weights; VGG-19's are random too."""
        task = copy.deepcopy(self.keep("decoder", self._load_decoder))
        return self._set_up(task.to(self.device), hardware)

    def _set_up(self, task: Any, hardware: HardwareConfig | None) -> Any:
        if hardware is not None:
            task.config = replace(task.config, train=replace(task.config.train, hardware=hardware))
            apply_hardware(task, hardware, self.device)
        return task

    @property
    def model_folder(self) -> Path:
        """A model folder with random weights in float16."""
        return self.keep("model_folder", self._save_model)

    def _save_model(self) -> Path:
        task = self.stage1()
        save_model_folder(task.restorer, self.scheduler(), self.folder / "model", torch.float16)
        return self.folder / "model"

    def _load_decoder(self) -> DecoderTask:
        overrides = [*self.overrides(), f"stage1={self.model_folder}", "model.perceptual=none"]
        if not self.sizes.overrides:
            from torchvision.models import vgg19

            with self.device:
                weights = vgg19(weights=None).state_dict()
            torch.save(weights, self.folder / "vgg19.pth")
            overrides[-1] = "model.perceptual=vgg19"
            overrides.append(f"model.perceptual_weights={self.folder / 'vgg19.pth'}")
        return DecoderTask(load("train_decoder", DecoderConfig, overrides))

    def pipelines(self) -> tuple[DiffRestorerPipeline, Peer]:
        """Return ours and diffusers' own, in the device's precision, each with networks of its own, equal weights."""

        def build() -> tuple[DiffRestorerPipeline, Peer]:
            restorer = self.stage1().restorer.eval().to(self.dtype)
            own = copy.deepcopy(restorer)
            return self.pipeline(own, self.dtype), Peer(restorer, self.scheduler())

        if "pipe" not in self.kept:
            self.kept["pipe"], self.kept["peer"] = build()
        return self.kept["pipe"], self.kept["peer"]

    def pipeline(
        self, restorer: Restorer, dtype: torch.dtype, mode: str = "eager"
    ) -> DiffRestorerPipeline:
        """Return a prepared pipeline around networks that lie where they shall run.

        Args:
            mode: `eager`, `compile`, or `graphs` for CUDA graphs.
        """
        pipe = DiffRestorerPipeline(**restorer.eval().components(), scheduler=self.scheduler())
        pipe.set_progress_bar_config(disable=True)
        pipe.prepare(next(restorer.parameters()).device, dtype, compile=mode == "compile")
        if mode == "graphs":
            for network in (pipe.unet, pipe.control_network):
                network.compile(mode="reduce-overhead", dynamic=False)
        return pipe

    # Inputs.

    def images(self, count: int, seed: int, side: int | None = None) -> torch.Tensor:
        """Return random smooth images with some noise, (count, 3, side, side) in [0, 1], on the CPU."""
        side = side or self.sizes.side
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(count, 3, 8, 8, generator=generator)
        smooth = nn.functional.interpolate(coarse, (side, side), mode="bicubic")
        return (smooth + 0.05 * torch.randn(count, 3, side, side, generator=generator)).clamp(0, 1)

    def batch(self, count: int, step: int = 0, side: int | None = None) -> PairBatch:
        """Return a batch of pairs on the CPU, cropped to `side`."""
        batch, side = batch_of(self.pairs, step, count), side or self.sizes.side
        return replace(batch, lq=batch.lq[..., :side, :side], gt=batch.gt[..., :side, :side])

    def autocast(self) -> Any:
        """Return the context of mixed precision: bf16 on a GPU, none on a CPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu)

    # Clocks and memory.

    def seconds(self, run: Callable[[], Any]) -> float:
        """Return the seconds of one call, by wall clock, with the device idle before and after."""
        self.synchronise()
        started = time.perf_counter()
        run()
        self.synchronise()
        return time.perf_counter() - started

    def interleave(
        self, runs: dict[str, Callable[[int], Any]], rounds: int | None = None
    ) -> dict[str, list[float]]:
        """Return seconds by name: a warm-up each, then rounds in turn; each call gets the round's number."""
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for number in range((rounds or self.sizes.rounds) + 1):
            for name, run in runs.items():
                seconds = self.seconds(lambda run=run, number=number: run(number))
                if number:
                    taken[name].append(seconds)
        return taken

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def allocated(self) -> int:
        """Return bytes that tensors hold on the GPU; 0 on a CPU, where nobody counts them."""
        return torch.cuda.memory_allocated(self.device) if self.on_gpu else 0

    def peak(self, run: Callable[[], Any], base: int = 0) -> int:
        """Return the most bytes held during a call, beyond `base`; on a CPU the process's peak so far."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        run()
        self.synchronise()
        return peak_memory(self.device) - base

    def fits(self, run: Callable[[], Any]) -> bool:
        """Run; return False where memory does not suffice, with what was taken given back."""
        try:
            run()
        except torch.OutOfMemoryError:
            pass
        else:
            return True
        self.collect()  # after the exception and its frames are gone
        return False


@torch.no_grad()
def fill_zeros(task: Task) -> None:
    """Draw what starts at zero, so that every path counts."""
    for parameter in task.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Within it float32 matrix products and convolutions run in TF32, or with all their digits."""
    before = [
        backend.fp32_precision == "tf32"
        for backend in (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    ]
    try:
        # These two setters keep torch's old and new flags in step, which torch checks when it compiles.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
