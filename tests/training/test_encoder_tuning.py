"""The image encoder learns degradations; the other networks of a finished model read from it what they read before."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_runs as runs

from diffrestorer.config.composition import load
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.config.schema import BaseConfig
from diffrestorer.data.pairs import PairBatch, collate_pairs
from diffrestorer.data.prepared import open_pairs
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.components import COMPONENTS, load_component
from diffrestorer.training import stage1
from diffrestorer.training.encoder_tuning import LABEL_SMOOTHING, NOT_USED, ImageEncoderTask
from diffrestorer.training.losses import degradation_loss
from diffrestorer.training.mini_base import train_base
from diffrestorer.training.model_classes import with_classes
from diffrestorer.training.task import to_unit

CHANGED = ("image_encoder", "prompt_processor")


@pytest.fixture(scope="module")
def settings(photos_dir: Path) -> BaseConfig:
    keys = [
        "part=image_encoder", "image_encoder_steps=2", "teacher=mini", f"data.root={photos_dir}", "data.size=64",
        "data.classes=[noise,low_light,haze,rain,raindrop,snow,blur,jpeg,clean]",
    ]  # fmt: skip
    return load("train_base", BaseConfig, keys)


@pytest.fixture
def task(settings: BaseConfig) -> ImageEncoderTask:
    return ImageEncoderTask(settings).train()


@pytest.fixture(scope="module")
def batch(settings: BaseConfig) -> PairBatch:
    pairs = open_pairs(settings.data, 0, 9)
    return collate_pairs([pairs[0, position] for position in range(9)])


def told(task: ImageEncoderTask, batch: PairBatch) -> torch.Tensor:
    with torch.no_grad():
        prompts = task.prompt_processor(task.image_encoder(to_unit(batch.lq)))
    return prompts.degradation_logits


@pytest.mark.soak
def test_where_the_teacher_is_right_nothing_changes_at_first(
    task: ImageEncoderTask, batch: PairBatch
) -> None:
    """The distance to the teacher's prompts is zero; where it is wrong the true class's mean P_D draws."""
    right = replace(batch, label=told(task, batch).argmax(dim=-1), gt=255 - batch.lq)
    losses = task(right)
    assert losses.parts["prompts"].item() == 0
    expected = degradation_loss(told(task, batch), right.label, LABEL_SMOOTHING)
    torch.testing.assert_close(losses.total, expected)
    wrong = replace(right, label=(right.label + 1) % 9)
    assert task(wrong).parts["prompts"] > 0.1


def test_everything_that_is_read_learns_and_nothing_else(
    task: ImageEncoderTask, batch: PairBatch
) -> None:
    task(batch).total.backward()
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    learning = {name for name, p in task.named_parameters() if p.grad is not None and p.grad.any()}
    unused = {
        name for name, _ in task.named_parameters()
        if name.startswith(tuple(f"image_encoder.visual.tower.{part}" for part in NOT_USED))
    }  # fmt: skip
    # P_S of a first step equals the teacher's: its branch has a gradient, of zero.
    semantic = {name for name in trained if "semantic_branch" in name}
    assert learning == trained - semantic
    assert {name for name, _ in task.named_parameters()} - trained == unused
    (optimizer,) = task.optimizers()
    changed = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert changed == {id(p) for p in task.parameters() if p.requires_grad}


def test_batchnorms_keep_their_statistics(task: ImageEncoderTask, batch: PairBatch) -> None:
    before = {name: value.clone() for name, value in task.image_encoder.named_buffers()}
    task(batch)
    assert before
    assert all(torch.equal(value, before[name]) for name, value in task.image_encoder.named_buffers())


def test_what_nobody_could_see_is_clean(task: ImageEncoderTask, batch: PairBatch) -> None:
    """42 dB are a mean squared error of 4.1 grey levels."""
    noise = torch.zeros_like(batch.lq)
    noise[:, :, ::2] = 2  # a mean squared error of 2: 45 dB
    slight = replace(batch, gt=batch.lq.clamp(2, 253), lq=batch.lq.clamp(2, 253) + noise)
    assert task._labels(slight).tolist() == [8] * 9
    strong = replace(slight, lq=(slight.gt.float() + 3).clamp(max=255).byte())  # up to 9: 38.6 dB
    assert task._labels(strong).tolist() == batch.label.tolist()


@pytest.mark.soak
def test_a_finished_model_gets_the_encoder_and_keeps_its_other_networks(
    settings: BaseConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage1, "PROTOTYPE_BATCHES", 1)
    train = replace(settings.train, global_batch_size=2, num_workers=0)
    train_base(replace(settings, output_dir=str(tmp_path), train=train))
    tuned = DiffRestorerPipeline.from_pretrained(tmp_path / "image_encoder" / "model")
    mini = DiffRestorerPipeline.from_pretrained("mini")
    assert tuned.classes == mini.classes
    assert tuned.scheduler.config == mini.scheduler.config
    for name in COMPONENTS:
        weights, others = (getattr(pipe, name).state_dict() for pipe in (tuned, mini))
        same = all(torch.equal(weights[key], others[key]) for key in others)
        assert same == (name not in CHANGED), name
    assert not torch.equal(
        tuned.prompt_processor.class_prototypes, mini.prompt_processor.class_prototypes
    )


def test_prototypes_are_of_every_class_that_trains_and_others_stay(
    task: ImageEncoderTask,
    settings: BaseConfig,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the classes that the encoder was taught; as many pairs are read as it takes to meet each of them."""
    monkeypatch.setattr(stage1, "PROTOTYPE_BATCHES", 1)
    processor = task.prompt_processor
    before = processor.class_prototypes.clone()
    data = replace(settings.data, degradations=[*["noise"] * 30, "haze"])
    task.config = replace(settings, data=data)
    task.conclude()
    changed = (processor.class_prototypes != before).any(dim=1)
    assert [name for name, row in zip(processor.classes, changed, strict=True) if row] == [
        "noise",
        "haze",
    ]
    assert not caplog.records

    # Noise that nobody can see was taught as clean.
    sigma = replace(data.synthesis.noise, sigma=(0.5, 0.6))
    faint = replace(data, degradations=["noise"], synthesis=replace(data.synthesis, noise=sigma))
    task.config = replace(settings, data=faint)
    monkeypatch.setattr(stage1, "PROTOTYPE_TURNS", 2)
    kept = processor.class_prototypes.clone()
    task.conclude()
    changed = (processor.class_prototypes != kept).any(dim=1)
    assert [name for name, row in zip(processor.classes, changed, strict=True) if row] == ["clean"]
    assert "training pairs is of noise: its prototype stays" in caplog.text


def test_the_tuned_model_s_classes_are_settled_like_a_base_s_own(settings: BaseConfig) -> None:
    keys = ["part=image_encoder", "image_encoder_steps=2"]
    assert load("train_base", BaseConfig, keys).data.degradations == list(DEGRADATIONS)
    assert load("train_base", BaseConfig, [*keys, "teacher=mini"]).data.degradations is None
    follows = with_classes(load("train_base", BaseConfig, [*keys, "teacher=mini"]))
    assert follows.data.classes == follows.data.degradations == [*DEGRADATIONS, "clean"]
    with pytest.raises(ValueError, match=r"data\.degradations=foo is not valid"):
        load("train_base", BaseConfig, ["data.degradations=[foo]"])


@pytest.mark.soak
def test_a_base_gets_an_encoder_that_its_unet_takes(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    keys = [
        *tiny_overrides, f"data.root={photos_dir}", "data.size=64", "train.max_steps=1", "image_encoder_steps=2",
        "train.global_batch_size=2", "train.num_workers=0", f"output_dir={tmp_path}",
    ]  # fmt: skip
    train_base(load("train_base", BaseConfig, keys))
    folders = ("image_encoder_fitted", "image_encoder", "unet")
    fitted, tuned, kept = (
        load_component(tmp_path / name / "model" / "image_encoder") for name in folders
    )
    assert len(runs.losses(tmp_path / "image_encoder")) == 2
    weights = tuned.state_dict()
    assert any(not torch.equal(weights[key], value) for key, value in fitted.state_dict().items())
    assert all(torch.equal(weights[key], value) for key, value in kept.state_dict().items())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["part=all", "teacher=mini"], "part=image_encoder image_encoder_steps=STEPS"),
        (["part=image_encoder", "teacher=mini"], "part=image_encoder image_encoder_steps=STEPS"),
        (["part=image_encoder", "image_encoder_steps=1", "teacher=nowhere"], "nowhere"),
        (
            ["part=image_encoder", "image_encoder_steps=1", "teacher=mini", "data.classes=[noise]"],
            "teacher=mini",
        ),
    ],
)
def test_what_cannot_work_is_one_sentence(
    keys: list[str], message: str, photos_dir: Path, tmp_path: Path
) -> None:
    config = load(
        "train_base", BaseConfig, [f"data.root={photos_dir}", f"output_dir={tmp_path}/run", *keys]
    )
    with pytest.raises(ValueError, match=message) as refused:
        train_base(config)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.soak
def test_killed_runs_and_two_processes_end_like_one(photos_dir: Path, tmp_path: Path) -> None:
    arguments = [
        "part=image_encoder", "image_encoder_steps=4", "teacher=mini", f"data.root={photos_dir}", "data.size=64",
        "train.global_batch_size=2", "train.num_workers=0", "train.log_every=1", "train.checkpoint_every=2",
    ]  # fmt: skip
    log = tmp_path / "log"
    one, killed, two = (tmp_path / name for name in ("one", "killed", "two"))
    runs.run("train_base.py", [*arguments, f"output_dir={one}"], log)

    command = [*arguments, f"output_dir={killed}"]
    runs.kill_when(
        runs.start("train_base.py", command, log),
        killed / "image_encoder",
        lambda output: (output / "checkpoints" / "step_2").is_dir(),
    )
    runs.run("train_base.py", command, log)
    assert runs.files_of(killed / "image_encoder" / "model") == runs.files_of(
        one / "image_encoder" / "model"
    )

    runs.run_ranks("train_base.py", [[*arguments, f"output_dir={two}"]], log, num_processes=2)
    single, shared = (runs.losses(output / "image_encoder") for output in (one, two))
    assert [float(row["total"]) for row in shared] == pytest.approx(
        [float(row["total"]) for row in single], rel=1e-4
    )
