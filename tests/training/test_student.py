"""The student's identities: where it begins, what it trains, and that its folder restores in one step."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import training_runs as runs
from soaking import some_now

from diffrestorer.config.composition import load
from diffrestorer.config.schema import DataConfig, DecoderConfig, Stage1Config, StudentConfig
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs, collate_pairs
from diffrestorer.inference.one_step import OneStepScheduler
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.inference.tiling import Grid
from diffrestorer.models.lora import merged
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.finished import load_to_train
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.student import StudentTask
from diffrestorer.training.task import to_unit

STEPS = 6


@pytest.fixture(scope="module")
def batch(photos_dir: Path) -> PairBatch:
    pairs = SynthesisedPairs(DataConfig("photos", str(photos_dir), 64, ["noise", "rain"]), 0, 2)
    return collate_pairs([pairs[0, position] for position in range(2)])


@pytest.fixture(scope="module")
def commands(
    tiny_overrides: list[str],
    tiny_sd15_overrides: list[str],
    photos_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    randomised: Callable,
) -> dict[str, list[str]]:
    """Model -> command line of a student whose teacher has no weight at zero, with every loss but distillation."""
    found = {}
    for model, overrides in (("mini", tiny_overrides), ("sd15", tiny_sd15_overrides)):
        teacher = tmp_path_factory.mktemp(f"teacher_{model}")
        keys = [*overrides, "data=photos", f"data.root={photos_dir}", "data.size=64"]
        torch.manual_seed(0)
        stage1 = Stage1Task(load("train_stage1", Stage1Config, keys))
        for name in ("control_encoder", "control_network", "unet", "prompt_processor"):
            setattr(stage1.restorer, name, randomised(getattr(stage1.restorer, name)))
        stage1.conclude()
        stage1.save_model(teacher / "model", torch.float32)
        task = DecoderTask(load("train_decoder", DecoderConfig, [*keys, f"stage1={teacher}"]))
        task.restorer.decoder = randomised(task.restorer.decoder)
        task.save_model(teacher / "model", torch.float32)
        small = [
            "lora_rank=2",
            "lambda_adversarial=0.5",
            "discriminator_channels=8",
            "decoder_start=0",
            f"teacher={teacher}",
        ]
        found[model] = [*keys, *small, "discriminator_start=0"]
    return found


@pytest.fixture(scope="module")
def no_degradation(commands: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mini's teacher, whose P_D is nothing but zeros (the ablation of that name)."""
    teacher = next(word.removeprefix("teacher=") for word in commands["mini"] if "teacher=" in word)
    folder = tmp_path_factory.mktemp("no_degradation") / "model"
    shutil.copytree(Path(teacher) / "model", folder)
    path = folder / "prompt_processor" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "degradation": False}))
    return folder


def student(command: list[str], *more: str) -> StudentTask:
    torch.manual_seed(0)
    return StudentTask(load("train_student", StudentConfig, [*command, *more]))


def train_a_little(task: StudentTask, batch: PairBatch, steps: int = 2) -> None:
    """Steps large enough that every weight which can move does."""
    optimizers = task.optimizers()
    for _ in range(steps):
        task(batch).total.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 1e-2
            optimizer.step()
            optimizer.zero_grad()


def test_mini_begins_with_the_degraded_image_s_latents(
    commands: dict[str, list[str]], batch: PairBatch
) -> None:
    task = student(commands["mini"])
    condition, encodings = task._inputs(batch)
    assert torch.equal(task._estimate(condition), encodings["lq_latents"])


def test_sd15_begins_with_the_teacher_s_estimate_at_tau(
    commands: dict[str, list[str]], batch: PairBatch
) -> None:
    task = student(commands["sd15"])
    teacher = DiffRestorerPipeline.from_pretrained(task.config.teacher)
    lq = to_unit(batch.lq)
    with torch.no_grad():
        condition = teacher.restorer.condition(lq, teacher.restorer.read_prompts(lq))
        start = condition.encoded.latents
        output = teacher.restorer.denoise(start, torch.tensor([task.config.tau] * len(lq)), condition)
        a, b = 0.8682, 0.4963
        expected = (start - b * output) / a
        found = task._estimate(task._inputs(batch)[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)  # a and b have four digits
    exact = OneStepScheduler.from_teacher(teacher.scheduler, task.config.tau).step(
        output, task.config.tau, start
    )
    assert (found - exact.prev_sample).abs().max() <= 3e-6 * exact.prev_sample.abs().max(), (
        "but for rounding"
    )


@pytest.mark.parametrize(
    ("model", "train_decoder"), some_now(product(["mini", "sd15"], [True, False]), 2)
)
def test_what_trains_gets_a_gradient_and_nothing_else_does(
    model: str, train_decoder: bool, commands: dict[str, list[str]], batch: PairBatch
) -> None:
    task = student(commands[model], f"train_decoder={str(train_decoder).lower()}")
    train_a_little(task, batch)
    task(batch).total.backward()

    trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    with_gradient = {name for name, parameter in task.named_parameters() if parameter.grad is not None}
    assert with_gradient == trained
    # Zero by their mathematics: queries and keys where there is one token (cross-attention; the middle of an image this
    # small), and in a hinge loss the biases, whose two halves cancel.
    idle = {name for name in trained if not task.get_parameter(name).grad.any()}
    known = (r"attn2\.to_[qk]", r"mid_block\..*(attn1\.to_[qk]|norm1)", "norm2", "discriminator")
    assert not (unknown := [n for n in idle if not re.search("|".join(known), n)]), unknown

    parts = {
        name.split(".")[1] if name.startswith("restorer.") else name.split(".")[0] for name in trained
    }
    decoder = {"decoder"} if train_decoder else set()
    prompts = {"prompt_processor"} if model == "mini" else set()
    assert parts == {"control_encoder", "control_network", "unet", "discriminator"} | decoder | prompts
    adapters = {name for name in trained if ".unet." in name}
    assert all(".lora_" in name for name in adapters) == (model == "sd15")
    assert not any(
        "attn2.to_q" in name or "attn2.to_k" in name for name in adapters if ".lora_" in name
    )


def test_merged_adapters_are_the_adapters(
    commands: dict[str, list[str]], batch: PairBatch, tmp_path: Path
) -> None:
    task = student(commands["sd15"])
    before = task.restore(batch).detach()
    train_a_little(task, batch)
    with torch.no_grad():
        expected = task.restore(batch)
        assert (expected - before).abs().max() > 1e-2
        unet = merged(task.restorer.unet)
        found = copy.copy(task)
        found.restorer = copy.copy(task.restorer)
        found.restorer._modules = {**task.restorer._modules, "unet": unet}
        torch.testing.assert_close(found.restore(batch), expected, rtol=1e-5, atol=1e-5)
    assert not any("lora" in name for name in unet.state_dict())

    task.save_model(tmp_path, torch.float32)
    pipe = DiffRestorerPipeline.from_pretrained(tmp_path)
    images = torch.stack(pipe(to_unit(batch.lq), output_type="pt").images)
    torch.testing.assert_close(images, expected.clamp(0, 1), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def folder(
    commands: dict[str, list[str]], batch: PairBatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The model folder of a mini student that has trained."""
    folder = tmp_path_factory.mktemp("student")
    task = student(commands["mini"])
    train_a_little(task, batch)
    task.save_model(folder / "model", torch.float32)
    return folder


def test_a_folder_restores_in_one_step_whatever_the_seed(folder: Path, batch: PairBatch) -> None:
    pipe = DiffRestorerPipeline.from_pretrained(folder)
    assert (
        json.loads((folder / "model" / "scheduler" / "scheduler_config.json").read_text())["tau"] == 200
    )
    assert pipe.default_steps == 1
    lq, steps = to_unit(batch.lq), []
    first = pipe(
        lq, generator=torch.Generator().manual_seed(0), output_type="pt", on_step=steps.append
    ).images
    second = pipe(lq, generator=torch.Generator().manual_seed(1), output_type="pt").images
    assert steps == [2]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    with pytest.warns(UserWarning, match="restores in one step: num_inference_steps=4 changes nothing"):
        third = pipe(lq, num_inference_steps=4, output_type="pt").images
    assert all(torch.equal(one, other) for one, other in zip(first, third, strict=True))


def test_tiles_of_an_image_s_size_are_the_image(folder: Path, batch: PairBatch) -> None:
    pipe = DiffRestorerPipeline.from_pretrained(folder)
    lq = to_unit(batch.lq[:1])
    with torch.no_grad():
        whole = pipe.decode(pipe.sample(lq))
        grid = Grid.over(lq.shape[-2:], lq.shape[-1], pipe._multiple, 8, None)
        pipe._stages = lambda *_: type(pipe)._stages(pipe, lq, lq.shape[-1], None)
        tiled = pipe.decode(pipe.sample(lq))
    assert grid is not None
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-5)


def test_encodings_from_a_cache_give_the_same_losses(
    commands: dict[str, list[str]], batch: PairBatch
) -> None:
    task = student(commands["mini"], "lambda_distillation=1", "distillation_steps=2")
    cached = PairBatch(batch.lq, batch.gt, batch.label, batch.step, batch.positions, task.encode(batch))
    found, expected = task(cached), task(batch)
    assert set(cached.encodings) == {"clip_embedding", "lq_latents", "latents", "teacher_latents"}
    assert found.total.item() == expected.total.item()
    assert expected.parts["distillation"] > 0


def test_the_distillation_fades(commands: dict[str, list[str]]) -> None:
    task = student(
        commands["mini"], "lambda_distillation=2", "train.max_steps=100", "distillation_share=0.3"
    )
    weights = [task._distillation_weight(step) for step in (0, 15, 30, 99)]
    assert weights == pytest.approx([2.0, 1.0, 0.0, 0.0])
    assert not any("_teacher" in name for name in task.state_dict()), (
        "the teacher is no part of the student"
    )


def test_the_decoder_waits_for_its_step(commands: dict[str, list[str]]) -> None:
    from diffrestorer.training.schedule import set_learning_rates

    task = student(commands["sd15"], "decoder_start=3", "lora_lr=1e-3", "train.lr=1e-4")
    optimizers = task.optimizers()
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    rates = {}
    for step in (2, 3):
        set_learning_rates(optimizers, peaks, task.config.train, step)
        rates[step] = [group["lr"] for group in optimizers[0].param_groups]
    assert rates == {2: [1e-4, 1e-3, 0.0], 3: [1e-4, 1e-3, 1e-4]}


def test_what_starts_late_begins_like_a_new_optimiser(
    commands: dict[str, list[str]], batch: PairBatch
) -> None:
    """Before its step a part has no moments and no gradient: AdamW's corrections begin with it."""
    from diffrestorer.training.schedule import set_learning_rates, skip_unstarted

    task = student(commands["sd15"], "discriminator_start=3", "decoder_start=2", "train.lr=1e-4")
    assert task.discriminator is not None
    optimizers = task.optimizers()
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    weight = next(iter(task.discriminator.parameters()))
    for step in range(4):
        task(replace(batch, step=step)).total.backward()
        set_learning_rates(optimizers, peaks, task.config.train, step)
        skip_unstarted(optimizers, step)
        before = weight.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        started = {len(optimizer.state) > 0 for optimizer in optimizers[1:]}
        assert started == {step >= 3}
        assert torch.equal(weight, before) == (step < 3)
    moved = (weight - before).abs()
    assert moved.max() <= task.config.discriminator_lr * 1.01, (
        "the first step of AdamW is its rate at most"
    )
    decoder = next(iter(task.restorer.decoder.parameters()))
    assert optimizers[0].state[decoder]["step"] == 2


@pytest.mark.parametrize("weight", some_now(["0", "0.5"], 1))
def test_a_branch_that_nothing_reads_waits_for_no_gradient(
    weight: str, no_degradation: Path, commands: dict[str, list[str]], batch: PairBatch
) -> None:
    """Processes that share a step wait for the gradient of every parameter that requires one."""
    task = student(commands["mini"], f"teacher={no_degradation}", f"lambda_degradation={weight}")
    train_a_little(task, batch)  # leaves the zeros of step 0
    task(batch).total.backward()
    idle = [n for n, p in task.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


def test_a_student_keeps_its_timestep(folder: Path, commands: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="is a student of tau=200: set tau=200, not 300"):
        student(commands["mini"], f"teacher={folder}", "tau=300")


def test_the_prompt_processor_trains_with_its_classifier(
    commands: dict[str, list[str]], batch: PairBatch, tmp_path: Path
) -> None:
    """With `lambda_degradation` every weight of it gets a gradient, and its prototypes are recorded again."""
    task = student(commands["mini"], "lambda_degradation=0.5", "lambda_adversarial=0")
    train_a_little(
        task, batch
    )  # the UNet's last convolution leaves zero: from then on the token matters
    losses = task(batch)
    expected = torch.nn.functional.cross_entropy(
        task.restorer.read_prompts(to_unit(batch.lq)).degradation_logits, batch.label
    )
    torch.testing.assert_close(losses.parts["degradation"], expected)
    losses.total.backward()
    processor = task.restorer.prompt_processor
    assert all(parameter.grad.any() for parameter in processor.parameters())
    before = processor.class_prototypes.clone()
    train_a_little(task, batch)
    task.conclude()
    assert not torch.equal(task.restorer.prompt_processor.class_prototypes, before)


def test_edges_count_by_the_loss_of_pixels(commands: dict[str, list[str]], batch: PairBatch) -> None:
    """With `lambda_gradient` the total is larger by that term, and otherwise there is none."""
    keys = (commands["mini"], "lambda_adversarial=0", "pixel_loss=l1")
    plain, weighted = student(*keys)(batch), student(*keys, "lambda_gradient=0.5")(batch)
    assert set(weighted.parts) - set(plain.parts) == {"gradient"}
    torch.testing.assert_close(weighted.total, plain.total + 0.5 * weighted.parts["gradient"])


def test_a_student_has_nothing_to_distil_and_a_teacher_is_needed(
    folder: Path, commands: dict[str, list[str]]
) -> None:
    with pytest.raises(ValueError, match="is itself a student, which has no steps to distil"):
        student(commands["mini"], f"teacher={folder}", "lambda_distillation=1")
    with pytest.raises(ValueError, match="teacher is not set"):
        StudentTask(load("train_student", StudentConfig, ["model=mini"]))


@pytest.mark.parametrize("key", ["teacher", "init"])
def test_a_student_goes_on_as_it_is(
    key: str, folder: Path, commands: dict[str, list[str]], batch: PairBatch
) -> None:
    task = student(commands["mini"], f"{key}={folder}")
    images = torch.stack(load_to_train(folder)(to_unit(batch.lq), output_type="pt").images)
    with torch.no_grad():
        torch.testing.assert_close(task.restore(batch).clamp(0, 1), images, rtol=1e-5, atol=1e-5)


@pytest.mark.soak
@pytest.mark.parametrize("model", ["mini", "sd15"])
def test_killed_runs_and_two_processes_end_like_one(
    model: str, commands: dict[str, list[str]], tmp_path: Path
) -> None:
    keys = [
        f"train.max_steps={STEPS}", "train.global_batch_size=2", "train.num_workers=0", "train.log_every=1",
        "train.checkpoint_every=2", "decoder_start=2", "train.ema_decay=0.9", "train.sample_every=100",
    ]  # fmt: skip
    command = [*_without(commands[model], "decoder_start"), *keys]
    whole, killed, two = (tmp_path / name for name in ("whole", "killed", "two"))
    runs.run("train_student.py", [*command, f"output_dir={whole}"], tmp_path / "log")

    def after_four(output: Path) -> bool:
        return (output / "losses.csv").exists() and len(runs.losses(output)) > 3

    runs.kill_when(
        runs.start("train_student.py", [*command, f"output_dir={killed}"], tmp_path / "log"),
        killed,
        after_four,
    )
    runs.run("train_student.py", [*command, f"output_dir={killed}"], tmp_path / "log")
    assert runs.files_of(killed / "model") == runs.files_of(whole / "model")
    assert runs.losses(killed) == runs.losses(whole)

    runs.run_ranks("train_student.py", [[*command, f"output_dir={two}"]], tmp_path / "log", 2)
    assert json.loads((two / "environment.json").read_text())["num_processes"] == 2
    for step, (several, one) in enumerate(zip(runs.losses(two), runs.losses(whole), strict=True)):
        # Sums of other order differ by rounding. The adversarial loss, a mean of scores near one over features of a
        # random tower, magnifies it from step to step.
        assert several == pytest.approx(one, rel=5e-3 if step else 1e-5, abs=2e-4 if step else 5e-6)


def _without(command: list[str], key: str) -> list[str]:
    return [word for word in command if not word.startswith(f"{key}=")]


@pytest.mark.soak
def test_perceptual_loss_by_lpips(tmp_path: Path, batch: PairBatch) -> None:
    """LPIPS around a VGG-16 file: zero for equal images, and the package's own value for others."""
    import lpips
    from torchvision.models import vgg16

    from diffrestorer.training.perceptual import PerceptualLoss

    torch.manual_seed(0)
    network = vgg16(weights=None)
    torch.save(network.state_dict(), tmp_path / "vgg16.pth")
    loss = PerceptualLoss("lpips", str(tmp_path / "vgg16.pth"))
    one, other = to_unit(batch.lq), to_unit(batch.gt)

    expected = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    for name, parameter in expected.net.named_parameters():
        _, index, kind = name.split(".")
        parameter.data.copy_(getattr(network.features[int(index)], kind).data)
    assert loss(one, one).item() == 0
    assert loss(one, other).item() == pytest.approx(
        expected(one * 2 - 1, other * 2 - 1).mean().item(), rel=1e-6
    )

    # Features that are all zero have no direction, and no gradient.
    for parameter in loss.lpips.distance.net.parameters():
        parameter.data.zero_()
    images = other.clone().requires_grad_(True)
    loss(images, one).backward()
    assert images.grad.isfinite().all()
    with pytest.raises(ValueError, match="is no file; it is torchvision's vgg16"):
        PerceptualLoss("lpips", str(tmp_path / "missing.pth"))


def test_patches_are_restored_with_what_the_whole_crop_tells(
    commands: dict[str, list[str]], batch: PairBatch
) -> None:
    """A patch as large as the crop is the crop; a smaller one has the encoder's view of the whole."""
    side = batch.lq.shape[-1]
    task = student(commands["mini"])
    with torch.no_grad():
        whole = task(batch).total
        task.config.patch = side
        torch.testing.assert_close(task(batch).total, whole)

        patches = task._patches(batch, side // 2)
        assert patches.lq.shape[-2:] == patches.gt.shape[-2:] == (side // 2, side // 2)
        expected = task.restorer.image_encoder(to_unit(batch.lq))
        assert torch.equal(patches.encodings["clip_embedding"], expected)
        again = task._patches(batch, side // 2)
        assert torch.equal(again.lq, patches.lq), "places are drawn by counter"


def test_patches_larger_than_crops_and_cached_ones_are_refused(commands: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=r"patch=4096 is larger than the crops"):
        student([*commands["mini"], "patch=4096"])
    with pytest.raises(ValueError, match="leave it null with patch="):
        student([*commands["mini"], "patch=64", "train.cache_dir=/nowhere"])
