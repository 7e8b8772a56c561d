"""A model's classes are its own: from the pairs of a user's folder through both stages to what it detects."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import training_runs as runs
from miniatures import make, photos, rows_of, save, scene

from diffrestorer.cli import main
from diffrestorer.config.composition import load
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.config.schema import (
    BaselineConfig,
    DecoderConfig,
    PrepareConfig,
    Stage1Config,
)
from diffrestorer.data.counter import counter_rng
from diffrestorer.data.synthesis import degrade
from diffrestorer.inference.model_folder import find_model
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.components import load_component, read_classes
from diffrestorer.models.prompt_processor import PromptProcessor
from diffrestorer.preparation.prepare import prepare
from diffrestorer.training.da_clip_task import ControllerTask
from diffrestorer.training.model_classes import follow_stage1
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.validation import Validation

CLASSES = ("noise", "sandstorm", "clean")
SIZE = 64


def sandstorm(photo: np.ndarray) -> np.ndarray:
    """A photo behind ochre dust, which none of our degradations looks like."""
    return np.rint(0.35 * photo + 0.65 * np.array([210, 130, 40])).astype(np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise that prepare_data.py made, and a folder of sandstorms added to it; no clean pairs."""
    folder = tmp_path_factory.mktemp("own")
    clean = photos(folder / "photos", *range(1, 7))
    make("photos", clean, folder / "PREPARED", size=SIZE, budget=None, degradations=["noise"])
    for number in range(11, 17):
        save(folder / "OWN" / "sandstorm" / "gt" / f"{number}.png", scene(number))
        save(folder / "OWN" / "sandstorm" / "lq" / f"{number}.png", sandstorm(scene(number)))
    save_own = {"set": "pairs", "root": str(folder / "OWN"), "out": str(folder / "PREPARED")}
    prepare(PrepareConfig(**save_own, size=SIZE, num_workers=1))
    prepare(PrepareConfig(out=str(folder / "PREPARED"), check=True))
    assert {row["degradation"] for row in rows_of(folder / "PREPARED")} == {"noise", "sandstorm"}
    return folder / "PREPARED"


def train(script: str, prepared: Path, folder: Path, *keys: str) -> Path:
    """A short run of mini by the real script; its output folder."""
    common = [
        "model=mini", "model.perceptual=none", "data=manifest", f"data.root={prepared}", f"data.size={SIZE}",
        "train.num_workers=0", "train.global_batch_size=6", "train.lr=2e-3", f"output_dir={folder}",
    ]  # fmt: skip
    runs.run(script, [*common, *keys], folder.with_suffix(".log"))
    return folder


@pytest.fixture(scope="module")
def stage1(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "stage1"
    return train(
        "train_stage1.py", prepared, folder, "train.max_steps=16", f"data.classes=[{','.join(CLASSES)}]"
    )


@pytest.fixture(scope="module")
def trained(prepared: Path, stage1: Path) -> Path:
    """The decoder's run after `stage1`."""
    return train(
        "train_decoder.py",
        prepared,
        stage1.with_name("decoder"),
        "train.max_steps=1",
        f"stage1={stage1}",
    )


@pytest.mark.soak
def test_a_model_of_own_classes_detects_and_restores(
    stage1: Path, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Photos that it was not trained on, one of each class."""
    assert read_classes(find_model(stage1)) == read_classes(find_model(trained)) == CLASSES
    files = {
        "noise": degrade(scene(31), "noise", counter_rng(0, "test")),
        "sandstorm": sandstorm(scene(32)),
        "clean": scene(33),
    }
    for name, image in files.items():
        save(tmp_path / "in" / f"{name}.png", image)

    model = ["--model", str(trained), "--device", "cpu"]
    assert main(["detect", str(tmp_path / "in"), "--json", *model]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert all(tuple(line["degradations"]) == CLASSES for line in lines)
    assert {Path(line["input"]).stem: line["degradation"] for line in lines} == {
        name: name for name in CLASSES
    }
    assert main(["detect", str(tmp_path / "in"), *model]) == 0
    assert capfd.readouterr().out.splitlines()[0].split() == ["file", "most", "probable", *CLASSES]

    restore = ["restore", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--steps", "1", *model]
    assert main([*restore, "--degradation", "haze"]) == 2
    error = capfd.readouterr().err
    assert error.startswith(
        "diffrestorer: degradation must be one of noise, sandstorm, clean, not 'haze', did you mean"
    )
    assert main([*restore, "--degradation", "sandstorm"]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.soak
def test_a_folder_keeps_the_classes(trained: Path, tmp_path: Path) -> None:
    pipe = DiffRestorerPipeline.from_pretrained(trained)
    assert pipe.classes == CLASSES
    result = pipe(scene(34), num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    assert result.degradation_probabilities.shape == (1, 3)
    pipe.save_pretrained(tmp_path)
    again = DiffRestorerPipeline.from_pretrained(tmp_path)
    assert again.classes == CLASSES
    assert torch.equal(again.detect(scene(34)), pipe.detect(scene(34)))
    assert "degradations (noise, sandstorm) or several" in (tmp_path / "README.md").read_text()
    assert "tells photos that are clean" in (tmp_path / "README.md").read_text()


@pytest.mark.soak
def test_a_later_stage_keeps_the_classes(stage1: Path) -> None:
    def follow(*keys: str) -> DecoderConfig:
        return follow_stage1(load("train_decoder", DecoderConfig, [f"stage1={stage1}", *keys]))

    assert (
        follow().data.classes
        == follow("data.classes=[noise,sandstorm,clean]").data.classes
        == list(CLASSES)
    )
    assert follow("data.degradations=[clean]").data.degradations == ["clean"]
    with pytest.raises(ValueError, match=r"data\.classes=\[noise,clean\] differ from those of stage1="):
        follow("data.classes=[noise,clean]")
    with pytest.raises(ValueError, match=r"data\.degradations=haze is not valid, did you mean"):
        follow("data.degradations=[haze]")


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it was saved before its configuration named classes."""
    pipe = DiffRestorerPipeline.from_pretrained("mini")
    embed_dim = pipe.image_encoder.config.embed_dim
    torch.manual_seed(0)
    pipe.prompt_processor = PromptProcessor(
        embed_dim,
        pipe.unet.config.cross_attention_dim,
        degradation_dim=pipe.decoder.config.degradation_dim,
    )
    folder = tmp_path_factory.mktemp("older") / "model"
    pipe.save_pretrained(folder)
    path = folder / "prompt_processor" / "config.json"
    config = json.loads(path.read_text())
    del config["classes"]
    path.write_text(json.dumps(config))
    return folder


def test_a_later_stage_of_an_older_model_has_the_eight(older: Path) -> None:
    config = follow_stage1(load("train_decoder", DecoderConfig, [f"stage1={older}"]))
    assert (config.data.classes, config.data.degradations) == (None, list(DEGRADATIONS))
    unset = load("train_decoder", DecoderConfig)
    assert follow_stage1(unset) == unset, "the stage itself says that stage1 is not set"


def test_everything_that_classifies_follows_the_classes(tiny_overrides: list[str]) -> None:
    own = [f"data.classes=[{','.join(CLASSES)}]", "data=photos"]
    stage1 = Stage1Task(load("train_stage1", Stage1Config, [*tiny_overrides, *own]))
    assert stage1.restorer.prompt_processor.classes == CLASSES
    assert stage1.restorer.prompt_processor.classifier.out_features == 3
    baseline = load(
        "train_baseline", BaselineConfig, ["method=da_clip", "size=mini", "clip=none", *own]
    )
    assert ControllerTask(baseline).model.controller.class_embeddings.shape[0] == 3


def test_a_model_goes_on_with_other_classes(
    tiny_overrides: list[str], tmp_path: Path, photos_dir: Path
) -> None:
    """`init=`: the classes that both have keep their rows; the new one's are random."""
    data = ["data=photos", f"data.root={photos_dir}", "data.size=32"]
    first = Stage1Task(
        load("train_stage1", Stage1Config, [*tiny_overrides, *data, "data.degradations=[noise]"])
    )
    first.save_model(tmp_path, torch.float32)
    keys = [f"init={tmp_path}", "data.classes=[clean,blur,noise]"]
    second = Stage1Task(load("train_stage1", Stage1Config, [*tiny_overrides, *data, *keys]))
    before, after = (task.restorer.prompt_processor.classifier for task in (first, second))
    for name, row in (("blur", 1), ("noise", 2)):
        assert torch.equal(after.weight[row], before.weight[DEGRADATIONS.index(name)])
        assert torch.equal(after.bias[row], before.bias[DEGRADATIONS.index(name)])
    assert not any(torch.equal(after.weight[0], row) for row in before.weight)


def test_validation_takes_the_classes_that_photos_can_have(
    tiny_overrides: list[str], photos_dir: Path
) -> None:
    keys = [f"data.classes=[{','.join(CLASSES)}]", f"data.validation_root={photos_dir}", "data.size=64"]
    config = load("train_stage1", Stage1Config, [*tiny_overrides, "data=manifest", *keys])
    labels = torch.cat([batch.label for batch in Validation(config, photos_dir).batches])
    assert labels.tolist() == [0, 2, 0, 2]
    config = replace(config, data=replace(config.data, degradations=["sandstorm"]))
    with pytest.raises(
        ValueError, match="none of the classes that are trained on can be made from photos"
    ):
        Validation(config, photos_dir)


def test_an_older_folder_loads_as_the_eight(older: Path, tmp_path: Path) -> None:
    """Saved again its configuration names them, and it tells photos apart as before."""
    assert read_classes(older) == DEGRADATIONS
    processor = load_component(older / "prompt_processor")
    assert isinstance(processor, PromptProcessor)

    pipe = DiffRestorerPipeline.from_pretrained(older)
    embedding = pipe.image_encoder(torch.tensor(scene(1)).permute(2, 0, 1)[None] / 255)
    expected = processor(embedding).degradation_logits.softmax(-1)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "prompt_processor" / "config.json").read_text())["classes"] == list(
        DEGRADATIONS
    )
    for folder in (older, tmp_path):
        # To rounding: some processors add up in another order where weights lie elsewhere in memory.
        found = DiffRestorerPipeline.from_pretrained(folder).detect(scene(1))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
