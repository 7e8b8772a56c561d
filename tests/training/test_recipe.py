"""mini in some minutes: the plan, the stages in a row, and a student in the end."""

from pathlib import Path

import pytest
import torch
import training_runs as runs
from accelerate import PartialState
from soaking import some_now

from diffrestorer.config.composition import load
from diffrestorer.config.schema import MiniConfig
from diffrestorer.inference.model_folder import find_model
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.training.kept_files import read_sealed
from diffrestorer.training.recipe import STAGES, _stage_config, chosen_stages, train_mini

SMALL = ["data.size=32", "train.warmup_steps=1"]


def recipe(photos_dir: Path, output_dir: Path, minutes: float) -> MiniConfig:
    config = load("train_mini", MiniConfig, [f"minutes={minutes}", "num_workers=0"])
    config.root, config.output_dir = str(photos_dir), str(output_dir)
    config.common += SMALL
    config.batch_size = 1
    return config


def test_each_stage_goes_on_from_the_one_before(photos_dir: Path, tmp_path: Path) -> None:
    config = recipe(photos_dir, tmp_path / "a folder, with = signs", 1)
    config.common = [key for key in config.common if not key.startswith("data.classes=")]  # mini's own
    stage1 = _stage_config(config, "stage1", 7, tmp_path / "stage1", "mini")
    decoder = _stage_config(config, "decoder", 8, tmp_path / "decoder", "mini")
    encoder = _stage_config(config, "image_encoder", 6, tmp_path / "image_encoder", "mini")
    student = _stage_config(config, "student", 9, tmp_path / "student", "mini")
    (tmp_path / "a = b").symlink_to(find_model("mini"))
    finish = _stage_config(config, "finish", 5, tmp_path / "finish", str(tmp_path / "a = b"))
    found = (stage1, decoder, encoder, student, finish)
    assert [run.train.max_steps for run in found] == [7, 8, 6, 9, 5]
    assert encoder.image_encoder_steps == 6
    assert [run.init for run in found] == ["mini", None, None, None, None]
    assert (decoder.stage1, encoder.teacher, student.teacher) == ("mini", "mini", "mini")
    assert finish.teacher == str(tmp_path / "a = b")
    assert {run.train.save_dtype for run in found} == {"float16"}


def test_a_teacher_is_trained_only_when_it_is_given_a_share(photos_dir: Path, tmp_path: Path) -> None:
    config = recipe(photos_dir, tmp_path, 1)
    assert chosen_stages(config) == ["image_encoder", "student", "finish"]
    config.shares |= {"stage1": 0.3, "decoder": 0.1, "finish": 0.0}
    assert chosen_stages(config) == ["stage1", "decoder", "image_encoder", "student"]


@pytest.mark.parametrize(
    ("device", "batch_size", "expected"),
    some_now([("cuda", None, 64), ("mps", None, 64), ("cpu", None, 8), ("cpu", 5, 5)], 2),
)
def test_a_step_s_crops_depend_on_the_device(
    device: str,
    batch_size: int | None,
    expected: int,
    photos_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load("train_mini", MiniConfig, ["num_workers=0"])
    config.root, config.batch_size = str(photos_dir), batch_size
    monkeypatch.setattr(PartialState(), "device", torch.device(device))
    assert _stage_config(config, "student", 3, tmp_path, "mini").train.global_batch_size == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": None}, "root is not set"),
        ({"minutes": 0}, "more than 0"),
        ({"shares": {}}, "stage1, decoder, image_encoder, student, finish"),
        ({"shares": dict.fromkeys(STAGES, 0.0)}, "no stage has a share"),
    ],
)
def test_what_can_t_be_trained_is_refused(
    change: dict, message: str, photos_dir: Path, tmp_path: Path
) -> None:
    config = recipe(photos_dir, tmp_path, 1)
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        train_mini(config)
    assert not any(tmp_path.iterdir())


@pytest.mark.soak
def test_a_killed_recipe_goes_on_and_ends_with_a_student(photos_dir: Path, tmp_path: Path) -> None:
    """At mini's real size, on crops of 32 pixels."""
    output = tmp_path / "out"
    common = (
        "common=["
        + ",".join(f"'{word}'" for word in (*load("train_mini", MiniConfig).common, *SMALL))
        + "]"
    )
    command = [f"root={photos_dir}", f"output_dir={output}", "minutes=1.5", "num_workers=0", common]
    command.append("stages.student=[]")  # its squares are larger than these crops
    command += ["shares.stage1=0.2", "shares.decoder=0.1", "batch_size=1"]

    def in_the_decoder(folder: Path) -> bool:
        return (folder / "decoder" / "losses.csv").exists()

    runs.kill_when(
        runs.start("train_mini.py", command, tmp_path / "log"), output, in_the_decoder, timeout=1800
    )
    plan = read_sealed(output / "plan.json")
    runs.finish(runs.start("train_mini.py", command, tmp_path / "log"), tmp_path / "log", timeout=1800)

    assert set(plan) == {"stage1", "decoder"}, "later stages are planned when their turn comes"
    after = read_sealed(output / "plan.json")
    assert plan.items() <= after.items()
    assert {stage: len(runs.losses(output / stage)) for stage in STAGES} == after
    assert DiffRestorerPipeline.from_pretrained(output / "finish").default_steps == 1
    sizes = [path.stat().st_size for path in (output / "finish" / "model").rglob("*.safetensors")]
    assert max(sizes) <= 16 * 2**20
