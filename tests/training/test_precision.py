"""Mixed precision: what is added to latents, and the encodings of a cache, are what they are in float32."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from miniatures import make as make_pairs
from miniatures import photos

from diffrestorer.config.composition import load
from diffrestorer.config.schema import (
    BaseConfig,
    BaselineConfig,
    DataConfig,
    DecoderConfig,
    Stage1Config,
)
from diffrestorer.data.counter import counter_normal, counter_rng
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs, collate_pairs
from diffrestorer.data.prepared import PreparedPairs
from diffrestorer.models.backbones import encode_image
from diffrestorer.models.components import build_image_encoder, save_component
from diffrestorer.training.cache import open_cache
from diffrestorer.training.da_clip_task import IRSDETask
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.diffusion import add_noise
from diffrestorer.training.mini_base import UNetTask, VAETask
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.task import Task, to_unit

NUM_TIMESTEPS = 1000


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.fixture(scope="module")
def keys(tiny_overrides: list[str], photos_dir: Path) -> list[str]:
    return [*tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=64"]


@pytest.fixture(scope="module")
def pair(photos_dir: Path) -> PairBatch:
    pairs = SynthesisedPairs(DataConfig("photos", str(photos_dir), 64, ["noise", "rain"]), 0, 1)
    return collate_pairs([pairs[0, 0]])


@pytest.fixture(scope="module")
def stage1(keys: list[str]) -> Stage1Task:
    torch.manual_seed(0)
    return Stage1Task(load("train_stage1", Stage1Config, keys))


@pytest.fixture(scope="module")
def base_unet(keys: list[str], tmp_path_factory: pytest.TempPathFactory) -> UNetTask:
    """The base's UNet on finished parts that were not trained."""
    output = tmp_path_factory.mktemp("base")
    overrides = [*[key for key in keys if key != "data=photos"], f"output_dir={output}"]
    config = load("train_base", BaseConfig, [*overrides, "part=unet"])
    finished = {"vae": VAETask(config).vae, "image_encoder": build_image_encoder(config.model)}
    for part, component in finished.items():
        save_component(component, output / part / "model" / part, torch.float32)
    return UNetTask(config)


def repeated(pair: PairBatch, positions: list[int]) -> PairBatch:
    """The same pair at other positions, which draw other timesteps and other noise."""
    count = len(positions)
    images = {name: getattr(pair, name).expand(count, -1, -1, -1) for name in ("lq", "gt")}
    return replace(pair, **images, label=pair.label.expand(count), positions=tuple(positions))


def positions_of_all_timesteps(seed: int) -> list[int]:
    """For each timestep a position of step 0 that draws it."""
    found: dict[int, int] = {}
    position = 0
    while len(found) < NUM_TIMESTEPS:
        found.setdefault(
            int(counter_rng(seed, "timestep", 0, position).integers(NUM_TIMESTEPS)), position
        )
        position += 1
    return [found[timestep] for timestep in range(NUM_TIMESTEPS)]


def mixture(
    noisy: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Alpha and sigma of each row of noisy = alpha latents + sigma noise, by least squares in float64."""
    columns = torch.stack([latents.flatten(1), noise.flatten(1)], dim=2).double()
    solved = torch.linalg.lstsq(columns, noisy.flatten(1).double()[..., None]).solution
    return solved[:, 0, 0], solved[:, 1, 0]


@pytest.mark.soak
@pytest.mark.parametrize("stage", ["base_unet", "stage1"])
def test_the_noise_of_every_timestep_is_float32_s(
    stage: str, pair: PairBatch, request: pytest.FixtureRequest
) -> None:
    """What the UNet is given under autocast: bfloat16 latents had no noise at t = 0 and 1, 28 levels below t = 100."""
    task = request.getfixturevalue(stage)
    networks = task if stage == "base_unet" else task.restorer
    unet, vae = networks.unet, networks.vae
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = unet.register_forward_pre_hook(lambda _, inputs: given.append(inputs[:2]))
    positions = positions_of_all_timesteps(task.config.seed)
    with torch.no_grad(), autocast():
        latents = encode_image(vae, to_unit(pair.gt)).latents
        for start in range(0, NUM_TIMESTEPS, 250):
            task(repeated(pair, positions[start : start + 250]))
    hook.remove()
    noisy, timesteps = (torch.cat(parts) for parts in zip(*given, strict=True))
    assert (latents.dtype, noisy.dtype) == (torch.float32, torch.float32)
    assert torch.equal(timesteps, torch.arange(NUM_TIMESTEPS))

    noise = counter_normal(latents.shape[1:], task.config.seed, "noise", 0, positions)
    alpha, sigma = mixture(noisy, latents.expand(NUM_TIMESTEPS, -1, -1, -1), noise)
    products = task.scheduler.alphas_cumprod
    assert torch.allclose(alpha, products.sqrt().double(), rtol=1e-6, atol=0)
    assert torch.allclose(sigma, (1 - products).sqrt().double(), rtol=1e-6, atol=0)
    assert len(sigma.float().unique()) == NUM_TIMESTEPS


def test_v_prediction_s_target_is_float32_s(stage1: Stage1Task, pair: PairBatch) -> None:
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    batch = repeated(pair, positions_of_all_timesteps(0)[:100])
    with torch.no_grad(), autocast():
        latents = stage1.encode(batch)["latents"]
        target = add_noise(scheduler, latents, 0, batch).target
    noise = counter_normal(latents.shape[1:], 0, "noise", 0, batch.positions)
    alpha, sigma = (
        x.sqrt()[:100, None, None, None]
        for x in (scheduler.alphas_cumprod, 1 - scheduler.alphas_cumprod)
    )
    assert torch.allclose(target, alpha * noise - sigma * latents, rtol=1e-6, atol=1e-6)


def test_the_posterior_s_noise_is_float32(keys: list[str], pair: PairBatch) -> None:
    """What the VAE's decoder is given: mean + deviation x noise, none of them rounded on the way."""
    torch.manual_seed(0)
    config = load("train_base", BaseConfig, [key for key in keys if key != "data=photos"])
    task = VAETask(replace(config, part="vae"))
    given: list[torch.Tensor] = []
    moments: list[torch.Tensor] = []
    task.vae.decoder.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    task.vae.encoder.register_forward_hook(lambda _, inputs, output: moments.append(output))
    with torch.no_grad(), autocast():
        losses = task(repeated(pair, [0, 1, 2]))
    assert losses.parts["kl"].dtype == torch.float32
    mean, log_variance = moments[0].float().chunk(2, dim=1)
    noise = counter_normal(mean.shape[1:], task.config.seed, "posterior", 0, [0, 1, 2])
    assert task.vae.config.use_quant_conv is False, "else the moments are taken elsewhere"
    assert torch.equal(given[0], mean + torch.exp(0.5 * log_variance) * noise)


def test_ir_sde_s_noise_is_float32_s(pair: PairBatch) -> None:
    """DA-CLIP: what its U-Net is given at every step of the process."""
    overrides = [
        "method=da_clip",
        "size=mini",
        "clip=none",
        "pretraining.max_steps=0",
        "data=photos",
        "data.root=none",
        "data.size=64",
    ]
    torch.manual_seed(0)
    task = IRSDETask(load("train_baseline", BaselineConfig, overrides))
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = task.model.unet.register_forward_pre_hook(
        lambda _, inputs: given.append((inputs[0], inputs[2]))
    )
    positions = list(range(8))
    with torch.no_grad():
        for context in (autocast(), torch.autocast("cpu", enabled=False)):
            with context:
                task(repeated(pair, positions))
    hook.remove()
    (mixed, steps), (exact, exact_steps) = given
    assert torch.equal(steps, exact_steps)
    assert torch.equal(mixed, exact)


@pytest.fixture
def mixed_accelerator() -> Iterator[Callable[[], Accelerator]]:
    """Makes an accelerator in bf16; whatever ran before may have had another."""

    def make() -> Accelerator:
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=True, mixed_precision="bf16")

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("stage", ["stage1", "decoder hq"])
def test_a_cached_step_has_the_losses_of_one_without(
    stage: str,
    stage1: Stage1Task,
    keys: list[str],
    tmp_path: Path,
    mixed_accelerator: Callable[[], Accelerator],
) -> None:
    """Exactly: the cache is written in the run's precision, and rows do not depend on what is encoded with them."""
    make_pairs("photos", photos(tmp_path / "photos", 1, 2), tmp_path / "out", size=64, budget=None)
    pairs = PreparedPairs(DataConfig("manifest", str(tmp_path / "out"), 64, ["noise", "rain"]), 3, 2)
    task: Task = stage1
    if stage != "stage1":
        stage1.save_model(tmp_path / "stage1", torch.float32)
        torch.manual_seed(0)
        task = DecoderTask(
            load("train_decoder", DecoderConfig, [*keys, f"stage1={tmp_path}/stage1", "z0=hq"])
        )
    accelerator = mixed_accelerator()
    cached = open_cache(tmp_path / "cache", task, pairs, accelerator, 2, 0, logging.getLogger("test"))
    for step in (0, 1):
        found = []
        for source in (pairs, cached):
            batch = collate_pairs([source[step, position] for position in range(2)])
            with accelerator.autocast():
                losses = task(batch)
            found.append(
                {"total": losses.total.item(), **{k: v.item() for k, v in losses.parts.items()}}
            )
        assert found[0] == found[1]
    exact = task(collate_pairs([pairs[1, position] for position in range(2)]))
    assert exact.total.item() != found[0]["total"], "autocast was on"


def test_a_cache_belongs_to_its_precision(
    stage1: Stage1Task, tmp_path: Path, mixed_accelerator: Callable[[], Accelerator]
) -> None:
    make_pairs("photos", photos(tmp_path / "photos", 1, 2), tmp_path / "out", size=64, budget=None)
    pairs = PreparedPairs(DataConfig("manifest", str(tmp_path / "out"), 64, ["noise"]), 3, 2)
    log = logging.getLogger("test")
    mixed = open_cache(tmp_path / "cache", stage1, pairs, mixed_accelerator(), 2, 0, log)
    AcceleratorState._reset_state(reset_partial_state=True)
    exact = open_cache(tmp_path / "cache", stage1, pairs, Accelerator(cpu=True), 2, 0, log)
    assert mixed.cache.folder != exact.cache.folder
    rows = [pairs.cache.read(0)["latents"] for pairs in (mixed, exact)]
    assert {row.dtype for row in rows} == {torch.float32}
    assert not torch.equal(*rows)
