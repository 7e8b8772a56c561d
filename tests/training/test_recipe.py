"""mini in some minutes: the plan, the stages in a row, and a student in the end."""

from pathlib import Path

import pytest
import training_runs as runs

from diffrestorer.config.composition import load
from diffrestorer.config.schema import MiniConfig
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.training.kept_files import read_sealed
from diffrestorer.training.recipe import STAGES, _stage_config, train_mini

SMALL = ["data.size=32", "train.global_batch_size=1", "train.warmup_steps=1"]


def recipe(photos_dir: Path, output_dir: Path, minutes: float) -> MiniConfig:
    config = load("train_mini", MiniConfig, [f"minutes={minutes}", "num_workers=0"])
    config.root, config.output_dir = str(photos_dir), str(output_dir)
    config.common += SMALL
    return config


def test_each_stage_goes_on_from_the_one_before(photos_dir: Path, tmp_path: Path) -> None:
    config = recipe(photos_dir, tmp_path / "a folder, with = signs", 1)
    config.common = [key for key in config.common if not key.startswith("data.classes=")]  # mini's own
    stage1 = _stage_config(config, "stage1", 7, tmp_path / "stage1", None)
    decoder = _stage_config(config, "decoder", 8, tmp_path / "decoder", "mini")
    student = _stage_config(config, "student", 9, tmp_path / "student", str(tmp_path / "decoder"))
    assert (stage1.train.max_steps, decoder.train.max_steps, student.train.max_steps) == (7, 8, 9)
    assert (stage1.init, decoder.init, student.init) == ("mini", None, None)
    assert (decoder.stage1, student.teacher) == ("mini", str(tmp_path / "decoder"))
    assert {run.train.save_dtype for run in (stage1, decoder, student)} == {"float16"}
    assert sum(config.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": None}, "root is not set"),
        ({"minutes": 0}, "more than 0"),
        ({"shares": {}}, "stage1, decoder, student"),
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

    def in_the_decoder(folder: Path) -> bool:
        return (folder / "decoder" / "losses.csv").exists()

    runs.kill_when(
        runs.start("train_mini.py", command, tmp_path / "log"), output, in_the_decoder, timeout=1800
    )
    plan = read_sealed(output / "plan.json")
    runs.finish(runs.start("train_mini.py", command, tmp_path / "log"), tmp_path / "log", timeout=1800)

    assert set(plan) == {"stage1", "decoder"}, "the student is planned when its turn comes"
    after = read_sealed(output / "plan.json")
    assert plan.items() <= after.items()
    assert {stage: len(runs.losses(output / stage)) for stage in STAGES} == after
    assert DiffRestorerPipeline.from_pretrained(output / "student").default_steps == 1
    sizes = [path.stat().st_size for path in (output / "student" / "model").rglob("*.safetensors")]
    assert max(sizes) <= 16 * 2**20
