"""The recipes of the compared methods: what their authors' code does that a table of losses does not show."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import make, photos
from soaking import some_now

from diffrestorer.baselines.da_clip.controller import MAX_LOGIT_SCALE
from diffrestorer.config.composition import load
from diffrestorer.config.schema import BaselineConfig, DataConfig, Stage1Config, TrainConfig
from diffrestorer.data.pairs import Pair, PairBatch, SynthesisedPairs, augment
from diffrestorer.data.prepared import PreparedPairs
from diffrestorer.training.airnet_task import AirNetEncoderTask, AirNetTask
from diffrestorer.training.baseline import first_phase
from diffrestorer.training.da_clip_task import ControllerTask
from diffrestorer.training.schedule import learning_rate_factor

METHODS = ("airnet", "transweather", "nafnet", "restormer", "promptir", "da_clip")
CLIPPED = {"nafnet": 0.01, "restormer": 0.01}
FLOORS = {"nafnet": 1e-7, "restormer": 1e-6, "da_clip": 1e-6}


def recipe(method: str, *overrides: str) -> BaselineConfig:
    return load("train_baseline", BaselineConfig, [f"method={method}", *overrides])


@pytest.mark.parametrize("size", some_now(["mini", "paper"], 1))
@pytest.mark.parametrize("method", some_now(METHODS, 3))
def test_clipping_floors_and_augmentation_are_the_authors(method: str, size: str) -> None:
    config = recipe(method, f"size={size}")
    assert config.train.max_grad_norm == CLIPPED.get(method)
    assert config.train.lr_floor == FLOORS.get(method, 0)
    assert config.pretraining.lr_floor == 0
    assert config.data.augment == (method != "transweather")
    assert not load("train_stage1", Stage1Config, ["hardware=cpu"]).data.augment, (
        "ours is trained without"
    )


def test_cosine_ends_at_its_floor() -> None:
    for method, floor in FLOORS.items():
        settings = recipe(method).train
        end = settings.lr * learning_rate_factor(settings.max_steps, settings)
        assert end == pytest.approx(floor)
        assert learning_rate_factor(0, settings) == 1
    settings = TrainConfig(max_steps=100, lr=1e-3, lr_schedule="cosine", lr_floor=1e-4)
    assert learning_rate_factor(50, settings) == pytest.approx((1 + 0.1) / 2)


def expected_share(side: int, patch: int) -> float:
    """Mean shared area of two independent crops, over a crop's, by counting all pairs of corners."""
    corners = np.arange(side - patch + 1)
    shared = np.maximum(0, patch - np.abs(corners[:, None] - corners))
    return float((shared.mean() / patch) ** 2)


def measured_share(config: BaselineConfig, num_steps: int) -> float:
    """The same of the crops that the task draws, whose corners an image of coordinates shows."""
    network = "network={num_features: 2, num_groups: 1, num_blocks: 1, embedding_dim: 3}"
    task = AirNetEncoderTask(recipe("airnet", f"size={config.size}", network))
    side, patch, count = config.data.size, config.patch_size, config.train.global_batch_size
    rows = torch.arange(side, dtype=torch.float32)
    image = torch.stack(
        [rows[:, None].expand(side, side), rows.expand(side, side), torch.zeros(side, side)]
    )
    images, none = image.expand(count, 3, side, side), torch.zeros(count, 3, 1, 1, dtype=torch.uint8)
    shares = []
    for step in range(num_steps):
        batch = PairBatch(none, none, torch.zeros(count, dtype=torch.int64), step, tuple(range(count)))
        query, key = (task.crops(batch, images, view)[:, :2, 0, 0] for view in ("query", "key"))
        shared = (patch - (query - key).abs()).clamp(min=0)
        shares.append(shared.prod(dim=1) / patch**2)
    return torch.cat(shares).mean().item()


@pytest.mark.parametrize("size", ["paper", "mini"])
def test_airnets_two_crops_share_as_much_as_the_authors(size: str) -> None:
    """16 % of their area on average, and not 69 %: what two crops of 128 of a photo of 321x481 share."""
    config = recipe("airnet", f"size={size}")
    assert config.data.size >= config.window_size
    assert config.data.size == (512 if size == "paper" else 200), (
        "the window lies anywhere in the image"
    )
    share = expected_share(config.window_size, config.patch_size)
    assert share == pytest.approx(0.16, rel=0.02)
    assert measured_share(config, 600) == pytest.approx(share, abs=4 * 0.21 / math.sqrt(600 * 8))
    assert expected_share(192, 128) == pytest.approx(0.69, abs=0.01), "as it was"
    photo = math.sqrt(expected_share(320, 128) * expected_share(480, 128))
    assert photo == pytest.approx(0.165, abs=0.002), (
        "the authors crop photos of 321x481 to multiples of 16"
    )


TINY_AIRNET = (
    "size=mini", "network={num_features: 4, num_groups: 1, num_blocks: 1, embedding_dim: 6}", "data.size=48",
    "patch_size=32", "queue_length=16", "train.global_batch_size=4", "pretraining.max_steps=2",
)  # fmt: skip


def batch(step: int, size: int = 48) -> PairBatch:
    generator = torch.Generator().manual_seed(step)
    lq, gt = (
        torch.randint(256, (4, 3, size, size), dtype=torch.uint8, generator=generator) for _ in range(2)
    )
    return PairBatch(lq, gt, torch.arange(4), step, (0, 1, 2, 3))


def test_airnets_queue_and_adams_state_go_on_in_the_second_phase(tmp_path: Path) -> None:
    config = recipe("airnet", *TINY_AIRNET, f"output_dir={tmp_path}")
    torch.manual_seed(0)
    first = AirNetEncoderTask(first_phase(config))
    (adam,) = first.optimizers()
    for step in range(3):
        first(batch(step)).total.backward()
        adam.step()
        adam.zero_grad()
    first.save_model(tmp_path / "pretraining" / "model", torch.float32)

    second = AirNetTask(config)
    (going_on,) = second.optimizers()
    assert torch.equal(second.queue.keys, first.queue.keys)
    assert int(second.queue.position) == 12
    found = dict(second.named_parameters())
    for name, parameter in first.named_parameters():
        assert torch.equal(found[name], parameter), name
        if parameter.requires_grad:
            assert going_on.state[found[name]].keys() == adam.state[parameter].keys()
            for key, value in adam.state[parameter].items():
                assert torch.equal(going_on.state[found[name]][key], value), (name, key)
    started = {id(parameter) for parameter in going_on.state}
    assert started == {id(parameter) for parameter in second.model.encoder.parameters()}, (
        "the rest begins afresh"
    )

    # One more step of the first phase's loss moves the encoder alike in both.
    for task, optimizer in ((first, adam), (second, going_on)):
        optimizer.param_groups[0]["lr"] = 1e-3
        AirNetEncoderTask.forward(task, batch(3)).total.backward()
        optimizer.step()
    for name, parameter in first.model.encoder.named_parameters():
        torch.testing.assert_close(found[f"model.encoder.{name}"], parameter)

    (tmp_path / "pretraining" / "model" / "contrast.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"contrast\.safetensors is missing: remove .*pretraining and train"
    ):
        AirNetTask(config)


def tiny_controller() -> ControllerTask:
    encoder = "image_encoder: {vision_cfg: {image_size: 32}, embed_dim: 12}"
    network = (
        f"network={{{encoder}, features: 8, multipliers: [1, 2], attention_level: 1, num_steps: 4}}"
    )
    torch.manual_seed(0)
    return ControllerTask(first_phase(recipe("da_clip", "size=mini", network, "clip=none")))


def test_da_clips_first_phase_has_a_recipe_of_its_own() -> None:
    """30 epochs of 80,000 pairs in batches of 784, or 50 in batches of 3,136."""
    config = recipe("da_clip")
    assert config.clip == "laion2b_s34b_b79k"
    first = first_phase(config)
    assert first.train.max_steps == 30 * (80_000 // 784)
    assert (first.train.lr, first.train.warmup_steps, first.train.weight_decay) == (2e-5, 100, 0.05)
    assert (config.betas, config.train.warmup_steps) == ([0.9, 0.99], 0)

    (adam,) = tiny_controller().optimizers()
    assert isinstance(adam, torch.optim.AdamW)
    assert [group["betas"] for group in adam.param_groups] == [(0.9, 0.98)] * 2
    assert [group["eps"] for group in adam.param_groups] == [1e-6] * 2


def test_biases_norms_and_the_logit_scale_do_not_decay() -> None:
    task = tiny_controller()
    (adam,) = task.optimizers()
    decays = {id(p): group["weight_decay"] > 0 for group in adam.param_groups for p in group["params"]}
    named = {name: decays[id(p)] for name, p in task.named_parameters() if p.requires_grad}
    assert set(decays) == {id(p) for p in task.parameters() if p.requires_grad}
    assert not named["model.controller.logit_scale"]
    assert all(decays == (not name.endswith(("bias", "logit_scale")) and ".bn" not in name and "norm" not in name)
               for name, decays in named.items())  # fmt: skip
    assert any(named.values())


def test_the_logit_scale_learns_below_clips_bound() -> None:
    task = tiny_controller()
    scale = task.model.controller.logit_scale
    assert scale.item() == pytest.approx(math.log(100))
    with torch.no_grad():
        scale.fill_(6.0)
    losses = task(batch(0))
    assert scale.item() == pytest.approx(MAX_LOGIT_SCALE)
    losses.total.backward()
    assert scale.grad is not None
    assert scale.grad.abs() > 0


def orientations(image: np.ndarray) -> list[bytes]:
    mirrored = image[:, ::-1]
    return [np.rot90(view, turns).tobytes() for view in (image, mirrored) for turns in range(4)]


def test_pairs_come_in_eight_orientations_equally_often_and_degraded_and_clean_alike() -> None:
    lq = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    gt = 255 - lq
    ways = orientations(lq)
    counted = Counter()
    for number in range(1600):
        pair = augment(Pair(lq, gt, 3, *divmod(number, 16)), seed=5)
        assert np.array_equal(pair.gt, 255 - pair.lq)
        assert (pair.label, pair.step * 16 + pair.position) == (3, number)
        counted[ways.index(pair.lq.tobytes())] += 1
    assert len(counted) == 8
    assert max(abs(count - 200) for count in counted.values()) < 4 * math.sqrt(200 * 7 / 8)
    again = augment(Pair(lq, gt, 3, 1, 2), seed=5)
    assert np.array_equal(again.lq, augment(Pair(lq, gt, 3, 1, 2), seed=5).lq), "by counter"


@pytest.mark.parametrize("kind", ["photos", "prepared"])
def test_data_augment_turns_pairs_and_changes_nothing_else(
    kind: str, photos_dir: Path, tmp_path: Path
) -> None:
    if kind == "prepared":
        make("photos", photos(tmp_path / "train", 1, 2), tmp_path / "out", size=32, budget=None)
        plain = DataConfig("manifest", str(tmp_path / "out"), 32)
        cls: type[PreparedPairs | SynthesisedPairs] = PreparedPairs
    else:
        plain, cls = DataConfig("photos", str(photos_dir), 32), SynthesisedPairs
    before, after = cls(plain, 0, 4), cls(replace(plain, augment=True), 0, 4)
    turned = 0
    for step in range(4):
        for position in range(4):
            old, new = before[step, position], after[step, position]
            assert orientations(old.lq).index(new.lq.tobytes()) == orientations(old.gt).index(
                new.gt.tobytes()
            )
            assert (old.label, old.step, old.position) == (new.label, new.step, new.position)
            turned += new.lq.tobytes() != old.lq.tobytes()
    assert 8 <= turned <= 16, "one in eight stays as it is"
    assert before.fingerprint() == after.fingerprint()
    assert np.array_equal(after.fixed(0).lq, before.fixed(0).lq), "validation does not turn"
    if isinstance(after, PreparedPairs):
        assert after.num_variants is None, "there are more orientations than a cache of encodings knows"
